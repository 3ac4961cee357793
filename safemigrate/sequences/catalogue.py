"""What PostgreSQL's catalogue knows of a sequence and its keys, and what stands in the way.

Nothing here reads a user's table or evaluates anybody's expression. The statements expect the
settings of :func:`safemigrate.sequences.checking.checking`; identifiers are quoted by the server
(``format('%I')``) before they are put into a statement.
"""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .sequence import INTEGERS, Hinders, Key, Obstacle, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from safemigrate.driver import Cursor

    from .feeds import Feed

# The planner evaluates, with the rights of whoever reads a table, what can be evaluated beforehand
# of the expressions in its indexes, its extended statistics and its partition key. So the functions
# in them, and the domains, whose CHECKs call some, must be the reader's own or a superuser's.
CODE_OF_OTHERS = """(
    SELECT pg_catalog.quote_ident(pg_catalog.min(r.rolname))
    FROM (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, m
        FROM pg_catalog.unnest({members}) AS m
        WHERE c.relkind = 'p'
        UNION ALL
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid
        FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = ANY ({members})
          AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
        UNION ALL
        SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, x.oid
        FROM pg_catalog.pg_statistic_ext AS x
        WHERE x.stxrelid = ANY ({members})
        UNION ALL
        SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid
        FROM pg_catalog.pg_constraint AS k
        WHERE {with_checks} AND k.conrelid = ANY ({members}) AND k.contype = 'c'
    ) AS o (class, oid)
    -- What concerns a single column, such as its type, is not in an expression.
    JOIN pg_catalog.pg_depend AS e
      ON e.classid = o.class AND e.objid = o.oid AND e.objsubid = 0
    CROSS JOIN LATERAL (
        SELECT pr.proowner
        FROM pg_catalog.pg_proc AS pr
        WHERE e.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND pr.oid = e.refobjid
        UNION ALL
        SELECT pr.proowner
        FROM pg_catalog.pg_operator AS op
        JOIN pg_catalog.pg_proc AS pr ON pr.oid = op.oprcode
        WHERE e.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND op.oid = e.refobjid
        UNION ALL
        SELECT t.typowner
        FROM pg_catalog.pg_type AS t
        LEFT JOIN pg_catalog.pg_type AS element ON element.oid = t.typelem
        WHERE e.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.oid = e.refobjid
          AND (t.typtype IN ('c', 'd') OR element.typtype IN ('c', 'd'))
    ) AS f (owner)
    JOIN pg_catalog.pg_roles AS r ON r.oid = f.owner
    WHERE NOT r.rolsuper AND r.rolname <> CURRENT_USER)
"""


def code_of_others(members: str, *, with_checks: bool = False) -> str:
    """Return SQL for another role whose functions reading ``members``, or ``c``, could run.

    ``with_checks`` counts those that the tables' CHECK constraints call.
    """
    return CODE_OF_OTHERS.format(members=members, with_checks=with_checks)


# Whether the index i has a column among its keys, or an expression of it. It depends also on the
# columns of its predicate and INCLUDE, which are no keys; so the expressions themselves are asked.
HOLDS = """({attribute} = ANY (i.indkey[0:i.indnkeyatts - 1]) OR COALESCE(pg_catalog.strpos(
    i.indexprs::pg_catalog.text,
    pg_catalog.concat('{{VAR :varno 1 :varattno ', {attribute}, ' ')) > 0, false))"""

# Whether the largest value of a column can be read from the end of the index i.
LEADS = """(i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = {attribute}
    AND pg_catalog.pg_index_column_has_property(i.indexrelid, 1, 'orderable'))"""

# pg_subscription.oid is for superusers before PostgreSQL 14; its view of statistics is for all.
DETAILS = f"""
WITH
feed AS MATERIALIZED (
    SELECT f.sequence, f.relation, f.attribute, f.is_bare
    FROM ROWS FROM (
        pg_catalog.unnest(%(sequences)s::pg_catalog.oid[]),
        pg_catalog.unnest(%(relations)s::pg_catalog.oid[]),
        pg_catalog.unnest(%(attributes)s::pg_catalog.int2[]),
        pg_catalog.unnest(%(bare)s::pg_catalog.bool[])
    ) AS f (sequence, relation, attribute, is_bare)
),
subscribed AS MATERIALIZED (
    SELECT r.srrelid
    FROM pg_catalog.pg_subscription_rel AS r
    JOIN pg_catalog.pg_stat_subscription AS v ON v.subid = r.srsubid
    JOIN pg_catalog.pg_subscription AS u ON u.subname = v.subname
    JOIN pg_catalog.pg_database AS b
      ON b.oid = u.subdbid AND b.datname = pg_catalog.current_database()
    WHERE u.subenabled
),
-- Of the unique indexes that hold a column: is_unique, there is one; is_whole, one without a
-- predicate; is_alone, such a one without other columns than the partition key's; is_primary, the
-- primary key. is_indexed: one that a max() can use leads with it, in every leaf.
key AS (
    SELECT f.sequence AS fed_by, f.is_bare AS key_is_bare, c.oid AS key_relation,
           a.attnum AS key_attribute, n.nspname AS key_schema, c.relname AS key_table,
           a.attname AS key_column,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS key_quoted_table,
           pg_catalog.quote_ident(n.nspname) AS key_quoted_schema,
           pg_catalog.quote_ident(a.attname) AS key_quoted_column,
           -- A domain, or a domain of a domain, is written out as what it is made of.
           CASE t.typoutput
               WHEN 'pg_catalog.int2out'::pg_catalog.regproc THEN 'smallint'
               WHEN 'pg_catalog.int4out'::pg_catalog.regproc THEN 'integer'
               WHEN 'pg_catalog.int8out'::pg_catalog.regproc THEN 'bigint'
               WHEN 'pg_catalog.numeric_out'::pg_catalog.regproc THEN 'numeric'
               WHEN 'pg_catalog.oidout'::pg_catalog.regproc THEN 'oid'
               ELSE pg_catalog.format_type(t.oid, NULL) END AS key_type,
           c.relkind = 'p' AS key_is_partitioned, l.is_indexed AS key_is_indexed,
           NOT l.is_unique AND h.is_heir AS key_is_heir,
           NOT l.is_alone AND NOT (h.is_heir AND NOT l.is_unique) AS key_has_companions,
           l.is_unique AS key_is_unique, l.is_unique AND NOT l.is_whole AS key_is_partial,
           l.is_whole AND NOT l.is_alone AND NOT l.is_primary AS key_is_numbering,
           l.has_foreign AS key_has_foreign, l.is_subscribed AS key_is_subscribed,
           {code_of_others("l.members")} AS key_code_of,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') AS key_is_readable
    FROM feed AS f
    JOIN pg_catalog.pg_class AS c ON c.oid = f.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = f.attribute
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (
        -- The columns that a unique index of a partitioned table has to have besides.
        SELECT ARRAY (
            SELECT pa.attname
            FROM pg_catalog.pg_partition_ancestors(c.oid) AS r (oid)
            JOIN pg_catalog.pg_partitioned_table AS pt ON pt.partrelid = r.oid
            JOIN pg_catalog.pg_attribute AS pa
              ON pa.attrelid = r.oid AND pa.attnum = ANY (pt.partattrs)) AS names
    ) AS partition_key
    CROSS JOIN LATERAL (
        SELECT pg_catalog.bool_or(x.is_unique) AS is_unique,
               pg_catalog.bool_or(x.is_alone) AS is_alone,
               pg_catalog.bool_or(x.is_primary) AS is_primary,
               pg_catalog.bool_or(x.is_whole) AS is_whole,
               pg_catalog.bool_and(x.is_indexed) FILTER (WHERE m.kind <> 'p') AS is_indexed,
               pg_catalog.bool_or(m.kind = 'f') AS has_foreign,
               pg_catalog.array_agg(m.oid) AS members,
               pg_catalog.bool_or(m.oid IN (SELECT u.srrelid FROM subscribed AS u) OR EXISTS (
                   -- The publisher may send a partition's rows as those of its root.
                   SELECT FROM pg_catalog.pg_partition_ancestors(m.oid) AS r (oid)
                   WHERE r.oid IN (SELECT u.srrelid FROM subscribed AS u))) AS is_subscribed
        FROM (
            -- pg_partition_tree() would wait for the partitions' locks.
            WITH RECURSIVE tree (oid) AS (
                SELECT c.oid
                UNION ALL
                SELECT h.inhrelid
                FROM tree AS p
                JOIN pg_catalog.pg_inherits AS h ON h.inhparent = p.oid
                WHERE c.relkind = 'p'
            )
            SELECT p.oid, k.relkind
            FROM tree AS p
            JOIN pg_catalog.pg_class AS k ON k.oid = p.oid
        ) AS m (oid, kind)
        JOIN pg_catalog.pg_attribute AS ma ON ma.attrelid = m.oid AND ma.attname = a.attname
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or(i.is_key), false) AS is_unique,
                   COALESCE(pg_catalog.bool_or(i.is_key AND i.indisprimary), false) AS is_primary,
                   COALESCE(pg_catalog.bool_or(i.is_key AND i.indpred IS NULL), false) AS is_whole,
                   COALESCE(pg_catalog.bool_or(
                       i.is_key AND i.indpred IS NULL AND NOT EXISTS (
                           SELECT FROM pg_catalog.pg_attribute AS o
                           WHERE o.attrelid = m.oid AND o.attnum <> ma.attnum
                             AND {HOLDS.format(attribute="o.attnum")}
                             AND o.attname <> ALL (partition_key.names))), false) AS is_alone,
                   COALESCE(pg_catalog.bool_or({LEADS.format(attribute="ma.attnum")}), false)
                       AS is_indexed
            FROM (
                SELECT i.*,
                       (i.indisunique OR i.indisexclusion)
                       AND {HOLDS.format(attribute="ma.attnum")} AS is_key
                FROM pg_catalog.pg_index AS i
                WHERE i.indrelid = m.oid
            ) AS i
        ) AS x
    ) AS l
    CROSS JOIN LATERAL (
        SELECT c.relkind = 'r' AND EXISTS (
            SELECT FROM pg_catalog.pg_inherits AS h
            JOIN feed AS p ON p.relation = h.inhparent AND p.sequence = f.sequence
            WHERE h.inhrelid = c.oid) AS is_heir
    ) AS h
    -- A column that is not unique may become so in the course of the run.
    WHERE (l.is_unique OR h.is_heir OR c.relkind IN ('r', 'f'))
      AND NOT (c.relispartition AND EXISTS (
          SELECT FROM feed AS p
          WHERE p.sequence = f.sequence
            AND p.relation = pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid))
)
SELECT s.*, k.*,
       pg_catalog.current_setting('transaction_read_only') = 'on' AS read_only,
       pg_catalog.quote_ident(CURRENT_USER) AS role
FROM key AS k
CROSS JOIN LATERAL (
    SELECT c.oid, n.nspname AS schema, c.relname AS name,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted,
           q.seqincrement AS increment, q.seqmin AS minimum, q.seqmax AS maximum,
           q.seqcache AS cache, q.seqcycle AS cycles,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AS is_readable,
           pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') AS is_settable,
           pg_catalog.has_sequence_privilege(c.oid, 'USAGE') AS is_usable,
           EXISTS (
               SELECT FROM pg_catalog.pg_depend AS e
               WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                 AND e.objid = c.oid AND e.deptype = 'e') AS is_of_extension
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = c.oid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = k.fed_by
    OFFSET 0
) AS s
ORDER BY pg_catalog.array_position(%(sequences)s::pg_catalog.oid[], s.oid),
         k.key_quoted_table, k.key_quoted_column
"""
# The columns of a row that are a record's fields, in their order.
OF_KEY = attrgetter(*(f"key_{name}" for name in Key._fields))
OF_SEQUENCE = attrgetter(*Sequence._fields[:-2])


def nameless(oid: int) -> Sequence:
    """Return what is known of a sequence that can't be read in the catalogue."""
    return Sequence(
        oid, "?", f"oid {oid}", "", 1, 1, 1, 1, is_readable=False, is_settable=False, keys=()
    )


def sequences_of(cursor: Cursor, feeds: Iterable[list[Feed]]) -> list[Sequence]:
    """Read what the catalogue knows of sequences and the columns they feed, in the order given.

    Left out are those that are gone, and partitions' columns where the same one feeds their root's.
    """
    flat = [feed for group in feeds for feed in group]
    if not flat:
        return []
    parameters = {
        "sequences": [feed.sequence for feed in flat],
        "relations": [feed.relation for feed in flat],
        "attributes": [feed.attribute for feed in flat],
        "bare": [feed.is_bare for feed in flat],
    }
    return list(_sequences(cursor.rows(DETAILS, parameters)))


def _sequences(rows: Iterable[Any]) -> Iterator[Sequence]:
    for _, group in groupby(rows, key=attrgetter("oid")):
        members = list(group)
        first = members[0]
        # Keys that a computed default gives are not the sequence's own values. A copy of the table
        # without its key, LIKE … INCLUDING DEFAULTS, may hold any.
        bare = [row for row in members if row.key_is_bare] or members
        counted = [row for row in bare if row.key_is_unique or row.key_is_heir] or bare
        obstacles = [
            *_obstacles(first),
            *(obstacle for row in counted for obstacle in _key_obstacles(row)),
        ]
        keys = tuple(Key(*OF_KEY(row)) for row in counted)
        in_the_way = tuple(sorted(obstacles, key=attrgetter("hinders")))
        yield Sequence(*(*OF_SEQUENCE(first), keys, in_the_way))


def _obstacles(row: Any) -> Iterator[Obstacle]:
    if row.is_of_extension:
        yield Obstacle("the sequence belongs to an extension")
    if row.cycles:
        yield Obstacle("the sequence is declared CYCLE and may start over")
    if row.read_only:
        yield Obstacle(
            "the server, or this session, is read-only",
            "resync where it can be written to, such as the primary",
            is_final=True,
            hinders=Hinders.MOVING,
        )
    if not (row.is_readable or row.is_usable):
        yield Obstacle(
            f"role {row.role} may not read the sequence",
            f"GRANT SELECT, UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
            hinders=Hinders.CHECKING,
        )
    elif not (row.is_usable or row.is_settable):
        yield Obstacle(
            f"role {row.role} may not move the sequence",
            f"GRANT UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
            hinders=Hinders.MOVING,
        )


def _key_obstacles(row: Any) -> Iterator[Obstacle]:
    column = f"{row.key_quoted_table}.{row.key_quoted_column}"
    if not row.key_is_bare:
        yield Obstacle(f"the default of {column} is computed")
    if row.key_type not in (*INTEGERS, "numeric"):
        yield Obstacle(f"{column} is not a whole number but {row.key_type}")
    if row.key_is_partial or row.key_is_numbering:
        scope = "among some of the rows" if row.key_is_partial else "together with other columns"
        yield Obstacle(
            f"{column} is unique only {scope}, so its numbers may repeat on purpose",
            "if they do not, use resyncsequences --force",
            can_force=True,
        )
    if row.key_has_foreign:
        yield Obstacle(f"{row.key_quoted_table} is a foreign table, or has one as a partition")
    if not row.key_is_readable:
        yield Obstacle(
            f"role {row.role} may not read {column}",
            f"GRANT USAGE ON SCHEMA {row.key_quoted_schema} TO {row.role}; "
            f"GRANT SELECT ON {row.key_quoted_table} TO {row.role};",
            hinders=Hinders.CHECKING,
        )
    if row.key_code_of:
        yield Obstacle(
            f"an index, statistics object or partition key of {row.key_quoted_table} calls a "
            f"function of role {row.key_code_of}, which reading the table could run with the "
            f"rights of {row.role}",
            f"run as {row.key_code_of}, or, if that role is trusted, with --force",
            can_force=True,
            hinders=Hinders.CHECKING,
        )
    if row.key_is_subscribed:
        yield Obstacle(
            f"{row.key_quoted_table} is fed by an enabled subscription, whose publisher will send "
            "the keys to come",
            "drop or disable the subscription, or use resyncsequences --force",
            can_force=True,
            hinders=Hinders.MOVING,
        )
