"""What the next INSERT into a model's table needs, and the database has lost.

A restore, a copy or a replication tool carries rows more readily than defaults, identities and
keys. Django leaves an auto field out of its INSERT, so the catalogue has to fill it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import NotSupportedError
from django.db.migrations.recorder import MigrationRecorder

from safemigrate import driver
from safemigrate.printing import sql_literal, sql_name

from .catalogue import code_of_others
from .checking import SETTINGS, checking, checking_table
from .collations import mismatches
from .feeds import FEEDS
from .needs import WANTED, Loss, Need, parameters_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

RESTORABLE = ("smallint", "integer", "bigint")
LOCK_TIMEOUT = "3s"

# Nothing fills the column when an INSERT leaves it out, unless a trigger before the INSERT does.
IS_UNFILLED = """
           NOT a.atthasdef AND a.attidentity = ''
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_type AS t
               WHERE t.oid = a.atttypid AND t.typdefaultbin IS NOT NULL)"""
# The server's own trigger functions fill no key.
HAS_TRIGGER = """
           EXISTS (
               SELECT FROM pg_catalog.pg_trigger AS g
               JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
               WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
                 AND g.tgtype & 7 = 7  -- for each row (1), before it (2), INSERT (4)
                 AND p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace)"""

# A table that inherits draws from its parent's sequence as a matter of course. A sequence of
# another schema may be shared on purpose, unless it is the one of the very table that was cloned.
IS_FOREIGN = """
          (o.refobjid <> c.oid
           OR s.relnamespace <> c.relnamespace AND EXISTS (
               SELECT FROM pg_catalog.pg_class AS twin
               WHERE twin.relname = c.relname AND twin.relnamespace = s.relnamespace
                 AND twin.relkind IN ('r', 'p')))
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = c.oid)"""

# Columns own sequences as serial ('a') or identity ('i').
IS_OWNERSHIP = """
          d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.refobjsubid > 0
          AND d.deptype IN ('a', 'i')"""
OWNER_OF_SEQUENCE = f"""
        SELECT d.refobjid
        FROM pg_catalog.pg_depend AS d
        WHERE d.objid = s.oid AND {IS_OWNERSHIP}"""

# Partitioned tables, those that inherit and those with heirs (hypertables, too) may do without a
# key of their own; a key that is unique only together with other columns is somebody's decision,
# and so is another primary key.
LOSSES = f"""
WITH {WANTED},
feed AS MATERIALIZED (
    SELECT f.sequence, f.relation, f.attribute
    FROM ({FEEDS.format(relation="= ANY (ARRAY (SELECT w.oid FROM wanted AS w))")}) AS f
    WHERE f.is_bare
),
used AS MATERIALIZED (
    SELECT DISTINCT f.sequence, COALESCE(
               pg_catalog.pg_partition_root(f.relation)::pg_catalog.oid, f.relation) AS root
    FROM ({FEEDS.format(relation="IS NOT NULL")}) AS f
),
stranger AS MATERIALIZED (
    SELECT f.relation, f.attribute,
           pg_catalog.min(pg_catalog.format('%%I.%%I', sn.nspname, s.relname)) AS name
    FROM feed AS f
    JOIN pg_catalog.pg_class AS c ON c.oid = f.relation
    JOIN pg_catalog.pg_class AS s ON s.oid = f.sequence AND s.relkind = 'S'
    JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
    LEFT JOIN LATERAL ({OWNER_OF_SEQUENCE} OFFSET 0) AS o ON true
    WHERE {IS_FOREIGN}
    GROUP BY f.relation, f.attribute
),
lost AS MATERIALIZED (
    SELECT w.place, w.oid, w.attribute,
           w.is_auto AND t.typcategory = 'N' AND {IS_UNFILLED}
           AND (%(force)s OR NOT {HAS_TRIGGER}) AS is_unfilled,
           CASE WHEN w.is_auto THEN x.name END AS stranger,
           c.relkind = 'r' AND NOT c.relhassubclass
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = c.oid)
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_index AS i
               WHERE i.indrelid = c.oid
                 AND (i.indisprimary OR i.indisunique AND i.indisvalid AND i.indpred IS NULL
                      AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))) AS is_keyless
    FROM wanted AS w
    JOIN pg_catalog.pg_class AS c ON c.oid = w.oid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = w.oid AND a.attnum = w.attribute
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN stranger AS x ON x.relation = w.oid AND x.attribute = w.attribute
)
SELECT n.nspname AS schema, c.relname AS table_name, a.attname AS column_name,
       l.is_unfilled, l.stranger, l.is_keyless,
       pg_catalog.format_type(a.atttypid, NULL) AS type,
       CASE c.relkind WHEN 'r' THEN 'ONLY ' ELSE '' END AS only,
       pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted_table,
       pg_catalog.quote_ident(a.attname) AS quoted_column,
       own.name AS own_name, own.quoted AS quoted_own, own.increment,
       {code_of_others("family.members", with_checks=True)} AS code_of
FROM lost AS l
JOIN pg_catalog.pg_class AS c ON c.oid = l.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = l.oid AND a.attnum = l.attribute
CROSS JOIN LATERAL (
    SELECT ARRAY (
        WITH RECURSIVE heir (oid) AS (
            SELECT c.oid
            UNION
            SELECT h.inhrelid
            FROM heir
            JOIN pg_catalog.pg_inherits AS h ON h.inhparent = heir.oid
        )
        SELECT heir.oid FROM heir) AS members
) AS family
LEFT JOIN LATERAL (
    -- What a serial column draws from, where it is still there and nobody else's.
    SELECT s.relname AS name, pg_catalog.format('%%I.%%I', n.nspname, s.relname) AS quoted,
           q.seqincrement AS increment
    FROM (
        SELECT d.objid
        FROM pg_catalog.pg_depend AS d
        WHERE d.refobjid = c.oid AND d.refobjsubid = a.attnum AND {IS_OWNERSHIP}
        UNION ALL
        SELECT s.oid
        FROM pg_catalog.pg_class AS s
        WHERE s.relname = pg_catalog.concat(c.relname, '_', a.attname, '_seq')::pg_catalog.name
          AND s.relnamespace = c.relnamespace
          AND NOT EXISTS ({OWNER_OF_SEQUENCE})
    ) AS candidate (oid)
    JOIN pg_catalog.pg_class AS s
      ON s.oid = candidate.oid AND s.relnamespace = c.relnamespace AND s.relowner = c.relowner
    JOIN pg_catalog.pg_sequence AS q
      ON q.seqrelid = s.oid AND q.seqincrement > 0 AND NOT q.seqcycle
    WHERE NOT EXISTS (SELECT FROM used AS u WHERE u.sequence = s.oid AND u.root <> c.oid)
    ORDER BY s.oid
    LIMIT 1
) AS own ON true
WHERE l.is_unfilled OR l.stranger IS NOT NULL OR l.is_keyless
ORDER BY l.place, n.nspname
"""

# Somebody may type these, in a search_path where others can make operators: for the types of each
# operator here, and no others, the server has one of its own.

# As Django makes an auto field since 4.1. Heirs keep the defaults they have. The column may still
# own a sequence that others draw from.
IDENTITY = (
    "ALTER TABLE {only}{table} ALTER COLUMN {column} DROP DEFAULT;",
    "ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;",
    "ALTER TABLE {table} ALTER COLUMN {column} ADD GENERATED BY DEFAULT AS IDENTITY;",
    """
    SELECT pg_catalog.setval(d.objid::pg_catalog.regclass, k.largest)
    FROM (SELECT pg_catalog.max({column}) AS largest FROM {table}) AS k
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = {table_text}::pg_catalog.regclass::pg_catalog.oid
     AND a.attname = {column_text}
    JOIN pg_catalog.pg_depend AS d
      ON d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype = 'i'
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
     AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
    WHERE k.largest > 0;""",
)
# As it made one before; a serial that became a bigserial takes its sequence along.
OWN_SEQUENCE = (
    "ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;",
    "ALTER SEQUENCE {own} AS {type};",
    "ALTER TABLE {only}{table} ALTER COLUMN {column} SET DEFAULT pg_catalog.nextval({own_text});",
    "ALTER SEQUENCE {own} OWNED BY {table}.{column};",
    """
    SELECT pg_catalog.setval(
        {own_text},
        s.last_value + {increment} * ((k.largest - s.last_value) / {increment} + 1),
        false)
    FROM {own} AS s
    JOIN (SELECT pg_catalog.max({column}) AS largest FROM {table}) AS k
      ON k.largest >= s.last_value;""",
)
KEY = (
    """
    SELECT {column}, pg_catalog.count(*)
    FROM {table}
    GROUP BY {column}
    HAVING pg_catalog.count(*) > 1 OR {column} IS NULL;""",
    "ALTER TABLE {table} ADD PRIMARY KEY ({column});",
)

# A rule may send an INSERT elsewhere, and a partition may have a trigger of its own.
CANNOT_RECORD = f"""
    SELECT n.nspname AS schema
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = %s
    WHERE c.oid = %s AND c.relkind = 'r' AND NOT c.relhasrules
      AND a.attnotnull AND {IS_UNFILLED} AND NOT {HAS_TRIGGER}
"""


def find_losses(
    connection: BaseDatabaseWrapper,
    needs: list[Need],
    schemas: Iterable[str] | None,
    *,
    force: bool = False,
) -> list[Loss]:
    """Compare what models need with the catalogue, wherever ``schemas`` have the tables.

    None stands for all of them. With ``force`` a key that only a trigger could fill is lost, too,
    and what others have written into the table is no obstacle.
    """
    parameters = parameters_of(needs, schemas)
    with checking(connection) as cursor:
        lost = cursor.rows(LOSSES, parameters | {"force": force})
        stale = mismatches(cursor, parameters, driver.server_version(connection))
    return [loss for row in lost for loss in _losses(row, force=force)] + stale


def _losses(row: Any, *, force: bool) -> Iterator[Loss]:
    where = row.schema, row.table_name, row.column_name
    danger = "" if force else _danger(row)
    sql, advice = ((), danger) if danger else _restoring(row)
    if row.is_unfilled:
        yield Loss(*where, "lost default", "it has no default or identity", sql, advice)
    elif row.stranger:
        reason = f"it draws from {row.stranger}, which belongs to another table"
        yield Loss(*where, "foreign sequence", reason, sql, advice)
    if row.is_keyless:
        sql = () if danger else _filled(KEY, row)
        yield Loss(*where, "lost key", "it has no primary key or valid unique index", sql, danger)


def _danger(row: Any) -> str:
    """Say how code of others could run, with the rights of whoever reads or alters the table."""
    if not row.code_of:
        return ""
    return (
        "an index, statistics object, partition key or CHECK of the table, or of one that inherits "
        f"from it, calls a function of role {row.code_of}, which this could run; if that role is "
        "trusted, use --restore-defaults --force"
    )


def _restoring(row: Any) -> tuple[tuple[str, ...], str]:
    """Return the statements that restore a default, or none and what to do instead."""
    if row.type not in RESTORABLE:
        return (), f"make it a smallint, integer or bigint; it is {row.type}"
    return _filled(OWN_SEQUENCE if row.own_name else IDENTITY, row), ""


def _filled(statements: Iterable[str], row: Any) -> tuple[str, ...]:
    names = {
        "table": sql_name(row.quoted_table, row.schema, row.table_name),
        "table_text": sql_literal(row.quoted_table),
        "column": sql_name(row.quoted_column, row.column_name),
        "column_text": sql_literal(row.column_name),
        "only": row.only,
        "type": row.type,
    }
    if row.own_name:
        names |= {
            "own": sql_name(row.quoted_own, row.schema, row.own_name),
            "own_text": sql_literal(row.quoted_own),
            "increment": row.increment,
        }
    # Put on one line before the names come in: theirs is not to be changed.
    lines = (" ".join(statement.split()) for statement in statements)
    return tuple(line.format_map(names) for line in lines)


def restore(connection: BaseDatabaseWrapper, loss: Loss) -> None:
    """Put back what the column has lost, all of it or nothing; raises the server's Error.

    Not in a transaction of somebody else's, which would keep our settings, or not be committed.
    """
    if connection.in_atomic_block or not driver.is_idle(connection):
        raise NotSupportedError("a table's default is restored outside of transactions only")
    with driver.transaction(connection) as cursor:
        cursor.execute(SETTINGS, [LOCK_TIMEOUT])
        for statement in loss.sql:
            cursor.execute(statement)


def record_that_takes_no_row(connection: BaseDatabaseWrapper) -> str | None:
    """Name the schema of a ``django_migrations`` whose key nothing fills, else return None."""
    options = MigrationRecorder.Migration._meta
    table = connection.ops.quote_name(options.db_table)  # as a statement of Django's names it
    with checking_table(connection, table) as (cursor, oid):
        row = cursor.row(CANNOT_RECORD, [options.pk.column, oid])
    return str(row.schema) if row else None
