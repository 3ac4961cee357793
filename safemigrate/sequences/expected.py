"""What the next INSERT into a model's table needs, and the database has lost.

A restore, a copy or a replication tool carries rows more readily than defaults, identities and
keys. Django leaves an auto field out of its INSERT, so the catalogue has to fill it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django.apps import apps
from django.db import router, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import AutoField

from safemigrate import driver

from .catalogue import CODE_OF_OTHERS, FEEDS
from .state import SETTINGS, Finding, checking, sign_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

INTEGERS = ("smallint", "integer", "bigint")
# From so much of a range on somebody should think of a wider one.
NEARLY_USED_UP = 80
LOCK_TIMEOUT = "3s"

Status = Literal["lost default", "foreign sequence", "lost key"]


class Need(NamedTuple):
    """A model's primary key; ``schema`` is None where the model's table names none."""

    schema: str | None
    table: str
    column: str
    is_auto: bool


@dataclass(frozen=True)
class Loss:
    """What a model's primary key needs and the column does not have.

    ``sql`` puts it back, past the largest key; empty where a human has to decide how. A lost key is
    never put back unasked: its first statement finds the rows that stand in the way.
    """

    schema: str
    table: str
    column: str
    status: Status
    reason: str
    sql: tuple[str, ...] = ()

    @property
    def is_restorable(self) -> bool:
        return self.status != "lost key" and bool(self.sql)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}: {self.status}; {self.reason}"


# Nothing fills the column when an INSERT leaves it out; a trigger before the INSERT may.
IS_UNFILLED = """
           NOT a.atthasdef AND a.attidentity = ''
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_type AS t
               WHERE t.oid = a.atttypid AND t.typdefaultbin IS NOT NULL)
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_trigger AS g
               WHERE g.tgrelid = c.oid AND NOT g.tgisinternal AND g.tgtype & 7 = 7)"""

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
WITH wanted AS MATERIALIZED (
    SELECT w.place, w.is_auto, c.oid, a.attnum::pg_catalog.int4 AS attribute
    FROM ROWS FROM (
        pg_catalog.unnest(%(own_schemas)s::pg_catalog.text[]),
        pg_catalog.unnest(%(tables)s::pg_catalog.text[]),
        pg_catalog.unnest(%(columns)s::pg_catalog.text[]),
        pg_catalog.unnest(%(autos)s::pg_catalog.bool[])
    ) WITH ORDINALITY AS w (schema, table_name, column_name, is_auto, place)
    JOIN pg_catalog.pg_class AS c
      ON c.relname = w.table_name::pg_catalog.name AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace AS n
      ON n.oid = c.relnamespace
     AND CASE WHEN w.schema IS NULL THEN n.nspname = ANY (%(schemas)s::pg_catalog.name[])
              ELSE n.nspname = w.schema END
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = c.oid AND a.attname = w.column_name::pg_catalog.name AND NOT a.attisdropped
),
feed AS MATERIALIZED (
    SELECT f.sequence, f.relation, f.attribute
    FROM ({FEEDS.format(relation="= ANY (ARRAY (SELECT w.oid FROM wanted AS w))")}) AS f
    WHERE f.is_bare
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
           w.is_auto AND t.typcategory = 'N' AND {IS_UNFILLED} AS is_unfilled,
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
       x.name AS table, pg_catalog.quote_literal(x.name) AS table_text,
       pg_catalog.quote_ident(a.attname) AS column,
       pg_catalog.quote_literal(a.attname) AS column_text,
       own.name AS own, pg_catalog.quote_literal(own.name) AS own_text, own.increment,
       {CODE_OF_OTHERS.replace("l.members", "ARRAY[c.oid]")} AS code_of
FROM lost AS l
JOIN pg_catalog.pg_class AS c ON c.oid = l.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = l.oid AND a.attnum = l.attribute
CROSS JOIN LATERAL pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS x (name)
LEFT JOIN LATERAL (
    -- What a serial column draws from, where it is still there and nobody else's.
    SELECT pg_catalog.format('%%I.%%I', n.nspname, s.relname) AS name, q.seqincrement AS increment
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
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.refobjid = s.oid)
    ORDER BY s.oid
    LIMIT 1
) AS own ON true
WHERE l.is_unfilled OR l.stranger IS NOT NULL OR l.is_keyless
ORDER BY l.place, n.nspname
"""

# As Django makes an auto field since 4.1.
IDENTITY = (
    "ALTER TABLE {table} ALTER COLUMN {column} DROP DEFAULT;",
    "ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;",
    "ALTER TABLE {table} ALTER COLUMN {column} ADD GENERATED BY DEFAULT AS IDENTITY;",
    """
    SELECT pg_catalog.setval(
        pg_catalog.pg_get_serial_sequence({table_text}, {column_text}), pg_catalog.max({column}))
    FROM {table}
    HAVING pg_catalog.max({column}) > 0;""",
)
# As it made one before.
OWN_SEQUENCE = (
    "ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;",
    "ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT pg_catalog.nextval({own_text});",
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

# An INSERT into the table as the session finds it now. A rule may send it elsewhere, and a
# partition may have a trigger of its own.
CANNOT_RECORD = f"""
    SELECT n.nspname AS schema
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = %s
    WHERE c.oid = pg_catalog.to_regclass(%s) AND c.relkind = 'r' AND NOT c.relhasrules
      AND a.attnotnull AND {IS_UNFILLED}
"""


def needs_of_apps(connection: BaseDatabaseWrapper, labels: Iterable[str] = ()) -> list[Need]:
    """List the primary keys of the apps' models; without labels of all, and of Django's record.

    Raises LookupError for a label that no installed app has.
    """
    configs = [apps.get_app_config(label) for label in labels] or list(apps.get_app_configs())
    models: list[Any] = [] if labels else [MigrationRecorder.Migration]
    for config in configs:
        models += [
            model
            for model in config.get_models(include_auto_created=True)
            if router.allow_migrate_model(connection.alias, model)
        ]
    return needs_of(connection, models)


def needs_of(connection: BaseDatabaseWrapper, models: Iterable[Any]) -> list[Need]:
    """List the primary keys of those models that have a table of their own here."""
    return [
        need
        for model in models
        if model._meta.can_migrate(connection)
        for need in _needs(model._meta, connection)
    ]


def _needs(options: Any, connection: BaseDatabaseWrapper) -> Iterator[Need]:
    # A db_table may hold a schema and quotes of its own: 'shop"."order'.
    *schema, table = connection.ops.quote_name(options.db_table)[1:-1].split('"."')
    for field in options.local_concrete_fields:
        if field.primary_key:
            # One of the project's own may leave its numbers to the program.
            kind = f"{field.db_type(connection)} {field.db_type_suffix(connection)}".lower()
            is_filled = "identity" in kind or "serial" in kind
            is_auto = isinstance(field, AutoField) and is_filled
            yield Need(schema[0] if schema else None, table, field.column, is_auto)


def losses(
    connection: BaseDatabaseWrapper, needs: list[Need], schemas: Iterable[str]
) -> list[Loss]:
    """Compare what models need with the catalogue, wherever ``schemas`` have the tables."""
    parameters = {
        "own_schemas": [need.schema for need in needs],
        "tables": [need.table for need in needs],
        "columns": [need.column for need in needs],
        "autos": [need.is_auto for need in needs],
        "schemas": list(schemas),
    }
    with checking(connection) as cursor:
        rows = cursor.rows(LOSSES, parameters)
    return [loss for row in rows for loss in _losses(row)]


def _losses(row: Any) -> Iterator[Loss]:
    where = row.schema, row.table_name, row.column_name
    if row.is_unfilled:
        yield Loss(*where, "lost default", "it has no default or identity", _restoring(row))
    elif row.stranger:
        reason = f"it draws from {row.stranger}, which belongs to another table"
        yield Loss(*where, "foreign sequence", reason, _restoring(row))
    if row.is_keyless:
        yield Loss(
            *where, "lost key", "it has no primary key or valid unique index", _filled(KEY, row)
        )


def _restoring(row: Any) -> tuple[str, ...]:
    # Reading the largest key could run what another role has put into an index.
    if row.type not in INTEGERS or row.code_of:
        return ()
    return _filled(OWN_SEQUENCE if row.own else IDENTITY, row)


def _filled(statements: Iterable[str], row: Any) -> tuple[str, ...]:
    # Put on one line before the names come in: theirs is not to be changed.
    lines = (" ".join(statement.split()) for statement in statements)
    return tuple(line.format_map(row._asdict()) for line in lines)


def restore(connection: BaseDatabaseWrapper, loss: Loss) -> None:
    """Put back what the column has lost, all of it or nothing; raises the server's Error."""
    with transaction.atomic(using=connection.alias), driver.cursor(connection) as cursor:
        cursor.execute(SETTINGS, [LOCK_TIMEOUT])
        for statement in loss.sql:
            cursor.execute(statement)


def record_that_takes_no_row(connection: BaseDatabaseWrapper) -> str | None:
    """Name the schema of a ``django_migrations`` whose key nothing fills, else return None."""
    options = MigrationRecorder.Migration._meta
    connection.ensure_connection()
    with driver.aside(connection) as cursor:
        row = cursor.row(
            CANNOT_RECORD, [options.pk.column, connection.ops.quote_name(options.db_table)]
        )
    return str(row.schema) if row else None


def percent_used(finding: Finding) -> int | None:
    """Say how much of its range a sequence has used once it is in sync; None if it is not known."""
    if finding.next_value is None:
        return None
    sequence, sign = finding.sequence, sign_of(finding.sequence)
    given = [finding.next_value - sequence.increment, finding.target, finding.moved_to]
    last = max(sign * each for each in given if each is not None)
    first, end = sorted((sign * sequence.lowest, sign * sequence.highest))
    return max(0, 100 * (last - first + 1) // (end - first + 1))
