"""Which sequence feeds which columns: what an INSERT draws from that leaves a column out.

Nothing here reads a user's table or evaluates anybody's expression. The statements expect the
settings of :func:`safemigrate.sequences.checking.checking`.
"""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from .sequence import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from safemigrate.driver import Cursor


class Feed(NamedTuple):
    """A column that a sequence feeds; ``is_bare`` means that it gets the next value as it is."""

    sequence: int
    relation: int
    attribute: int
    is_bare: bool


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
            FROM (
                SELECT ad.*
                FROM pg_catalog.pg_attrdef AS ad
                WHERE ad.adrelid {{relation}}
                  AND ad.adrelid >= 16384  -- none of the system's own
                  AND NOT EXISTS (
                      SELECT FROM pg_catalog.pg_depend AS d
                      WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                        AND d.objid = ad.oid
                        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                        AND d.deptype = 'n'
                      OFFSET 0)
                OFFSET 0
            ) AS ad
            CROSS JOIN LATERAL (
                SELECT FROM pg_catalog.pg_attribute AS a
                WHERE a.attrelid = ad.adrelid AND a.attnum = ad.adnum AND a.attgenerated = ''
                OFFSET 0
            ) AS a
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
               (%(schemas)s::pg_catalog.text[] IS NULL
                OR c.schema = ANY (%(schemas)s::pg_catalog.text[])
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
    CROSS JOIN LATERAL (
        SELECT FROM pg_catalog.pg_class AS s
        WHERE s.oid = f.sequence AND s.relkind = 'S'
        OFFSET 0
    ) AS s
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
           -- Before an INSERT or each of its rows (2 and 4), or instead of it (64).
           SELECT FROM lineage AS l
           JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = l.oid
           WHERE NOT g.tgisinternal AND (g.tgtype & 6 = 6 OR g.tgtype & 68 = 68)) AS is_sole
FROM (SELECT * FROM own UNION {FEEDS_OF_SEQUENCES}) AS f
ORDER BY f.sequence, f.relation, f.attribute
"""


def list_feeds(
    cursor: Cursor, *, schemas: Iterable[str] | None = (), tables: Iterable[int] = ()
) -> list[list[Feed]]:
    """List the feeds of every sequence that feeds tables, given by schema (None: any) or by oid."""
    names = None if schemas is None else list(schemas)
    return _by_sequence(cursor.rows(LISTING, {"schemas": names, "tables": list(tables)}))


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
