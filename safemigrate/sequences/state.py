"""Whether a sequence is behind the keys it feeds, and the one way to move it past them.

Every statement here runs inside :func:`looking`, after :func:`settle` has pinned ``search_path`` to
``pg_catalog``: with that, no operator, function or relation of anybody else's can stand in for the
server's own.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from django.db import Error

from .catalogue import Hinders, Key, Obstacle, Sequence, Table, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

__all__ = ["Sequence", "Table", "table_of"]

# A gap of so many values is walked with nextval(), which cannot move a sequence backward whatever
# other sessions do meanwhile; a wider one is jumped with setval(). Each of up to 32 sessions may
# take a whole cache between our reading and our setting.
WALK = 1_000
WALKED_CACHES = 32
# Without UPDATE on the sequence walking is all that is left: this many values take about a second.
WALK_WITHOUT_UPDATE = 1_000_000
# A table of so many bytes is read whole where no index leads with the key.
SMALL = 1024 * 1024
# The server plans a UNION ALL of more branches at more than their sum.
AT_A_GLANCE = 100
# The high half of our advisory locks' keys; the low half is the sequence's oid.
LOCK_SPACE = 0x5AFE5E9 << 32

LOCK_NOT_AVAILABLE = "55P03"
INSUFFICIENT_PRIVILEGE = "42501"


# An exempt sequence is one that can't be behind, such as one that starts over; an unknown one could
# not be looked at.
Status = Literal["right", "behind", "resynced", "unknown", "exempt"]


@dataclass(frozen=True)
class Finding:
    """What a look at one sequence found, and where a resync left it.

    ``largest`` is the key that is farthest in the sequence's own direction (so the smallest, where
    the increment is negative), None where there is no key. ``target`` is the value after which the
    sequence is past it, None where the sequence is not behind. ``moved_to`` is the last value that
    a resync used up, None where nothing was moved. ``obstacle`` says why not, or what kept the look
    from being done; then ``next_value`` is None.
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
    def status(self) -> Status:
        if self.moved_to is not None:
            return "resynced"
        if self.target is not None:
            return "behind"
        if self.obstacle is None:
            return "right"
        return "exempt" if self.obstacle.hinders is Hinders.JUDGING else "unknown"

    @property
    def repair(self) -> str:
        """The statement that a DBA could type, or an empty string where there is none."""
        if self.target is None or (self.obstacle and self.obstacle.is_final):
            return ""
        sequence = self.sequence
        short = "<=" if sequence.increment > 0 else ">="
        return (
            f"SELECT pg_catalog.setval({sequence.literal}, {self.target}) "
            f"FROM {sequence.quoted} WHERE last_value {short} {self.target};"
        )

    @property
    def remedy(self) -> str:
        """Why the sequence was left alone, and what to type."""
        if self.obstacle is None:
            return f"healing is off; {self.repair}"
        if not self.repair or self.repair in self.obstacle.advice:
            return str(self.obstacle)
        return f"{str(self.obstacle).removesuffix(';')}; or, with the right to: {self.repair}"

    def __str__(self) -> str:
        keys = ", ".join(map(str, self.sequence.keys))
        return (
            f"Sequence {self.sequence} is behind {keys} (next value {self.next_value}, largest "
            f"key {self.largest})"
        )


# --- the room a look is done in ---------------------------------------------------------------

# The last three save a third of the time that it takes to plan a question to the catalogue.
SETTINGS = """
    SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid,
           pg_catalog.set_config('search_path', 'pg_catalog', true),
           pg_catalog.set_config('lock_timeout', '1s', true),
           pg_catalog.set_config('row_security', 'off', true),
           pg_catalog.set_config('constraint_exclusion', 'off', true),
           pg_catalog.set_config('join_collapse_limit', '1', true),
           pg_catalog.set_config('from_collapse_limit', '1', true),
           pg_catalog.set_config('enable_hashjoin', 'off', true),
           pg_catalog.set_config('enable_mergejoin', 'off', true),
           pg_catalog.set_config('jit', 'off', true)
"""
SAVEPOINT = "safemigrate"
IDLE, IN_TRANSACTION, FAILED = 0, 2, 3
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
    """Ask libpq, without sending anything, for IDLE, IN_TRANSACTION or FAILED."""
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


@dataclass(frozen=True)
class Terms:
    """What a human asks for beyond the usual.

    ``headroom`` is a number of values to be free past the largest key; ``scan`` reads even a large
    table whole where it has no index for the key; ``force`` overrules the obstacles that may be.
    """

    headroom: int = 0
    scan: bool = False
    force: bool = False


USUAL = Terms()

# --- the look and the resync ------------------------------------------------------------------

# Numbers alone, so that many such states can be asked for in one UNION ALL. The target is the
# last value in the sequence's own residue that is not past the largest key and the headroom.
STATE = """
    SELECT {oid} AS oid, k.largest, s.next_value, t.target,
           CASE WHEN {weight} > {small} THEN 'unindexed'
                WHEN {sign} * ({last} - t.target) < {stride} THEN 'exhausted'
                WHEN 10 * {sign} * ({last} - t.target) < {span}
                     AND 10 * {sign} * (t.target - s.next_value) > {span} THEN 'cramped'
                WHEN {sign} * (t.target - s.next_value) > {stride} * {reach} THEN 'out of reach'
           END AS misfit
    FROM (SELECT {largest} AS largest) AS k
    CROSS JOIN LATERAL (
        {next_value} k.largest IS NOT DISTINCT FROM k.largest {turn} OFFSET 0) AS s
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN {sign} * (k.largest - s.next_value) + {headroom} >= 0
            THEN s.next_value + {increment} * pg_catalog.div(
                     {sign} * (k.largest - s.next_value) + {headroom}, {stride})
        END AS target) AS t
"""
# The same, only as far as telling which are right.
GLIMPSE = "SELECT {oid}, {largest}, v.last_value, v.is_called FROM {sequence} AS v"
# Planned in half the time that max() takes.
GLIMPSE_OF_KEY = """(
        SELECT {column} FROM {only} {table}
        WHERE {column} IS NOT NULL ORDER BY {column} {direction} LIMIT 1)"""
KEY = """(
        SELECT pg_catalog.{aggregate}({column})::pg_catalog.numeric
        FROM {only} {table}
        WHERE {column} BETWEEN '{lowest}'::{bound} AND '{highest}'::{bound} {unless})"""
UNLESS_LARGE = "AND {weight} <= {small}"
WEIGHT = "(SELECT pg_catalog.pg_relation_size({oid}))"
WEIGHT_OF_PARTITIONS = """(
        SELECT COALESCE(pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)), 0)
        FROM pg_catalog.pg_partition_tree({oid}) AS p)"""
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


def look(cursor: CursorWrapper, sequences: Rows[Sequence], terms: Terms = USUAL) -> list[Finding]:
    """Read, without writing and in few statements, whether ``sequences`` are behind."""
    sequences = [each.forced() if terms.force else each for each in sequences]
    visible = [each for each in sequences if _is_visible(each)]
    found = _glance(cursor, [each for each in visible if _is_plain(each)], terms)
    if doubtful := [each for each in visible if each.oid not in found]:
        cursor.execute(" UNION ALL ".join(f"({_state(each, terms)})" for each in doubtful))
        by_oid = {each.oid: each for each in doubtful}
        found |= {oid: _finding(by_oid[oid], state, terms) for oid, *state in cursor.fetchall()}
    return [found.get(each.oid) or Finding(each, obstacle=each.obstacle) for each in sequences]


def _glance(cursor: CursorWrapper, sequences: Rows[Sequence], terms: Terms) -> dict[int, Finding]:
    """Find those sequences that are plainly right, for a tenth of what the exact state costs."""
    right = {}
    for start in range(0, len(sequences), AT_A_GLANCE):
        glanced = sequences[start : start + AT_A_GLANCE]
        cursor.execute(" UNION ALL ".join(map(_glimpse, glanced)))
        by_oid = {each.oid: each for each in glanced}
        for oid, largest, last, is_called in cursor.fetchall():
            sequence = by_oid[oid]
            next_value = last + sequence.increment if is_called else last
            if largest is None or _sign(sequence) * (largest - next_value) + terms.headroom < 0:
                is_within = largest is not None and sequence.lowest <= largest <= sequence.highest
                right[oid] = Finding(sequence, next_value, int(largest) if is_within else None)
    return right


def _glimpse(sequence: Sequence) -> str:
    # Of the keys out of bounds those ahead raise a doubt, and those behind hide none within.
    keys = [
        GLIMPSE_OF_KEY.format(
            direction="DESC" if sequence.increment > 0 else "ASC",
            column=key.quoted_column,
            only="" if key.is_partitioned else "ONLY",
            table=key.quoted_table,
        )
        for key in sequence.keys
    ]
    return GLIMPSE.format(
        oid=sequence.oid, largest=_farthest(sequence, keys), sequence=sequence.quoted
    )


def _is_plain(sequence: Sequence) -> bool:
    return sequence.is_readable and all(key.is_indexed for key in sequence.keys)


def resync(cursor: CursorWrapper, sequence: Sequence, terms: Terms = USUAL) -> Finding:
    """Move ``sequence`` forward, never backward, past the largest key that it feeds.

    A sequence that is not behind is not written to; one with an obstacle is only looked at.
    """
    if terms.force:
        sequence = sequence.forced()
    if sequence.obstacle:
        return look(cursor, [sequence], terms)[0]
    cursor.execute(
        RESYNC.format(
            state=_state(sequence, terms, turn=TURN),
            oid=sequence.oid,
            sign=_sign(sequence),
            stride=abs(sequence.increment),
            lock=LOCK_SPACE + sequence.oid,
            forced="'cramped'" if terms.force else "NULL",
            walk=WALK + WALKED_CACHES * sequence.cache
            if sequence.is_settable
            else WALK_WITHOUT_UPDATE,
        )
    )
    _, *state, moved_to = cursor.fetchone()
    return _finding(sequence, state, terms, moved_to)


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


def _is_visible(sequence: Sequence) -> bool:
    return sequence.obstacle is None or sequence.obstacle.hinders is Hinders.MOVING


def _sign(sequence: Sequence) -> int:
    return 1 if sequence.increment > 0 else -1


def _state(sequence: Sequence, terms: Terms, turn: str = "") -> str:
    rising = sequence.increment > 0
    next_value = NEXT_VALUE if sequence.is_readable else NEXT_VALUE_WITHOUT_SELECT
    unindexed = [key for key in sequence.keys if not (key.is_indexed or key.is_heir or terms.scan)]
    return STATE.format(
        oid=sequence.oid,
        increment=sequence.increment,
        stride=abs(sequence.increment),
        sign=_sign(sequence),
        headroom=terms.headroom,
        last=sequence.highest if rising else sequence.lowest,
        span=sequence.highest - sequence.lowest,
        reach="'Infinity'::pg_catalog.float8" if sequence.is_settable else WALK_WITHOUT_UPDATE,
        weight=f"GREATEST(0, {', '.join(map(_weight, unindexed))})" if unindexed else 0,
        small=SMALL,
        largest=_farthest(sequence, [_extreme(key, sequence, terms) for key in sequence.keys]),
        next_value=next_value.format(
            increment=sequence.increment, sequence=sequence.quoted, oid=sequence.oid
        ),
        turn=turn,
    )


def _farthest(sequence: Sequence, keys: Rows[str]) -> str:
    if len(keys) == 1:
        return keys[0]
    return f"{'GREATEST' if sequence.increment > 0 else 'LEAST'}({', '.join(keys)})"


def _extreme(key: Key, sequence: Sequence, terms: Terms) -> str:
    is_free = key.is_indexed or terms.scan
    return KEY.format(
        aggregate="max" if sequence.increment > 0 else "min",
        column=key.quoted_column,
        only="" if key.is_partitioned else "ONLY",
        table=key.quoted_table,
        lowest=sequence.lowest,
        highest=sequence.highest,
        bound="pg_catalog.numeric" if key.type == "numeric" else "pg_catalog.int8",
        unless="" if is_free else UNLESS_LARGE.format(weight=_weight(key), small=SMALL),
    )


def _weight(key: Key) -> str:
    weight = WEIGHT_OF_PARTITIONS if key.is_partitioned else WEIGHT
    return weight.format(oid=key.relation)


def _finding(sequence: Sequence, state: Rows[Any], terms: Terms, moved_to: Any = None) -> Finding:
    largest, next_value, target, misfit = state
    finding = Finding(
        sequence=sequence,
        next_value=int(next_value),
        largest=None if largest is None else int(largest),
        target=None if target is None else int(target),
        moved_to=None if moved_to is None else int(moved_to),
    )
    if misfit == "unindexed":
        return Finding(sequence, obstacle=_unindexed(sequence))
    if not finding.is_behind:
        return finding
    obstacle = sequence.obstacle or _misfit(finding, misfit)
    is_overruled = obstacle and obstacle.can_force and terms.force
    return replace(finding, obstacle=None if is_overruled else obstacle)


def _unindexed(sequence: Sequence) -> Obstacle:
    key = next(key for key in sequence.keys if not (key.is_indexed or key.is_heir))
    return Obstacle(
        f"no index of {key.quoted_table} leads with {key.quoted_column}, and the table is too "
        "large to be read whole unasked",
        "use resyncsequences --scan",
        hinders=Hinders.LOOKING,
    )


def _misfit(finding: Finding, misfit: str | None) -> Obstacle | None:
    sequence = finding.sequence
    if misfit == "exhausted":
        return Obstacle(
            f"the range ends at {sequence.highest if sequence.increment > 0 else sequence.lowest}: "
            f"there is no value left past the largest key, {finding.largest}",
            "move that row to another key, or widen the column and the sequence",
            is_final=True,
            hinders=Hinders.MOVING,
        )
    if misfit == "cramped":
        return Obstacle(
            f"moving past the largest key, {finding.largest}, would leave less than a tenth of the "
            "sequence's range, and there is no way back",
            f"look at that row; if it is meant, {finding.repair} or resyncsequences --force",
            can_force=True,
            hinders=Hinders.MOVING,
        )
    if misfit == "out of reach":
        return Obstacle(
            "the gap is too wide to be walked with nextval(), and setval() is not allowed",
            f"type, as the sequence's owner, {finding.repair}",
            hinders=Hinders.MOVING,
        )
    return None


def obstacle_of(error: Exception) -> Obstacle:
    """Say what kept a look from being done, from the error that the server gave it."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state == LOCK_NOT_AVAILABLE:
        reason = "the table, or a resync of the sequence, was locked for longer than 1 s"
        return Obstacle(reason, "try again when it is not", hinders=Hinders.LOOKING)
    if state == INSUFFICIENT_PRIVILEGE:
        return Obstacle(
            f"not all rows can be read ({str(error).strip()})",
            "run as a role that may, such as the table's owner",
            hinders=Hinders.LOOKING,
        )
    return Obstacle(
        f"the look failed ({type(error).__name__}: {str(error).strip()})", hinders=Hinders.LOOKING
    )
