"""What PostgreSQL's catalogue knows of sequences: which columns they feed, what stands in the way.

Nothing here reads a user's table or evaluates anybody's expression. The statements expect the
settings of :func:`safemigrate.sequences.state.checking`; identifiers are quoted by the server
(``format('%I')``) before they are put into a statement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from safemigrate.driver import Cursor

INTEGERS = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1, "oid": 2**32 - 1}


class Hinders(IntEnum):
    """What an obstacle prevents; each of these prevents the later ones, too."""

    JUDGING = 1  # the sequence's values can't be compared with the column's
    CHECKING = 2
    MOVING = 3


@dataclass(frozen=True)
class Obstacle:
    """Why a sequence is left alone, and what an operator can do about it.

    ``is_final`` means that no setval() would help.
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
    """A unique column whose default is a sequence's next value.

    An heir has no unique index itself, but inherits from a table that has one. ``has_companions``
    tells that it is unique only together with other columns, so its values may repeat on purpose.
    """

    relation: int
    attribute: int
    schema: str
    table: str
    column: str
    type: str
    quoted_table: str
    quoted_column: str
    is_partitioned: bool
    is_indexed: bool
    is_heir: bool
    has_companions: bool
    is_unique: bool

    @property
    def cast(self) -> str:
        """A cast to a type that can in turn be cast to numeric."""
        return "::pg_catalog.int8" if self.type == "oid" else ""

    @property
    def place(self) -> Place:
        return Place(self.relation, self.attribute)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}"


class Place(NamedTuple):
    """Where in the catalogue a column is."""

    relation: int
    attribute: int


class Feed(NamedTuple):
    """A column that a sequence feeds; ``is_bare`` means that it gets the next value as it is."""

    sequence: int
    relation: int
    attribute: int
    is_bare: bool


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
    def sign(self) -> int:
        """1 where it counts upward, -1 where downward."""
        return 1 if self.increment > 0 else -1

    @property
    def aggregate(self) -> str:
        """The SQL function that finds the key farthest in its direction."""
        return "max" if self.increment > 0 else "min"

    @property
    def last(self) -> int:
        """The last value in its direction that it can give to every column it feeds."""
        return self.highest if self.increment > 0 else self.lowest

    @property
    def lowest(self) -> int:
        """The least value that the sequence can give to every column it feeds."""
        return max(self.minimum, *(-INTEGERS.get(key.type, 2**63) - 1 for key in self.keys))

    @property
    def highest(self) -> int:
        """The greatest value that the sequence can give to every column it feeds."""
        return min(self.maximum, *(INTEGERS.get(key.type, 2**63 - 1) for key in self.keys))

    def forced(self) -> Sequence:
        """Return the sequence without the obstacles that a person may overrule."""
        return replace(self, obstacles=tuple(each for each in self.obstacles if not each.can_force))


# A default is a sequence's bare next value when its text is a call of nextval() with at most casts
# around it, and pg_depend lists no user-defined function or operator for it. Which columns own a
# sequence (pg_get_serial_sequence) says nothing about what feeds them. Given a table, pg_get_expr()
# would wait for that table's lock; defaults do not need one.
CASTS = r'[)]*(::[a-z0-9_. "]+([(][0-9,]+[)])?[)]?)*$'
BARE = rf"^[(]*nextval[(]''([^'']|'''')*''::regclass[)]{CASTS}"
BY_NAME = rf"^[(]*nextval[(][(]*''((?:[^'']|'''')*)''::text[)]*(?:::regclass)?[)]*{CASTS}"
# Anybody may write a default, and one invalid name in it would be an error for the whole query.
IDENTIFIER = '("([^"]|"")+"|[[:alpha:]_][[:alnum:]_$]*)'
NAME = f"^{IDENTIFIER}([.]{IDENTIFIER})?$"
# The setting that keeps the session's search path, read before ours is pinned.
PATH = "safemigrate.path"
IS_BARE = f"""
           pg_catalog.pg_get_expr({{expression}}, 0::pg_catalog.oid) ~ '{BARE}'
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_depend AS o
               WHERE o.classid = {{owner}}::pg_catalog.regclass
                 AND o.objid = {{oid}}
                 AND o.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass,
                                      'pg_catalog.pg_operator'::pg_catalog.regclass))"""
# What the expression of a generated column says can't be shown without its table, and the planner
# may ask for it before it has left those columns out.
OF_DEFAULT = IS_BARE.format(
    expression="CASE WHEN a.attgenerated = '' THEN ad.adbin END",
    owner="'pg_catalog.pg_attrdef'",
    oid="ad.oid",
)
OF_DOMAIN = IS_BARE.format(expression="t.typdefaultbin", owner="'pg_catalog.pg_type'", oid="t.oid")

# Every feed whose column is in a relation that {relation} restricts. The planner may order the
# joins, except at OFFSET 0: without statistics, as after a restore, it would otherwise walk all of
# pg_depend once for each default.
FEEDS = f"""
    SELECT d.refobjid AS sequence, ad.adrelid AS relation, ad.adnum::pg_catalog.int4 AS attribute,
           {OF_DEFAULT} AS is_bare
    FROM pg_catalog.pg_attrdef AS ad
    JOIN pg_catalog.pg_depend AS d
      ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
     AND d.objid = ad.oid
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.deptype = 'n'
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = ''
    WHERE ad.adrelid {{relation}}
    UNION ALL
    SELECT d.objid, d.refobjid, d.refobjsubid, true
    FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refobjsubid > 0
      AND d.deptype = 'i'
      AND d.refobjid {{relation}}
    UNION ALL
    -- A name that is looked up at each call leaves no dependency: nextval(('s'::text)::regclass).
    SELECT (
               SELECT c.oid
               FROM pg_catalog.pg_class AS c
               JOIN pg_catalog.pg_namespace AS ns ON ns.oid = c.relnamespace
               WHERE c.relname = n.parts[pg_catalog.cardinality(n.parts)]
                 AND ns.nspname = ANY (
                     CASE pg_catalog.cardinality(n.parts) WHEN 1 THEN n.path ELSE n.parts[1:1] END)
               ORDER BY pg_catalog.array_position(n.path, ns.nspname)
               LIMIT 1),
           n.adrelid, n.adnum::pg_catalog.int4, true
    FROM (
        SELECT l.adrelid, l.adnum,
               pg_catalog.current_setting('{PATH}')::pg_catalog.name[] AS path,
               CASE WHEN l.name ~ '{NAME}'
                    THEN pg_catalog.parse_ident(l.name)::pg_catalog.name[] END AS parts
        FROM (
            SELECT ad.adrelid, ad.adnum,
                   pg_catalog.replace((pg_catalog.regexp_match(
                       pg_catalog.pg_get_expr(ad.adbin, 0::pg_catalog.oid), '{BY_NAME}'))[1],
                       '''''', '''') AS name
            FROM pg_catalog.pg_attrdef AS ad
            JOIN pg_catalog.pg_attribute AS a
              ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = ''
            WHERE ad.adrelid {{relation}}
              AND ad.adrelid >= 16384
            OFFSET 0
        ) AS l
    ) AS n
    WHERE n.parts IS NOT NULL
    UNION ALL
    SELECT d.refobjid, a.attrelid, a.attnum::pg_catalog.int4,
           {OF_DOMAIN}
    FROM (
        SELECT d.objid, d.refobjid
        FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
          AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.deptype = 'n'
        OFFSET 0
    ) AS d
    JOIN pg_catalog.pg_type AS t ON t.oid = d.objid AND t.typtype = 'd'
    JOIN pg_catalog.pg_attribute AS a
      ON a.atttypid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
     AND NOT a.atthasdef AND a.attidentity = ''
    WHERE a.attrelid {{relation}}
"""

# The other columns that these sequences feed, according to the dependencies alone.
FEEDS_OF_SEQUENCES = f"""
    SELECT d.refobjid, ad.adrelid, ad.adnum::pg_catalog.int4, {OF_DEFAULT}
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_attrdef AS ad ON ad.oid = d.objid
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = ''
    WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refobjid IN (SELECT o.sequence FROM own AS o)
      AND d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
      AND d.deptype = 'n'
"""

# All feeds of the sequences that feed a table of some schemas, or one of some tables. OFFSET 0 and
# a window keep it linear: without statistics the planner would join by loops within loops.
LISTING = f"""
SELECT l.sequence, l.relation, l.attribute, l.is_bare
FROM (
    SELECT f.*, s.schema AS sequence_schema, s.name AS sequence_name,
           pg_catalog.bool_or(
               (c.schema = ANY (%(schemas)s::pg_catalog.text[])
                OR f.relation = ANY (%(tables)s::pg_catalog.oid[]))
               AND NOT pg_catalog.pg_is_other_temp_schema(c.relnamespace)
           ) OVER (PARTITION BY f.sequence) AS is_wanted
    FROM (SELECT DISTINCT f.* FROM ({FEEDS.format(relation="IS NOT NULL")}) AS f OFFSET 0) AS f
    CROSS JOIN LATERAL (
        SELECT c.relnamespace, n.nspname AS schema
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.oid = f.relation
        OFFSET 0
    ) AS c
    CROSS JOIN LATERAL (
        SELECT s.relname AS name, s.relkind, n.nspname AS schema
        FROM pg_catalog.pg_class AS s
        JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
        WHERE s.oid = f.sequence
        OFFSET 0
    ) AS s
    WHERE s.relkind = 'S'
) AS l
WHERE l.is_wanted
ORDER BY l.sequence_schema, l.sequence_name, l.relation, l.attribute
"""

# A partition reports its own name while its parent's default feeds it, and a view's INSERT draws
# for the table beneath: hence the lineage.
FEEDS_OF_TABLE = f"""
WITH RECURSIVE lineage (oid) AS (
    SELECT %(oid)s::pg_catalog.oid
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
own AS MATERIALIZED (
    SELECT f.*
    FROM ({FEEDS.format(relation="= ANY (ARRAY (SELECT l.oid FROM lineage AS l))")}) AS f
    JOIN pg_catalog.pg_class AS s ON s.oid = f.sequence AND s.relkind = 'S'
)
SELECT f.sequence, f.relation, f.attribute, f.is_bare,
       f.relation = ANY (ARRAY (SELECT l.oid FROM lineage AS l)) AS is_own,
       EXISTS (
           SELECT FROM pg_catalog.pg_index AS i
           JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid AND c.relkind = 'r'
           WHERE i.indrelid = f.relation AND i.indkey[0] = f.attribute AND i.indnkeyatts = 1
             AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL)
       AND NOT EXISTS (
           SELECT FROM lineage AS l
           JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = l.oid AND r.ev_type = '3')
       AND NOT EXISTS (
           -- Before an INSERT's row, or instead of it.
           SELECT FROM lineage AS l
           JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = l.oid
           WHERE NOT g.tgisinternal AND (g.tgtype & 7 = 7 OR g.tgtype & 68 = 68)) AS is_sole
FROM (SELECT * FROM own UNION {FEEDS_OF_SEQUENCES}) AS f
ORDER BY f.sequence, f.relation, f.attribute
"""

# The columns of an index, those in its expressions too, and the trigger that may fill them.
CONSTRAINT = """
SELECT t.oid,
       ARRAY (
           SELECT a.attname::pg_catalog.text
           FROM pg_catalog.pg_attribute AS a
           WHERE a.attrelid = i.indrelid
             AND (a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) OR EXISTS (
                 SELECT FROM pg_catalog.pg_depend AS d
                 WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                   AND d.objid = i.indexrelid AND d.refobjid = i.indrelid
                   AND d.refobjsubid = a.attnum))
           ORDER BY a.attnum) AS columns,
       EXISTS (
           SELECT FROM pg_catalog.pg_trigger AS g
           WHERE g.tgrelid = t.oid AND NOT g.tgisinternal AND g.tgtype & 7 = 7) AS is_filled,
       EXISTS (
           SELECT FROM pg_catalog.pg_attrdef AS ad
           WHERE ad.adrelid = t.oid
             AND ad.adnum = ANY (i.indkey[0:i.indnkeyatts - 1])) AS is_computed
FROM pg_catalog.pg_class AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
LEFT JOIN (pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid)
  ON i.indrelid = t.oid AND ic.relname = %(constraint)s
WHERE t.oid = %(oid)s OR (n.nspname = %(schema)s AND t.relname = %(table)s)
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
# Whether a key column is left NULL because nothing fills it any more.
IS_LOST = """
SELECT NOT a.atthasdef AND a.attidentity = ''
       AND pg_catalog.format_type(a.atttypid, NULL) IN ('smallint', 'integer', 'bigint')
       AND EXISTS (
           SELECT FROM pg_catalog.pg_index AS i
           WHERE i.indrelid = c.oid AND i.indisprimary AND i.indnkeyatts = 1
             AND i.indkey[0] = a.attnum) AS is_lost
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
WHERE n.nspname = %s AND c.relname = %s AND a.attname = %s
"""

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
    ) WITH ORDINALITY AS f (sequence, relation, attribute, is_bare, place)
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
key AS (
    SELECT f.sequence, c.oid AS relation, a.attnum, n.nspname, c.relname, a.attname, f.is_bare,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted_table,
           pg_catalog.quote_ident(n.nspname) AS quoted_schema,
           pg_catalog.quote_ident(a.attname) AS quoted_column,
           -- A domain, or a domain of a domain, is written out as what it is made of.
           CASE t.typoutput
               WHEN 'pg_catalog.int2out'::pg_catalog.regproc THEN 'smallint'
               WHEN 'pg_catalog.int4out'::pg_catalog.regproc THEN 'integer'
               WHEN 'pg_catalog.int8out'::pg_catalog.regproc THEN 'bigint'
               WHEN 'pg_catalog.numeric_out'::pg_catalog.regproc THEN 'numeric'
               WHEN 'pg_catalog.oidout'::pg_catalog.regproc THEN 'oid'
               ELSE pg_catalog.format_type(t.oid, NULL) END AS type,
           c.relkind = 'p' AS is_partitioned, l.is_indexed,
           NOT l.is_unique AND h.is_heir AS is_heir,
           NOT l.is_alone AND NOT (h.is_heir AND NOT l.is_unique) AS has_companions,
           l.is_unique, l.is_unique AND NOT l.is_whole AS is_partial,
           l.is_whole AND NOT l.is_alone AND NOT l.is_primary AS is_numbering,
           l.has_foreign, l.is_subscribed, {CODE_OF_OTHERS} AS code_of,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') AS is_readable
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
              ON pa.attrelid = r.oid AND pa.attnum = ANY (pt.partattrs)
            WHERE c.relkind = 'p' OR c.relispartition) AS names
    ) AS partition_key
    CROSS JOIN LATERAL (
        SELECT pg_catalog.bool_or(x.is_unique) AS is_unique,
               pg_catalog.bool_or(x.is_alone) AS is_alone,
               pg_catalog.bool_or(x.is_primary) AS is_primary,
               pg_catalog.bool_or(x.is_whole) AS is_whole,
               pg_catalog.bool_and(x.is_indexed) FILTER (WHERE m.is_leaf) AS is_indexed,
               pg_catalog.bool_or(b.relkind = 'f') AS has_foreign,
               pg_catalog.array_agg(m.oid) AS members,
               pg_catalog.bool_or(m.oid IN (SELECT u.srrelid FROM subscribed AS u)) AS is_subscribed
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
            SELECT p.oid, k.relkind <> 'p'
            FROM tree AS p
            JOIN pg_catalog.pg_class AS k ON k.oid = p.oid
        ) AS m (oid, is_leaf)
        JOIN pg_catalog.pg_class AS b ON b.oid = m.oid
        JOIN pg_catalog.pg_attribute AS ma ON ma.attrelid = m.oid AND ma.attname = a.attname
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or(i.is_key), false) AS is_unique,
                   COALESCE(pg_catalog.bool_or(i.is_key AND i.indisprimary), false) AS is_primary,
                   COALESCE(pg_catalog.bool_or(i.is_key AND i.indpred IS NULL), false) AS is_whole,
                   COALESCE(pg_catalog.bool_or(
                       i.is_key AND i.indpred IS NULL AND NOT EXISTS (
                           SELECT FROM pg_catalog.pg_attribute AS o
                           WHERE o.attrelid = m.oid AND o.attnum <> ma.attnum
                             AND (o.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
                                  OR (0 = ANY (i.indkey) AND EXISTS (
                                      SELECT FROM pg_catalog.pg_depend AS e
                                      WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                                        AND e.objid = i.indexrelid AND e.refobjid = m.oid
                                        AND e.refobjsubid = o.attnum)))
                             AND o.attname <> ALL (partition_key.names))), false) AS is_alone,
                   COALESCE(pg_catalog.bool_or(
                       i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = ma.attnum
                       AND am.amname = 'btree'), false) AS is_indexed
            FROM (
                SELECT i.*,
                       (i.indisunique OR i.indisexclusion)
                       AND (ma.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]) OR (
                            0 = ANY (i.indkey) AND EXISTS (
                                SELECT FROM pg_catalog.pg_depend AS e
                                WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                                  AND e.objid = i.indexrelid AND e.refobjid = m.oid
                                  AND e.refobjsubid = ma.attnum))) AS is_key
                FROM pg_catalog.pg_index AS i
                WHERE i.indrelid = m.oid
            ) AS i
            JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
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
SELECT s.*,
       k.relation AS key_relation, k.attnum AS key_attribute,
       k.nspname AS key_schema, k.relname AS key_table,
       k.attname AS key_column, k.is_bare AS key_is_bare, k.quoted_table AS key_quoted_table,
       k.quoted_column AS key_quoted_column, k.type AS key_type,
       k.quoted_schema AS key_quoted_schema, k.is_partitioned AS key_is_partitioned,
       k.is_indexed AS key_is_indexed, k.is_heir AS key_is_heir,
       k.has_companions AS key_has_companions, k.is_unique AS key_is_unique,
       k.is_partial AS key_is_partial, k.is_numbering AS key_is_numbering,
       k.has_foreign AS key_has_foreign, k.is_subscribed AS key_is_subscribed,
       k.code_of AS key_code_of, k.is_readable AS key_is_readable,
       pg_catalog.current_setting('transaction_read_only') = 'on' AS read_only,
       pg_catalog.quote_ident(CURRENT_USER) AS role
FROM key AS k
CROSS JOIN LATERAL (
    SELECT c.oid, n.nspname AS schema, c.relname AS name,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted,
           pg_catalog.format('%%L', pg_catalog.format('%%I.%%I', n.nspname, c.relname)) AS literal,
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
    WHERE c.oid = k.sequence
    OFFSET 0
) AS s
ORDER BY pg_catalog.array_position(%(sequences)s::pg_catalog.oid[], s.oid),
         k.quoted_table, k.quoted_column
"""


def nameless(oid: int) -> Sequence:
    """Return what is known of a sequence that can't be read in the catalogue."""
    return Sequence(
        oid, "?", f"oid {oid}", "", "", 1, 1, 1, 1, is_readable=False, is_settable=False, keys=()
    )


def list_feeds(
    cursor: Cursor, *, schemas: Iterable[str] = (), tables: Iterable[int] = ()
) -> list[list[Feed]]:
    """List the feeds of every sequence that feeds tables, given by schema or by oid."""
    found = cursor.rows(LISTING, {"schemas": list(schemas), "tables": list(tables)})
    return [
        list(group) for _, group in groupby((Feed(*row) for row in found), lambda f: f.sequence)
    ]


def feeds_of_table(cursor: Cursor, oid: int) -> tuple[list[list[Feed]], dict[Place, bool]]:
    """List the feeds of the sequences that an INSERT into a table draws from; tell its own.

    Its own are the table's columns, and those that a partition's parents, or the table beneath a
    view, have for them. True are those where an INSERT that draws a taken value is sure to fail:
    unique by themselves, at once, and no rule or trigger can turn the row into another.
    """
    found = cursor.rows(FEEDS_OF_TABLE, {"oid": oid})
    own = {Place(row.relation, row.attribute): row.is_sole for row in found if row.is_own}
    return _by_sequence(found), own


def _by_sequence(rows: Iterable[Any]) -> list[list[Feed]]:
    feeds = (Feed(*row[:4]) for row in rows)
    return [list(group) for _, group in groupby(feeds, key=attrgetter("sequence"))]


def sequences_of(cursor: Cursor, feeds: Iterable[list[Feed]]) -> list[Sequence]:
    """Read what the catalogue knows of sequences and the columns they feed, in the order given.

    Those that feed no unique column are left out, and those that are gone.
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


def _key(row: Any) -> Key:
    return Key(
        relation=row.key_relation,
        attribute=row.key_attribute,
        schema=row.key_schema,
        table=row.key_table,
        column=row.key_column,
        type=row.key_type,
        quoted_table=row.key_quoted_table,
        quoted_column=row.key_quoted_column,
        is_partitioned=row.key_is_partitioned,
        is_indexed=row.key_is_indexed,
        is_heir=row.key_is_heir,
        has_companions=row.key_has_companions,
        is_unique=row.key_is_unique,
    )


def _obstacles(row: Any) -> Iterator[Obstacle]:
    if row.is_of_extension:
        yield Obstacle("the sequence belongs to an extension")
    if row.cycles:
        yield Obstacle("the sequence is declared CYCLE and may start over")
    if not (row.is_readable or row.is_usable):
        yield Obstacle(
            f"role {row.role} may not read the sequence",
            f"GRANT SELECT, UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
            hinders=Hinders.CHECKING,
        )
    if row.read_only:
        yield Obstacle(
            "the server, or this session, is read-only",
            "resync where it can be written to, such as the primary",
            is_final=True,
            hinders=Hinders.MOVING,
        )
    if not (row.is_usable or row.is_settable):
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
