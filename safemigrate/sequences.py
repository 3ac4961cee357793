"""What PostgreSQL knows of its sequences: which columns they feed, whether they are behind.

Every statement here runs inside :func:`looking`, which pins ``search_path`` to ``pg_catalog``:
with that, no operator, function or relation of anybody else's can stand in for the server's own.
Identifiers are quoted by the server (``format('%I')``) before they are put into a statement.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

# A gap of so many values is walked with nextval(), which cannot move a sequence backward whatever
# other sessions do meanwhile; a wider one is jumped with setval().
WALK = 1_000
# Without UPDATE on the sequence walking is all that is left: this many values take about a second.
WALK_WITHOUT_UPDATE = 1_000_000
# A table of so many bytes is read whole where no index leads with the key.
SMALL = 1024 * 1024
# The high half of our advisory locks' keys; the low half is the sequence's oid.
LOCK_SPACE = 0x5AFE5E9 << 32

INTEGERS = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1}


@dataclass(frozen=True)
class Obstacle:
    """Why a sequence is left alone, and what an operator can do about it."""

    reason: str
    advice: str = ""
    can_force: bool = False

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


@dataclass(frozen=True)
class Key:
    """A column of a primary key or unique index whose default is a sequence's next value."""

    relation: int
    schema: str
    table: str
    column: str
    type: str
    quoted_table: str
    quoted_column: str
    obstacle: Obstacle | None = None

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}"


@dataclass(frozen=True)
class Sequence:
    """A sequence, its bounds, and all the keys that it feeds."""

    oid: int
    schema: str
    name: str
    quoted: str
    increment: int
    minimum: int
    maximum: int
    cache: int
    is_readable: bool
    is_settable: bool
    keys: tuple[Key, ...]
    obstacle: Obstacle | None = None

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def lowest(self) -> int:
        """The least value that the sequence can give to every column it feeds."""
        return max(self.minimum, *(-INTEGERS.get(key.type, 2**63) - 1 for key in self.keys))

    @property
    def highest(self) -> int:
        """The greatest value that the sequence can give to every column it feeds."""
        return min(self.maximum, *(INTEGERS.get(key.type, 2**63 - 1) for key in self.keys))


@dataclass(frozen=True)
class Finding:
    """What a look at one sequence found, and where a resync left it.

    ``largest`` is the key that is farthest in the sequence's own direction (so the smallest, where
    the increment is negative), None where there is no key. ``target`` is the value after which the
    sequence is past it, None where the sequence is not behind. ``moved_to`` is the last value that
    a resync used up, None where nothing was moved.
    """

    sequence: Sequence
    next_value: int | None = None
    largest: int | None = None
    target: int | None = None
    moved_to: int | None = None
    obstacle: Obstacle | None = None

    @property
    def is_behind(self) -> bool:
        return self.target is not None and self.moved_to is None

    @property
    def repair(self) -> str:
        """The statement that a DBA could type, or an empty string where there is none."""
        if self.target is None:
            return ""
        literal = self.sequence.quoted.replace("'", "''")
        return f"SELECT pg_catalog.setval('{literal}', {self.target});"


@dataclass(frozen=True)
class Table:
    """What a statement's author can't see in the statement: the table behind the name."""

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
        """Map the keys of this table that a sequence feeds to that sequence."""
        return {
            key.column: sequence
            for sequence in self.sequences
            for key in sequence.keys
            if key.relation in self.lineage
        }


# --- the room a look is done in ---------------------------------------------------------------

SETTINGS = """
    SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid,
           pg_catalog.set_config('search_path', 'pg_catalog', true),
           pg_catalog.set_config('lock_timeout', '1s', true),
           pg_catalog.set_config('row_security', 'off', true)
"""
SAVEPOINT = "safemigrate"
IDLE, FAILED = 0, 3
PSYCOPG2_READY = 1


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the next statement runs inside a transaction block of the server's."""
    if transaction_status(connection) != IDLE:
        return True
    # The drivers begin one themselves; psycopg2 not where it thinks that the one is still open
    # that the migration's own COMMIT has ended.
    begins = getattr(connection.connection, "status", PSYCOPG2_READY) == PSYCOPG2_READY
    return begins and not connection.get_autocommit()


@contextmanager
def own_transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Wrap the block in a transaction where the server has none, whatever Django thinks."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            yield
        except BaseException:
            with suppress(Error):
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")


def transaction_status(connection: BaseDatabaseWrapper) -> int:
    """Ask libpq, without sending anything, for IDLE, 2 (in a transaction) or FAILED."""
    return int(connection.connection.info.transaction_status)


@contextmanager
def looking(
    connection: BaseDatabaseWrapper, *, keep_savepoint: bool = False
) -> Iterator[CursorWrapper]:
    """Give a cursor whose settings and locks, but not whose ``setval``, end with the block.

    In a transaction that is a savepoint, rolled back to in any case; with ``keep_savepoint`` it is
    left standing, and the caller has a guard for the statement that comes next. Outside of one it
    is a transaction of its own.
    """
    if not in_transaction(connection):
        with own_transaction(connection), connection.cursor() as cursor:
            yield cursor
        return
    with connection.cursor() as cursor:
        cursor.execute(f"SAVEPOINT {SAVEPOINT}")
        try:
            yield cursor
        finally:
            cursor.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            if not keep_savepoint:
                cursor.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")


def settle(cursor: CursorWrapper, name: str | None = None) -> int | None:
    """Make the settings that a look runs under; resolve ``name`` as a statement would have.

    Returns the table's oid, or None where there is no such table.
    """
    cursor.execute(SETTINGS, [name])
    oid, *_ = cursor.fetchone()
    return None if oid is None else int(oid)


# --- which sequence feeds what ----------------------------------------------------------------

# A default is a sequence's bare next value when nothing but the sequence and its own column stand
# behind it in pg_depend and its text is a call of nextval(), with at most a cast around it.
# Which columns own a sequence (pg_get_serial_sequence) says nothing about what feeds them.
FEEDS = r"""
feed (sequence, relation, attribute, is_bare) AS MATERIALIZED (
    SELECT s.oid, ad.adrelid, ad.adnum,
           pg_catalog.pg_get_expr(ad.adbin, ad.adrelid)
               ~ '^\(?nextval\(''([^'']|'''')*''::regclass\)\)?(::[a-z]+)?$'
           AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_depend AS o
               WHERE o.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
                 AND o.objid = ad.oid
                 AND o.refclassid <> 'pg_catalog.pg_class'::pg_catalog.regclass)
    FROM wanted AS s
    JOIN pg_catalog.pg_depend AS d
      ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.refobjid = s.oid
     AND d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
    JOIN pg_catalog.pg_attrdef AS ad ON ad.oid = d.objid
    UNION ALL
    SELECT s.oid, d.refobjid, d.refobjsubid, true
    FROM wanted AS s
    JOIN pg_catalog.pg_depend AS d
      ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.objid = s.oid
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.refobjsubid > 0
     AND d.deptype = 'i'
),
sequence AS (
    SELECT c.oid, n.nspname, c.relname,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted,
           q.seqincrement, q.seqmin, q.seqmax, q.seqcache, q.seqcycle,
           pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AS is_readable,
           pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') AS is_settable,
           pg_catalog.has_sequence_privilege(c.oid, 'USAGE') AS is_usable,
           EXISTS (
               SELECT FROM pg_catalog.pg_depend AS e
               WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
                 AND e.objid = c.oid AND e.deptype = 'e') AS is_of_extension
    FROM wanted AS w
    JOIN pg_catalog.pg_class AS c ON c.oid = w.oid
    JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = c.oid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
),
key AS (
    SELECT f.sequence, c.oid AS relation, n.nspname, c.relname, a.attname, f.is_bare,
           pg_catalog.format('%%I.%%I', n.nspname, c.relname) AS quoted_table,
           pg_catalog.quote_ident(a.attname) AS quoted_column,
           pg_catalog.format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL)
               AS type,
           c.relkind, l.is_unique, l.is_indexed, l.size, l.has_foreign, l.is_subscribed,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE')
           AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') AS is_readable
    FROM feed AS f
    JOIN pg_catalog.pg_class AS c ON c.oid = f.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = f.attribute
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    CROSS JOIN LATERAL (
        SELECT pg_catalog.bool_or(x.is_unique) AS is_unique,
               pg_catalog.bool_and(x.is_indexed) AS is_indexed,
               pg_catalog.sum(pg_catalog.pg_relation_size(m.oid)) AS size,
               pg_catalog.bool_or(b.relkind = 'f') AS has_foreign,
               pg_catalog.bool_or(EXISTS (
                   SELECT FROM pg_catalog.pg_subscription_rel AS r
                   JOIN pg_catalog.pg_subscription AS u ON u.oid = r.srsubid
                   WHERE r.srrelid = m.oid AND u.subenabled)) AS is_subscribed
        FROM (
            SELECT c.oid WHERE c.relkind <> 'p'
            UNION ALL
            SELECT p.relid::pg_catalog.oid
            FROM pg_catalog.pg_partition_tree(c.oid) AS p
            WHERE c.relkind = 'p' AND p.isleaf AND p.relid <> c.oid
        ) AS m (oid)
        JOIN pg_catalog.pg_class AS b ON b.oid = m.oid
        JOIN pg_catalog.pg_attribute AS ma ON ma.attrelid = m.oid AND ma.attname = a.attname
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or(
                       i.indisunique AND ma.attnum = ANY (i.indkey)), false) AS is_unique,
                   COALESCE(pg_catalog.bool_or(
                       i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = ma.attnum
                       AND am.amname = 'btree'), false) AS is_indexed
            FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
            WHERE i.indrelid = m.oid
        ) AS x
    ) AS l
    WHERE l.is_unique
      AND NOT (c.relispartition AND EXISTS (
          SELECT FROM feed AS p
          WHERE p.sequence = f.sequence
            AND p.relation = pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid))
)
"""

FEED_COLUMNS = """
    s.oid, s.nspname, s.relname, s.quoted, s.seqincrement, s.seqmin, s.seqmax, s.seqcache,
    s.seqcycle, s.is_readable, s.is_settable, s.is_usable, s.is_of_extension,
    k.relation, k.nspname, k.relname, k.attname, k.is_bare, k.quoted_table, k.quoted_column,
    k.type, k.is_indexed, k.size::pg_catalog.int8, k.has_foreign, k.is_subscribed, k.is_readable,
    pg_catalog.current_setting('transaction_read_only') = 'on', CURRENT_USER::pg_catalog.text
"""

DEFAULT_SEQUENCES = """
    SELECT d.refobjid AS oid, ad.adrelid AS relation
    FROM pg_catalog.pg_attrdef AS ad
    JOIN pg_catalog.pg_depend AS d
      ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
     AND d.objid = ad.oid
     AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid AND c.relkind = 'S'
    UNION
    SELECT c.oid, d.refobjid
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind = 'S'
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refobjsubid > 0
      AND d.deptype = 'i'
"""

# A partition reports its own name while its parent's default feeds it, hence the lineage.
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
    SELECT i.inhparent
    FROM lineage AS l
    JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = l.oid
),
wanted AS MATERIALIZED (
    SELECT DISTINCT d.oid FROM lineage AS l JOIN ({DEFAULT_SEQUENCES}) AS d ON d.relation = l.oid
),
{FEEDS}
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
             ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
           WHERE i.indrelid = t.oid AND i.indisunique),
       {FEED_COLUMNS}
FROM target AS t
LEFT JOIN (sequence AS s JOIN key AS k ON k.sequence = s.oid) ON true
ORDER BY s.oid, k.quoted_table, k.quoted_column
"""


class _Row(NamedTuple):
    """FEED_COLUMNS, one sequence and one of its keys."""

    oid: int
    schema: str
    name: str
    quoted: str
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
    key_is_indexed: bool
    key_size: int
    key_has_foreign: bool
    key_is_subscribed: bool
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


def _sequences(rows: Iterable[Rows[Any]], *, scan: bool = False) -> Iterator[Sequence]:
    for _, group in groupby((_Row(*row) for row in rows), key=attrgetter("oid")):
        members = list(group)
        first = members[0]
        # Keys that a computed default gives are not the sequence's own values.
        counted = [row for row in members if row.key_is_bare] or members
        keys = tuple(_key(row, scan=scan) for row in counted)
        yield Sequence(
            oid=first.oid,
            schema=first.schema,
            name=first.name,
            quoted=first.quoted,
            increment=first.increment,
            minimum=first.minimum,
            maximum=first.maximum,
            cache=first.cache,
            is_readable=first.is_readable,
            is_settable=first.is_settable,
            keys=keys,
            obstacle=_obstacle(first) or next((key.obstacle for key in keys if key.obstacle), None),
        )


def _key(row: _Row, *, scan: bool) -> Key:
    return Key(
        relation=row.key_relation,
        schema=row.key_schema,
        table=row.key_table,
        column=row.key_column,
        type=row.key_type,
        quoted_table=row.key_quoted_table,
        quoted_column=row.key_quoted_column,
        obstacle=_key_obstacle(row, scan=scan),
    )


def _obstacle(row: _Row) -> Obstacle | None:
    if row.is_of_extension:
        return Obstacle("the sequence belongs to an extension")
    if row.cycles:
        return Obstacle("the sequence is declared CYCLE and may start over")
    if row.read_only:
        return Obstacle("the server, or this transaction, is read-only")
    if not (row.is_usable or row.is_settable):
        return Obstacle(
            f"role {row.role} may not use the sequence",
            f"GRANT SELECT, UPDATE ON SEQUENCE {row.quoted} TO {row.role};",
        )
    return None


def _key_obstacle(row: _Row, *, scan: bool) -> Obstacle | None:
    column = f"{row.key_quoted_table}.{row.key_quoted_column}"
    if not row.key_is_bare:
        return Obstacle(f"the default of {column} is computed")
    if row.key_type not in (*INTEGERS, "numeric"):
        return Obstacle(f"{column} is not a number but {row.key_type}")
    if row.key_has_foreign:
        return Obstacle(f"{row.key_quoted_table} is a foreign table, or has one as a partition")
    if not row.key_is_readable:
        return Obstacle(
            f"role {row.role} may not read {column}",
            f"GRANT SELECT ON {row.key_quoted_table} TO {row.role};",
        )
    if row.key_is_subscribed:
        return Obstacle(
            f"{row.key_quoted_table} is fed by an enabled subscription, whose publisher will send "
            "the keys to come",
            "drop or disable the subscription, or use resyncsequences --force",
            can_force=True,
        )
    if not (row.key_is_indexed or scan or row.key_size <= SMALL):
        return Obstacle(
            f"no index of {row.key_quoted_table} leads with {row.key_quoted_column}",
            "use resyncsequences --scan",
        )
    return None


# --- the look and the resync ------------------------------------------------------------------

# Numbers alone, so that many such states can be asked for in one UNION ALL. The target is the
# first value in the sequence's own residue that is not short of the largest key.
STATE = """
    SELECT {oid} AS oid, k.largest, s.next_value, t.target,
           CASE WHEN {sign} * ({last} - t.target) < {stride} THEN 'exhausted'
                WHEN 10 * {sign} * ({last} - t.target) < {span}
                     AND 10 * {sign} * (t.target - s.next_value) > {span} THEN 'cramped'
                WHEN {sign} * (t.target - s.next_value) > {stride} * {reach} THEN 'out of reach'
           END AS misfit
    FROM (SELECT {extreme}({keys}) AS largest) AS k
    CROSS JOIN LATERAL (
        {next_value} k.largest IS NOT DISTINCT FROM k.largest {turn} OFFSET 0) AS s
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN {sign} * (k.largest - s.next_value) + {headroom} >= 0
            THEN s.next_value + {increment} * pg_catalog.div(
                     {sign} * (k.largest - s.next_value) + {headroom} + {stride} - 1, {stride})
        END AS target) AS t
"""
KEY = """(
        SELECT pg_catalog.{aggregate}({column})::pg_catalog.numeric
        FROM {table}
        WHERE {column} BETWEEN '{lowest}'::{bound} AND '{highest}'::{bound})"""
NEXT_VALUE = """
        SELECT v.last_value::pg_catalog.numeric
                   + CASE WHEN v.is_called THEN {increment} ELSE 0 END AS next_value
        FROM {sequence} AS v
        WHERE"""
# With USAGE alone the sequence itself can't be read; never drawn from, it is at its start.
NEXT_VALUE_WITHOUT_SELECT = """
        SELECT COALESCE(
                   pg_catalog.pg_sequence_last_value(v.seqrelid)::pg_catalog.numeric + {increment},
                   v.seqstart) AS next_value
        FROM pg_catalog.pg_sequence AS v
        WHERE v.seqrelid = {oid} AND"""

# One statement reads and sets, so that no value travels to us and back while others draw, and
# resyncs of one sequence take turns. Walking stops at the first draw that is not short of the
# target, wherever other sessions or a cache made it start.
RESYNC = """
WITH RECURSIVE
turn AS MATERIALIZED (SELECT pg_catalog.pg_advisory_xact_lock({lock})),
state AS MATERIALIZED ({state}),
goal AS MATERIALIZED (
    SELECT s.target, {sign} * (s.target - s.next_value) / {stride} AS steps
    FROM state AS s
    WHERE s.target IS NOT NULL AND (s.misfit IS NULL OR s.misfit = {forced})
),
jump (value) AS MATERIALIZED (
    SELECT pg_catalog.setval({oid}::pg_catalog.regclass, g.target::pg_catalog.int8)
    FROM goal AS g
    WHERE g.steps > {walk}
),
walk (value) AS (
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass)
    FROM goal AS g
    WHERE g.steps <= {walk}
    UNION ALL
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass)
    FROM walk AS w
    JOIN goal AS g ON {sign} * (g.target - w.value) > 0
)
SELECT s.oid, s.largest, s.next_value, s.target, s.misfit,
       (SELECT {sign} * pg_catalog.max({sign} * m.value)
        FROM (SELECT value FROM jump UNION ALL SELECT value FROM walk) AS m)
FROM state AS s
"""
TURN = "AND (SELECT pg_catalog.count(*) FROM turn) = 1"

# A session that draws from a sequence with a CACHE may still hold values from before a resync.
DRAIN = """
WITH RECURSIVE walk (value, drawn) AS (
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass), 1
    UNION ALL
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass), w.drawn + 1
    FROM walk AS w
    WHERE w.drawn < {cache} AND {sign} * (w.value - {largest}) < 0
)
SELECT pg_catalog.count(*) FROM walk
"""

LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"


def look(cursor: CursorWrapper, sequences: Rows[Sequence], *, headroom: int = 0) -> list[Finding]:
    """Read, in one statement and without writing, whether each of ``sequences`` is behind."""
    statement = " UNION ALL ".join(f"({_state(each, headroom)})" for each in sequences)
    cursor.execute(statement)
    by_oid = {each.oid: each for each in sequences}
    return [_finding(by_oid[oid], state) for oid, *state in cursor.fetchall()]


def resync(
    cursor: CursorWrapper, sequence: Sequence, *, headroom: int = 0, force: bool = False
) -> Finding:
    """Move ``sequence`` forward, never backward, past the largest key that it feeds.

    A sequence that is not behind is not written to. ``headroom`` is a number of values to leave
    free past the largest key; ``force`` allows a jump that leaves less than a tenth of the range.
    """
    cursor.execute(
        RESYNC.format(
            state=_state(sequence, headroom, turn=TURN),
            oid=sequence.oid,
            sign=_sign(sequence),
            stride=abs(sequence.increment),
            lock=LOCK_SPACE + sequence.oid,
            forced="'cramped'" if force else "NULL",
            walk=WALK if sequence.is_settable else WALK_WITHOUT_UPDATE,
        )
    )
    _, *state, moved_to = cursor.fetchone()
    return _finding(sequence, state, moved_to)


def drain(cursor: CursorWrapper, finding: Finding) -> None:
    """Use up the values that this session holds in its cache and that keys have overtaken."""
    sequence = finding.sequence
    if sequence.cache > 1 and finding.largest is not None:
        cursor.execute(
            DRAIN.format(
                oid=sequence.oid,
                cache=sequence.cache,
                sign=_sign(sequence),
                largest=finding.largest,
            )
        )


def _sign(sequence: Sequence) -> int:
    return 1 if sequence.increment > 0 else -1


def _state(sequence: Sequence, headroom: int, turn: str = "") -> str:
    rising = sequence.increment > 0
    next_value = NEXT_VALUE if sequence.is_readable else NEXT_VALUE_WITHOUT_SELECT
    return STATE.format(
        oid=sequence.oid,
        increment=sequence.increment,
        stride=abs(sequence.increment),
        sign=_sign(sequence),
        headroom=headroom,
        last=sequence.highest if rising else sequence.lowest,
        span=sequence.highest - sequence.lowest,
        reach="'Infinity'::pg_catalog.float8" if sequence.is_settable else WALK_WITHOUT_UPDATE,
        extreme="GREATEST" if rising else "LEAST",
        keys=", ".join(_extreme(key, sequence) for key in sequence.keys),
        next_value=next_value.format(
            increment=sequence.increment, sequence=sequence.quoted, oid=sequence.oid
        ),
        turn=turn,
    )


def _extreme(key: Key, sequence: Sequence) -> str:
    return KEY.format(
        aggregate="max" if sequence.increment > 0 else "min",
        column=key.quoted_column,
        table=key.quoted_table,
        lowest=sequence.lowest,
        highest=sequence.highest,
        bound="pg_catalog.numeric" if key.type == "numeric" else "pg_catalog.int8",
    )


def _finding(sequence: Sequence, state: Rows[Any], moved_to: Any = None) -> Finding:
    largest, next_value, target, misfit = state
    finding = Finding(
        sequence=sequence,
        next_value=int(next_value),
        largest=None if largest is None else int(largest),
        target=None if target is None else int(target),
        moved_to=None if moved_to is None else int(moved_to),
    )
    if misfit and moved_to is None:
        return replace(finding, obstacle=_misfit(finding, misfit))
    return finding


def _misfit(finding: Finding, misfit: str) -> Obstacle:
    sequence = finding.sequence
    if misfit == "exhausted":
        return Obstacle(
            f"the range ends at {sequence.highest if sequence.increment > 0 else sequence.lowest}: "
            f"there is no value left past the largest key, {finding.largest}",
            "move that row to another key, or widen the column and the sequence",
        )
    if misfit == "cramped":
        return Obstacle(
            f"moving past the largest key, {finding.largest}, would leave less than a tenth of the "
            "sequence's range, and there is no way back",
            f"look at that row; if it is meant, {finding.repair} or resyncsequences --force",
            can_force=True,
        )
    return Obstacle(
        "the gap is too wide to be walked with nextval(), and setval() is not allowed",
        f"GRANT UPDATE ON SEQUENCE {sequence.quoted} TO the migrating role, "
        f"or as the owner {finding.repair}",
    )


def obstacle_of(error: Exception) -> Obstacle:
    """Say what kept a look from being done, from the error that the server gave it."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state == LOCK_NOT_AVAILABLE:
        return Obstacle("the table, or a resync of the sequence, was locked for longer than 1 s")
    if state == INSUFFICIENT_PRIVILEGE:
        return Obstacle(
            f"not all rows can be read ({str(error).strip()})",
            "run as a role that may, such as the table's owner",
        )
    return Obstacle(f"the look failed ({type(error).__name__}: {str(error).strip()})")
