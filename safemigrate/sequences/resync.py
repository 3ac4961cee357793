"""The one way to move a sequence past the keys it feeds, and when a run does it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import NotSupportedError, ProgrammingError

from safemigrate import driver

from .catalogue import CONSTRAINT, IS_LOST, sequences_of
from .feeds import feeds_of_table
from .sequence import Hinders, Obstacle
from .state import (
    SETTINGS,
    USUAL,
    WALK_WITHOUT_UPDATE,
    Finding,
    Terms,
    check,
    checking,
    finding_of,
    state_query,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.driver import Cursor

    from .sequence import Key, Place, Sequence

# A gap of this many values is walked with nextval(), which cannot move a sequence backward,
# whatever other sessions do meanwhile. A wider one is jumped with setval(). Each of up to 32
# sessions may take a whole cache between our reading and our setting. Near the end of its range,
# where the walk's own cache would use up the rest, a sequence is jumped as well.
WALK = 1_000
WALKED_CACHES = 32
# The high half of our advisory locks' keys; the low half is the sequence's oid.
LOCK_SPACE = 0x5AFE5E9 << 32
# A session that jumps has finished within this time; otherwise the lock is somebody else's.
PAUSE, PAUSES = 0.1, 10

# One statement reads and sets, so that no value travels to us and back while others draw. Only one
# session at a time jumps; its lock is tried, since anybody may hold it. Walking needs no lock: it
# stops at the first draw that is not short of the target, wherever others or a cache made it start.
RESYNC = """
WITH RECURSIVE
turn AS MATERIALIZED (
    SELECT CASE WHEN {may_jump} THEN pg_catalog.pg_try_advisory_xact_lock({lock}) END AS is_mine
),
state AS MATERIALIZED ({state}),
goal AS MATERIALIZED (
    SELECT s.target,
           {sign} * (s.target - s.next_value) / {stride} > {walk}
           OR ({may_jump} AND {sign} * ({last} - s.target) / {stride} < {cache} - 1) AS is_jump
    FROM state AS s
    WHERE s.target IS NOT NULL AND (s.misfit IS NULL OR s.misfit = {forced})
),
jump (value) AS MATERIALIZED (
    SELECT pg_catalog.setval({oid}::pg_catalog.regclass, g.target::pg_catalog.int8)
    FROM goal AS g
    JOIN turn AS t ON t.is_mine
    WHERE g.is_jump
),
walk (value) AS (
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass)
    FROM goal AS g
    WHERE NOT g.is_jump
    UNION ALL
    SELECT pg_catalog.nextval({oid}::pg_catalog.regclass)
    FROM walk AS w
    JOIN goal AS g ON {sign} * (g.target - w.value) > 0
)
SELECT s.oid, s.largest, s.next_value, s.target, s.misfit,
       (SELECT {sign} * pg_catalog.max({sign} * m.value)
        FROM (SELECT value FROM jump UNION ALL SELECT value FROM walk) AS m) AS moved_to
FROM state AS s
"""
LAST_VALUE = "SELECT pg_catalog.pg_sequence_last_value({oid}) AS last_value"
# Read the state only after trying the lock.
TURN = "AND (SELECT t.is_mine IS NOT DISTINCT FROM t.is_mine FROM turn AS t)"


def resync(cursor: Cursor, sequence: Sequence, terms: Terms = USUAL) -> Finding:
    """Move ``sequence`` forward, never backward, past the largest key that it feeds.

    A sequence that is in sync is not written to; one with an obstacle is only checked.
    """
    if terms.force:
        sequence = sequence.forced()
    finding = check(cursor, [sequence], terms)[0]
    if finding.obstacle or not finding.is_behind:
        return finding
    return move_past(cursor, sequence, terms)


def move_past(cursor: Cursor, sequence: Sequence, terms: Terms) -> Finding:
    """Move ``sequence``, which was found to be behind and without an obstacle, if it still is."""
    for attempt in range(PAUSES):
        if attempt:
            time.sleep(PAUSE)
        finding = _move(cursor, sequence, terms)
        if finding.obstacle or not finding.is_behind:
            return finding
    return _blocked(finding)


def _move(cursor: Cursor, sequence: Sequence, terms: Terms) -> Finding:
    row = cursor.row(
        RESYNC.format(
            state=state_query(sequence, terms, turn=TURN),
            oid=sequence.oid,
            sign=sequence.sign,
            stride=abs(sequence.increment),
            last=sequence.last,
            cache=sequence.cache,
            lock=LOCK_SPACE + sequence.oid,
            may_jump="true" if sequence.is_settable else "false",
            forced="'cramped'" if terms.force else "NULL",
            walk=WALK + WALKED_CACHES * sequence.cache
            if sequence.is_settable
            else WALK_WITHOUT_UPDATE,
        )
    )
    moved_to = row.moved_to
    if moved_to is not None and sequence.cache > 1:
        # A walk takes whole caches, and what is left of the last one is for this session alone.
        moved_to = cursor.row(LAST_VALUE.format(oid=sequence.oid)).last_value
    return finding_of(sequence, row, terms, moved_to)


def _blocked(finding: Finding) -> Finding:
    obstacle = Obstacle(
        "another session holds the advisory lock under which a sequence is moved",
        "try again, or look for it in pg_locks",
        hinders=Hinders.MOVING,
    )
    return Finding(
        finding.sequence, finding.next_value, finding.largest, finding.target, obstacle=obstacle
    )


# --- in a run -------------------------------------------------------------------------------------

RESOLVE = "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid AS oid"
# The key that is met first from the next value on, in the sequence's own direction.
NEAREST = """(
    SELECT pg_catalog.{aggregate}({column}){cast}::pg_catalog.numeric
    FROM ONLY {table}
    WHERE {column} {at_least} {next_value})"""


@contextmanager
def checking_table(
    connection: BaseDatabaseWrapper, table: str
) -> Iterator[tuple[Cursor, int | None]]:
    """Give a cursor for checks and the oid of ``table``, looked up as a statement would."""
    with driver.aside(connection) as cursor:
        try:
            oid = cursor.row(RESOLVE, [table]).oid
        except (NotSupportedError, ProgrammingError):  # what was misread is no name at all
            yield cursor, None
            return
        cursor.execute(SETTINGS, [None])
        yield cursor, oid


@dataclass(frozen=True)
class Recheck:
    """What a check in the middle of a run found of the sequences that feed one table.

    ``columns`` are those that they feed. ``free`` is how many values can be drawn until one is
    taken already, None where there is no end in sight.
    """

    columns: frozenset[str]
    findings: list[Finding]
    free: int | None


def recheck(
    connection: BaseDatabaseWrapper,
    table: str,
    *,
    given: frozenset[str] = frozenset(),
    is_unchecked: bool = False,
) -> Recheck | None:
    """Check the sequences that an INSERT into ``table``, as a statement names it, draws from.

    Those are the ones that feed other columns than ``given``. One whose next value is taken is
    resynced. Where the table ``is_unchecked``, every sequence that is behind is. Waits for the
    table's lock as long as the INSERT would. Returns None where there is no such table, or no
    sequence feeds it.
    """
    with checking_table(connection, table) as (cursor, oid):
        if oid is None:
            return None
        feeds, own = feeds_of_table(cursor, oid)
        sequences = sequences_of(cursor, feeds)
        fed = [{key.column for key in each.keys if key.place in own} for each in sequences]
        found = [
            (resync(cursor, each), None) if is_unchecked else _resync_if_taken(cursor, each, own)
            for each, columns in zip(sequences, fed, strict=True)
            if is_unchecked or not columns or not columns <= given
        ]
    if not any(fed):
        return None
    stretches = [free for _, free in found if free is not None]
    free = min(stretches, default=None) if len(found) == len(sequences) else 0
    findings = [finding for finding, _ in found if finding.moved_to is not None or is_unchecked]
    return Recheck(frozenset().union(*fed), findings, free)


def _resync_if_taken(
    cursor: Cursor, sequence: Sequence, own: dict[Place, bool]
) -> tuple[Finding, int | None]:
    """Resync where the INSERT is sure to collide; return also how many values are free.

    That is where the next value is in the very table already, in a column that is unique by itself.
    Elsewhere the value is what the INSERT takes on a database in sync.
    """
    finding = check(cursor, [sequence])[0]
    sole = [key for key in sequence.keys if own.get(key.place)]
    if not (finding.is_behind and sole):
        return finding, None
    free = _free(cursor, finding, sole)
    if free != 0 or finding.obstacle:
        return finding, free or None
    return resync(cursor, sequence), None


def _free(cursor: Cursor, finding: Finding, keys: list[Key]) -> int | None:
    """Return how many values can be drawn until one is taken; None for no end in sight."""
    sequence = finding.sequence
    rising = sequence.increment > 0
    nearest = [
        NEAREST.format(
            aggregate="min" if rising else "max",
            at_least=">=" if rising else "<=",
            column=key.quoted_column,
            table=key.quoted_table,
            next_value=finding.next_value,
            cast=key.cast,
        )
        for key in keys
    ]
    row = cursor.row(f"SELECT {'LEAST' if rising else 'GREATEST'}({', '.join(nearest)}) AS key")
    if row.key is None or finding.next_value is None:
        return None
    return -(-abs(int(row.key) - finding.next_value) // abs(sequence.increment))


@dataclass(frozen=True)
class Feeding:
    """What feeds the columns of a constraint, and what was found of it.

    ``why_not`` says in one sentence why nothing could be judged; else it is empty.
    """

    columns: tuple[str, ...]
    findings: list[Finding]
    why_not: str = ""


def resync_constraint(
    connection: BaseDatabaseWrapper,
    schema: str | None,
    table: str,
    constraint: str,
    *,
    move: bool,
) -> Feeding:
    """Check, and with ``move`` resync, the sequences that feed a unique or exclusion constraint.

    The table is looked up by its schema, or by the name alone where ``schema`` is None.
    """
    quoted = table.replace('"', '""')
    with checking_table(connection, f'"{quoted}"') as (cursor, oid):
        found = cursor.row(
            CONSTRAINT,
            {
                "oid": oid if schema is None else None,
                "schema": schema,
                "table": table,
                "constraint": constraint,
            },
        )
        if found is None or not found.columns:
            return Feeding((), [], f"{table} has no constraint {constraint} any more.")
        feeds, own = feeds_of_table(cursor, found.oid)
        sequences = [
            each
            for each in sequences_of(cursor, feeds)
            if any(key.column in found.columns and key.place in own for key in each.keys)
        ]
        findings = [
            resync(cursor, each) if move else check(cursor, [each])[0] for each in sequences
        ]
    return Feeding(tuple(found.columns), findings, "" if findings else _unfed(table, found))


def _unfed(table: str, found: Any) -> str:
    names = ", ".join(f"{table}.{column}" for column in found.columns)
    if found.is_filled:
        return (
            f"No sequence feeds {names}, but a trigger may fill it: whether its source is behind "
            "can't be known."
        )
    if found.is_computed:
        return f"The default of {names} is computed, so whether it is behind can't be known."
    return f"No sequence feeds {names}: the statement supplied this value itself."


def has_lost_default(connection: BaseDatabaseWrapper, schema: str, table: str, column: str) -> bool:
    """Tell whether a column is a primary key of whole numbers that nothing fills any more."""
    with checking(connection) as cursor:
        row = cursor.row(IS_LOST, [schema, table, column])
        return bool(row and row.is_lost)
