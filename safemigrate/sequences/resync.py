"""The one way to move a sequence past the keys it feeds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from .sequence import Hinders, Obstacle
from .state import USUAL, WALK_WITHOUT_UPDATE, Terms, check, finding_of, state_query

if TYPE_CHECKING:
    from safemigrate.driver import Cursor

    from .finding import Finding
    from .sequence import Sequence

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


def resync_if_behind(cursor: Cursor, sequence: Sequence) -> Finding:
    """Move ``sequence`` forward, never backward, past the largest key that it feeds.

    A sequence that is in sync is not written to; one with an obstacle is only checked.
    """
    finding = check(cursor, [sequence])[0]
    if finding.obstacle or not finding.is_behind:
        return finding
    return move_past(cursor, sequence)


def move_past(cursor: Cursor, sequence: Sequence, terms: Terms = USUAL) -> Finding:
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
    return replace(finding, obstacle=obstacle)
