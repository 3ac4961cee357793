"""What PostgreSQL's catalogue knows of sequences: which columns they feed, what stands in the way.

Nothing here reads a user's table or evaluates an expression of anybody's. The statements expect the
settings of :func:`safemigrate.sequences.state.settle`; identifiers are quoted by the server
(``format('%I')``) before they are put into a statement.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.utils import CursorWrapper

INTEGERS = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}


class Hinders(IntEnum):
    """What an obstacle keeps from being done; the earlier ones keep from the later ones too."""

    JUDGING = 1  # what the sequence gives can't be compared with what the column holds
    LOOKING = 2
    MOVING = 3


@dataclass(frozen=True)
class Obstacle:
    """Why a sequence is left alone, and what an operator can do about it.

    ``is_final`` tells that no setval() would help.
    """

    reason: str
    advice: str = ""
    can_force: bool = False
    is_final: bool = False
    hinders: Hinders = Hinders.JUDGING

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


@dataclass(frozen=True)
class Key:
    """A column of a primary key or unique index whose default is a sequence's next value.

    An heir has no such index itself, but inherits from a table that has.
    """

    relation: int
    schema: str
    table: str
    column: str
    type: str
    quoted_table: str
    quoted_column: str
    is_partitioned: bool = False
    is_indexed: bool = True
    is_heir: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}"


@dataclass(frozen=True)
class Sequence:
    """A sequence, its bounds, all the keys that it feeds, and the worst obstacles first."""

    oid: int
    schema: str
    name: str
    quoted: str
    literal: str
    increment: int
    minimum: int
    maximum: int
    cache: int
    is_readable: bool
    is_settable: bool
    keys: tuple[Key, ...]
    obstacles: tuple[Obstacle, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def obstacle(self) -> Obstacle | None:
        return self.obstacles[0] if self.obstacles else None

    @property
    def lowest(self) -> int:
        """The least value that the sequence can give to every column it feeds."""
        return max(self.minimum, *(-INTEGERS.get(key.type, 2**63) - 1 for key in self.keys))

    @property
    def highest(self) -> int:
        """The greatest value that the sequence can give to every column it feeds."""
        return min(self.maximum, *(INTEGERS.get(key.type, 2**63 - 1) for key in self.keys))

    def forced(self) -> Sequence:
        """Return the sequence without those obstacles that a human may overrule."""
        return replace(self, obstacles=tuple(each for each in self.obstacles if not each.can_force))


@dataclass(frozen=True)
class Table:
    """What a statement's author can't see in the statement: the table behind the name.

    ``lineage`` holds the table's oid and, where it is a partition, those of the tables above it;
    ``indexes`` maps its unique indexes to their columns.
    """

    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]
    has_triggers: bool
    is_view: bool
    lineage: frozenset[int] = frozenset()
    indexes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sequences: tuple[Sequence, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @cached_property
    def fed(self) -> dict[str, Sequence]:
        """Map the columns that an INSERT into this table leaves to a sequence to that sequence."""
        pairs = [
            (key, sequence)
            for sequence in self.sequences
            for key in sequence.keys
            if key.relation in self.lineage
        ]
        # A partition's own default is the one that counts when it is written to directly.
        pairs.sort(key=lambda pair: pair[0].relation == self.oid)
        return {key.column: sequence for key, sequence in pairs}

    def feeders(self, columns: Iterable[str]) -> list[Sequence]:
        """Return every sequence that may have given a row of this table one of ``columns``."""
        wanted = set(columns)
        return [
            sequence
            for sequence in self.sequences
            if any(key.relation in self.lineage and key.column in wanted for key in sequence.keys)
        ]


# A default is a sequence's bare next value when its text is a call of nextval(), with at most a
# cast around it, and no function or operator of anybody else's stands behind it in pg_depend.
# Which columns own a sequence (pg_get_serial_sequence) says nothing about what feeds them.
# pg_get_expr() with a table would wait for that table's lock; defaults have no use for one.
FEEDS = """
feed (sequence, relation, attribute, is_bare) AS MATERIALIZED (
    SELECT w.oid, ad.adrelid, ad.adnum,
           pg_catalog.pg_get_expr(ad.adbin, 0::pg_catalog.oid)
               ~ '^[(]?nextval[(]''([^'']|'''')*''::regclass[)][)]?(::[a-z ]+([(][0-9,]+[)])?)?$'
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_depend AS o
               WHERE o.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                 AND o.objid = ad.oid
                 AND o.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
                                      'pg_catalog.pg_operator'::pg_catalog.regclass))
    FROM wanted AS w
    JOIN pg_catalog.pg_depend AS d
      ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.refobjid = w.oid
     AND d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
    JOIN pg_catalog.pg_attrdef AS ad ON ad.oid = d.objid
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = ''
    UNION ALL
    SELECT w.oid, d.refobjid, d.refobjsubid, true
    FROM wanted AS w
    JOIN pg_catalog.pg_depend AS d
      ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.objid = w.oid
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.refobjsubid > 0
     AND d.deptype = 'i'
),
key AS (
    SELECT f.sequence, c.oid AS relation, n.nspname, c.relname, a.attname, f.is_bare,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted_table,
           pg_catalog.quote_ident(n.nspname) AS quoted_schema,
           pg_catalog.quote_ident(a.attname) AS quoted_column,
           -- A domain, or a domain of a domain, is written out as what it is made of.
           CASE t.typoutput
               WHEN 'pg_catalog.int2out'::pg_catalog.regproc THEN 'smallint'
               WHEN 'pg_catalog.int4out'::pg_catalog.regproc THEN 'integer'
               WHEN 'pg_catalog.int8out'::pg_catalog.regproc THEN 'bigint'
               WHEN 'pg_catalog.numeric_out'::pg_catalog.regproc THEN 'numeric'
               ELSE pg_catalog.format_type(t.oid, NULL) END AS type,
           c.relkind = 'p' AS is_partitioned, l.is_indexed, NOT l.is_unique AS is_heir,
           l.has_foreign, l.is_subscribed, {code} AS code_of,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') AS is_readable
    FROM feed AS f
    JOIN pg_catalog.pg_class AS c ON c.oid = f.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = f.attribute
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (
        SELECT pg_catalog.bool_or(x.is_unique) AS is_unique,
               pg_catalog.bool_and(x.is_indexed) FILTER (WHERE m.is_leaf) AS is_indexed,
               pg_catalog.bool_or(b.relkind = 'f') AS has_foreign,
               pg_catalog.array_agg(m.oid) AS members,
               pg_catalog.bool_or(EXISTS (
                   SELECT FROM pg_catalog.pg_subscription_rel AS r
                   JOIN pg_catalog.pg_subscription AS u ON u.oid = r.srsubid
                   WHERE r.srrelid = m.oid AND u.subenabled)) AS is_subscribed
        FROM (
            SELECT c.oid, true WHERE c.relkind <> 'p'
            UNION ALL
            SELECT p.relid::pg_catalog.oid, p.isleaf
            FROM pg_catalog.pg_partition_tree(c.oid) AS p
            WHERE c.relkind = 'p'
        ) AS m (oid, is_leaf)
        JOIN pg_catalog.pg_class AS b ON b.oid = m.oid
        JOIN pg_catalog.pg_attribute AS ma ON ma.attrelid = m.oid AND ma.attname = a.attname
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or(i.indisunique AND
                       ma.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])), false) AS is_unique,
                   COALESCE(pg_catalog.bool_or(
                       i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = ma.attnum
                       AND am.amname = 'btree'), false) AS is_indexed
            FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
            WHERE i.indrelid = m.oid
        ) AS x
    ) AS l
    WHERE (l.is_unique OR c.relkind = 'f' OR (c.relkind = 'r' AND EXISTS (
          SELECT FROM pg_catalog.pg_inherits AS h
          JOIN feed AS p ON p.relation = h.inhparent AND p.sequence = f.sequence
          WHERE h.inhrelid = c.oid)))
      AND NOT (c.relispartition AND EXISTS (
          SELECT FROM feed AS p
          WHERE p.sequence = f.sequence
            AND p.relation = pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid))
)
"""

FEED_COLUMNS = """
    s.oid, s.nspname, s.relname, s.quoted, s.literal, s.seqincrement, s.seqmin, s.seqmax,
    s.seqcache, s.seqcycle, s.is_readable, s.is_settable, s.is_usable, s.is_of_extension,
    k.relation, k.nspname, k.relname, k.attname, k.is_bare, k.quoted_table, k.quoted_column,
    k.type, k.quoted_schema, k.is_partitioned, k.is_indexed, k.is_heir, k.has_foreign,
    k.is_subscribed, k.code_of, k.is_readable,
    pg_catalog.current_setting('transaction_read_only') = 'on',
    pg_catalog.quote_ident(CURRENT_USER)
"""

SEQUENCE = """
    SELECT c.oid, n.nspname, c.relname,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted,
           pg_catalog.format('%%L', pg_catalog.format('%%I.%%I', n.nspname, c.relname)) AS literal,
           q.seqincrement, q.seqmin, q.seqmax, q.seqcache, q.seqcycle,
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
    WHERE c.oid = k.sequence
    OFFSET 0
"""

DEFAULT_SEQUENCES = """
    SELECT d.refobjid
    FROM pg_catalog.pg_attrdef AS ad
    JOIN pg_catalog.pg_depend AS d
      ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
     AND d.objid = ad.oid
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    JOIN pg_catalog.pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
    WHERE ad.adrelid = {table}
    UNION ALL
    SELECT d.objid
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
    WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refobjid = {table}
      AND d.refobjsubid > 0
      AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.deptype = 'i'
"""

# A partition reports its own name while its parent's default feeds it, and a view's INSERT draws
# for the table beneath: hence the lineage.
TABLE = f"""
WITH RECURSIVE
target AS (
    SELECT c.oid, c.relkind, n.nspname, c.relname, c.relhasrules
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = %(oid)s OR (n.nspname = %(schema)s AND c.relname = %(table)s)
),
lineage (oid) AS (
    SELECT oid FROM target
    UNION
    SELECT x.oid
    FROM lineage AS l
    JOIN pg_catalog.pg_class AS c ON c.oid = l.oid
    CROSS JOIN LATERAL (
        SELECT i.inhparent
        FROM pg_catalog.pg_inherits AS i
        WHERE c.relispartition AND i.inhrelid = l.oid
        UNION ALL
        SELECT d.refobjid
        FROM pg_catalog.pg_rewrite AS r
        JOIN pg_catalog.pg_depend AS d
          ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
         AND d.objid = r.oid
         AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        WHERE c.relkind = 'v' AND r.ev_class = l.oid
    ) AS x (oid)
),
wanted AS MATERIALIZED (
    SELECT DISTINCT d.oid
    FROM lineage AS l
    CROSS JOIN LATERAL ({DEFAULT_SEQUENCES.format(table="l.oid")}) AS d (oid)
),
{FEEDS.format(code="NULL::pg_catalog.text")}
SELECT t.oid, t.nspname, t.relname,
       ARRAY (
           SELECT a.attname::pg_catalog.text
           FROM pg_catalog.pg_attribute AS a
           WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           ORDER BY a.attnum),
       t.relhasrules OR EXISTS (
           SELECT FROM pg_catalog.pg_trigger AS g
           WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D'),
       t.relkind = 'v',
       ARRAY (SELECT l.oid::pg_catalog.int8 FROM lineage AS l),
       ARRAY (
           SELECT ARRAY[c.relname, a.attname]::pg_catalog.text[]
           FROM pg_catalog.pg_index AS i
           JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
           JOIN pg_catalog.pg_attribute AS a
             ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
           WHERE i.indrelid = t.oid AND i.indisunique),
       {FEED_COLUMNS}
FROM target AS t
LEFT JOIN (key AS k CROSS JOIN LATERAL ({SEQUENCE}) AS s) ON true
ORDER BY s.oid, k.quoted_table, k.quoted_column
"""

# The planner evaluates, with the rights of whoever reads a table, what can be evaluated beforehand
# of the expressions in its indexes, its extended statistics and its partition key. So the functions
# in them must be the reader's own or a superuser's.
CODE_OF_OTHERS = """(
    SELECT pg_catalog.quote_ident(pg_catalog.min(r.rolname))
    FROM (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, m
        FROM pg_catalog.unnest(l.members) AS m
        WHERE c.relkind = 'p'
        UNION ALL
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, i.indexrelid
        FROM pg_catalog.pg_index AS i
        WHERE i.indrelid = ANY (l.members)
          AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
        UNION ALL
        SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, x.oid
        FROM pg_catalog.pg_statistic_ext AS x
        WHERE x.stxrelid = ANY (l.members)
    ) AS o (class, oid)
    CROSS JOIN LATERAL (
        SELECT e.refobjid
        FROM pg_catalog.pg_depend AS e
        WHERE e.classid = o.class AND e.objid = o.oid
          AND e.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
        UNION ALL
        SELECT op.oprcode
        FROM pg_catalog.pg_depend AS e
        JOIN pg_catalog.pg_operator AS op ON op.oid = e.refobjid
        WHERE e.classid = o.class AND e.objid = o.oid
          AND e.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass
    ) AS f (oid)
    JOIN pg_catalog.pg_proc AS pr ON pr.oid = f.oid
    JOIN pg_catalog.pg_roles AS r ON r.oid = pr.proowner
    WHERE NOT r.rolsuper AND r.rolname <> CURRENT_USER)
"""

DETAILS = f"""
WITH
wanted AS MATERIALIZED (SELECT pg_catalog.unnest(%(oids)s::pg_catalog.oid[]) AS oid),
{FEEDS.format(code=CODE_OF_OTHERS)}
SELECT {FEED_COLUMNS}
FROM key AS k
CROSS JOIN LATERAL ({SEQUENCE}) AS s
ORDER BY pg_catalog.array_position(%(oids)s::pg_catalog.oid[], s.oid),
         k.quoted_table, k.quoted_column
"""

LISTING = f"""
SELECT d.oid
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
CROSS JOIN LATERAL ({DEFAULT_SEQUENCES.format(table="c.oid")}) AS d (oid)
JOIN pg_catalog.pg_class AS s ON s.oid = d.oid
JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
WHERE (n.nspname = ANY (%(schemas)s::pg_catalog.text[])
       OR c.oid = ANY (%(tables)s::pg_catalog.oid[]))
  AND NOT pg_catalog.pg_is_other_temp_schema(n.oid)
GROUP BY d.oid, sn.nspname, s.relname
ORDER BY sn.nspname, s.relname
"""


class _Row(NamedTuple):
    """FEED_COLUMNS, one sequence and one of its keys."""

    oid: int
    schema: str
    name: str
    quoted: str
    literal: str
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycles: bool
    is_readable: bool
    is_settable: bool
    is_usable: bool
    is_of_extension: bool
    key_relation: int
    key_schema: str
    key_table: str
    key_column: str
    key_is_bare: bool
    key_quoted_table: str
    key_quoted_column: str
    key_type: str
    key_quoted_schema: str
    key_is_partitioned: bool
    key_is_indexed: bool
    key_is_heir: bool
    key_has_foreign: bool
    key_is_subscribed: bool
    key_code_of: str | None
    key_is_readable: bool
    read_only: bool
    role: str


def table_of(
    cursor: CursorWrapper,
    *,
    oid: int | None = None,
    schema: str | None = None,
    table: str | None = None,
) -> Table | None:
    """Read what the catalogue knows of a table, by oid or by schema and name.

    Returns None where there is no such table.
    """
    cursor.execute(TABLE, {"oid": oid, "schema": schema, "table": table})
    rows = cursor.fetchall()
    if not rows:
        return None
    found, its_schema, its_name, columns, has_triggers, is_view, lineage, pairs = rows[0][:8]
    indexes: dict[str, tuple[str, ...]] = {}
    for index, column in pairs:
        indexes[index] = (*indexes.get(index, ()), column)
    return Table(
        oid=found,
        schema=its_schema,
        name=its_name,
        columns=tuple(columns),
        has_triggers=has_triggers,
        is_view=is_view,
        lineage=frozenset(lineage),
        indexes=indexes,
        sequences=tuple(_sequences(row[8:] for row in rows if row[8] is not None)),
    )


def sequences_feeding(
    cursor: CursorWrapper, *, schemas: Iterable[str] = (), tables: Iterable[int] = ()
) -> list[int]:
    """List the oids of the sequences in the defaults of tables, given by schema or by oid."""
    cursor.execute(LISTING, {"schemas": list(schemas), "tables": list(tables)})
    return [oid for (oid,) in cursor.fetchall()]


def sequences_of(cursor: CursorWrapper, oids: Iterable[int]) -> list[Sequence]:
    """Read what the catalogue knows of sequences, in the order given.

    Those that feed no unique column are left out, and those that are gone.
    """
    cursor.execute(DETAILS, {"oids": list(oids)})
    return list(_sequences(cursor.fetchall()))


def _sequences(rows: Iterable[Rows[Any]]) -> Iterator[Sequence]:
    for _, group in groupby((_Row(*row) for row in rows), key=attrgetter("oid")):
        members = list(group)
        first = members[0]
        # Keys that a computed default gives are not the sequence's own values.
        counted = [row for row in members if row.key_is_bare] or members
        obstacles = [
            *_obstacles(first),
            *(obstacle for row in counted for obstacle in _key_obstacles(row)),
        ]
        yield Sequence(
            oid=first.oid,
            schema=first.schema,
            name=first.name,
            quoted=first.quoted,
            literal=first.literal,
            increment=first.increment,
            minimum=first.minimum,
            maximum=first.maximum,
            cache=first.cache,
            is_readable=first.is_readable,
            is_settable=first.is_settable,
            keys=tuple(_key(row) for row in counted),
            obstacles=tuple(sorted(obstacles, key=attrgetter("hinders"))),
        )


def _key(row: _Row) -> Key:
    return Key(
        relation=row.key_relation,
        schema=row.key_schema,
        table=row.key_table,
        column=row.key_column,
        type=row.key_type,
        quoted_table=row.key_quoted_table,
        quoted_column=row.key_quoted_column,
        is_partitioned=row.key_is_partitioned,
        is_indexed=row.key_is_indexed,
        is_heir=row.key_is_heir,
    )


def _obstacles(row: _Row) -> Iterator[Obstacle]:
    if row.is_of_extension:
        yield Obstacle("the sequence belongs to an extension")
    if row.cycles:
        yield Obstacle("the sequence is declared CYCLE and may start over")
    if not (row.is_readable or row.is_usable):
        yield Obstacle(
            f"role {row.role} may not read the sequence",
            f"GRANT SELECT, UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
            hinders=Hinders.LOOKING,
        )
    if row.read_only:
        yield Obstacle("the server, or this session, is read-only", hinders=Hinders.MOVING)
    if not (row.is_usable or row.is_settable):
        yield Obstacle(
            f"role {row.role} may not move the sequence",
            f"GRANT UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
            hinders=Hinders.MOVING,
        )


def _key_obstacles(row: _Row) -> Iterator[Obstacle]:
    column = f"{row.key_quoted_table}.{row.key_quoted_column}"
    if not row.key_is_bare:
        yield Obstacle(f"the default of {column} is computed")
    if row.key_type not in (*INTEGERS, "numeric"):
        yield Obstacle(f"{column} is not a whole number but {row.key_type}")
    if row.key_has_foreign:
        yield Obstacle(f"{row.key_quoted_table} is a foreign table, or has one as a partition")
    if not row.key_is_readable:
        yield Obstacle(
            f"role {row.role} may not read {column}",
            f"GRANT USAGE ON SCHEMA {row.key_quoted_schema} TO {row.role}; "
            f"GRANT SELECT ON {row.key_quoted_table} TO {row.role};",
            hinders=Hinders.LOOKING,
        )
    if row.key_code_of:
        yield Obstacle(
            f"an index, statistics object or partition key of {row.key_quoted_table} calls a "
            f"function of role {row.key_code_of}, which reading the table could run with the "
            f"rights of {row.role}",
            f"run as {row.key_code_of}, or, if that role is trusted, with --force",
            can_force=True,
            hinders=Hinders.LOOKING,
        )
    if row.key_is_subscribed:
        yield Obstacle(
            f"{row.key_quoted_table} is fed by an enabled subscription, whose publisher will send "
            "the keys to come",
            "drop or disable the subscription, or use resyncsequences --force",
            can_force=True,
            hinders=Hinders.MOVING,
        )
