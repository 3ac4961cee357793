"""Whether a sequence is behind the keys it feeds.

Every statement here runs inside :func:`safemigrate.sequences.checking.checking`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .finding import Finding
from .sequence import Hinders, Key, Obstacle, Sequence

if TYPE_CHECKING:
    from collections.abc import Sequence as Rows

    from safemigrate.driver import Cursor

# Without UPDATE on the sequence it can only be walked: this many values take about a second.
WALK_WITHOUT_UPDATE = 1_000_000
# A table of up to this many bytes is read in full if no index leads with the key.
SMALL = 1024 * 1024
# This many bytes of a table are read to see whether a number repeats.
SAMPLE = 2 * SMALL


class Terms(NamedTuple):
    """What a person asks for beyond the usual.

    ``headroom`` is the number of values to leave free past the largest key. ``scan`` reads even a
    large table in full if it has no index for the key. ``force`` overrules obstacles, if they
    allow it.
    """

    headroom: int = 0
    scan: bool = False
    force: bool = False


USUAL = Terms()

# Numbers alone, so that many such states can be asked for in one UNION ALL. The target is the
# last value in the sequence's own residue that is not past the largest key and the headroom.
STATE = """
    SELECT {oid} AS oid, k.largest, s.next_value, t.target,
           CASE WHEN {weight} > {small} THEN 'unindexed'
                WHEN {sign} * ({last} - t.target) < {stride} THEN 'exhausted'
                WHEN 10 * {sign} * ({last} - t.target) < {span}
                     AND 10 * {sign} * (t.target - s.next_value) > {span} THEN 'cramped'
                -- One stray key may do it, and the rows say nothing of whether it is meant.
                WHEN {sign} * (t.target - s.next_value) > 0.8 * {span} THEN 'cramped'
                WHEN {sign} * (t.target - s.next_value) > {stride} * {reach} THEN 'out of reach'
           END AS misfit
    FROM (SELECT {largest} AS largest OFFSET 0) AS k
    CROSS JOIN LATERAL (
        {next_value} k.largest IS NOT DISTINCT FROM k.largest {turn} OFFSET 0) AS s
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN {sign} * (k.largest - s.next_value) + {headroom} >= 0
            THEN s.next_value + {increment} * pg_catalog.div(
                     {sign} * (k.largest - s.next_value) + {headroom}, {stride})
        END AS target) AS t
"""
KEY = """(
        SELECT pg_catalog.{aggregate}({column}){cast}::pg_catalog.numeric
        FROM {only} {table}
        WHERE {column} BETWEEN '{lowest}'::{bound} AND '{highest}'::{bound} {unless})"""
REPEATS = """
    SELECT EXISTS (
        SELECT FROM (SELECT {column} AS value FROM {only} {table} TABLESAMPLE SYSTEM ({share})) AS s
        WHERE s.value IS NOT NULL
        GROUP BY s.value
        HAVING pg_catalog.count(*) > 1) AS repeats
"""
UNLESS_LARGE = "AND {weight} <= {small}"
WEIGHT = "(SELECT pg_catalog.pg_relation_size({oid}))"
WEIGHT_OF_PARTITIONS = """(
        SELECT COALESCE(pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)), 0)::pg_catalog.int8
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


def check(cursor: Cursor, sequences: Rows[Sequence], terms: Terms = USUAL) -> list[Finding]:
    """Read, without writing and in one statement, whether ``sequences`` are behind."""
    sequences = [each.forced() if terms.force else each for each in sequences]
    visible = {each.oid: each for each in sequences if _is_visible(each)}
    found = {}
    if visible:
        query = " UNION ALL ".join(f"({state_query(each, terms)})" for each in visible.values())
        for row in cursor.rows(query):
            found[row.oid] = _judged(cursor, finding_of(visible[row.oid], row, terms), terms)
    return [found.get(each.oid) or Finding(each, obstacle=each.obstacle) for each in sequences]


def _judged(cursor: Cursor, finding: Finding, terms: Terms) -> Finding:
    """Leave a sequence unjudged whose numbers restart on purpose, as the data shows."""
    key = next((key for key in finding.sequence.keys if key.has_companions), None)
    if key is None or terms.force or not finding.is_behind or not repeats(cursor, key):
        return finding
    return Finding(finding.sequence, obstacle=_restarted(key))


def repeats(cursor: Cursor, key: Key) -> bool:
    """Tell, from some 2 MB of the table, whether values of ``key`` occur more than once."""
    names = {"column": key.quoted_column, "table": key.quoted_table}
    only = "" if key.is_partitioned else "ONLY"
    size = cursor.row(f"SELECT {_weight(key)} AS bytes").bytes
    share = min(100.0, 100.0 * SAMPLE / max(1, size))
    row = cursor.row(REPEATS.format(**names, only=only, share=share))
    return bool(row.repeats)


def _restarted(key: Key) -> Obstacle:
    return Obstacle(
        f"{key.quoted_table}.{key.quoted_column} is unique only together with other columns, and "
        "its numbers repeat: they restart on purpose",
        "if they should not, use resyncsequences --force",
        can_force=True,
    )


def _is_visible(sequence: Sequence) -> bool:
    return sequence.obstacle is None or sequence.obstacle.hinders is Hinders.MOVING


def state_query(sequence: Sequence, terms: Terms, turn: str = "") -> str:
    next_value = NEXT_VALUE if sequence.is_readable else NEXT_VALUE_WITHOUT_SELECT
    unindexed = [key for key in sequence.keys if not (key.is_indexed or key.is_heir or terms.scan)]
    return STATE.format(
        oid=sequence.oid,
        increment=sequence.increment,
        stride=abs(sequence.increment),
        sign=sequence.sign,
        headroom=terms.headroom,
        last=sequence.last,
        span=sequence.highest - sequence.lowest,
        reach="'Infinity'::pg_catalog.float8" if sequence.is_settable else WALK_WITHOUT_UPDATE,
        weight=f"GREATEST(0, {', '.join(map(_weight, unindexed))})" if unindexed else 0,
        small=SMALL,
        largest=_farthest(sequence, terms),
        next_value=next_value.format(
            increment=sequence.increment, sequence=sequence.quoted, oid=sequence.oid
        ),
        turn=turn,
    )


def _farthest(sequence: Sequence, terms: Terms) -> str:
    extremes = [_extreme(key, sequence, terms) for key in sequence.keys]
    if len(extremes) == 1:
        return extremes[0]
    return f"{'GREATEST' if sequence.increment > 0 else 'LEAST'}({', '.join(extremes)})"


def _extreme(key: Key, sequence: Sequence, terms: Terms) -> str:
    is_free = key.is_indexed or terms.scan
    return KEY.format(
        aggregate=sequence.aggregate,
        column=key.quoted_column,
        only="" if key.is_partitioned else "ONLY",
        table=key.quoted_table,
        lowest=max(0, sequence.lowest) if key.type == "oid" else sequence.lowest,
        highest=sequence.highest,
        bound=f"pg_catalog.{key.type}" if key.type in ("numeric", "oid") else "pg_catalog.int8",
        cast=key.cast,
        unless="" if is_free else UNLESS_LARGE.format(weight=_weight(key), small=SMALL),
    )


def _weight(key: Key) -> str:
    weight = WEIGHT_OF_PARTITIONS if key.is_partitioned else WEIGHT
    return weight.format(oid=key.relation)


def finding_of(sequence: Sequence, row: Any, terms: Terms, moved_to: Any = None) -> Finding:
    """Return what a row of :data:`STATE` says."""
    finding = Finding(
        sequence=sequence,
        next_value=int(row.next_value),
        largest=None if row.largest is None else int(row.largest),
        target=None if row.target is None else int(row.target),
        moved_to=None if moved_to is None else int(moved_to),
    )
    if row.misfit == "unindexed":
        return Finding(sequence, obstacle=_unindexed(sequence))
    if not finding.is_behind:
        return finding
    obstacle = sequence.obstacle or _misfit(finding, row.misfit, terms)
    is_overruled = obstacle and obstacle.can_force and terms.force
    return replace(finding, obstacle=None if is_overruled else obstacle)


def _unindexed(sequence: Sequence) -> Obstacle:
    key = next(key for key in sequence.keys if not (key.is_indexed or key.is_heir))
    hinders = Hinders.CHECKING if key.is_unique else Hinders.JUDGING
    return Obstacle(
        f"no index of {key.quoted_table} leads with {key.quoted_column}, and the table is too "
        "large to be read in full unless asked to",
        "use resyncsequences --scan",
        hinders=hinders,
    )


def _misfit(finding: Finding, misfit: str | None, terms: Terms) -> Obstacle | None:
    sequence = finding.sequence
    if misfit == "exhausted" and terms.headroom:
        return Obstacle(
            f"the range ends at {sequence.last}: there are no {terms.headroom} values left past "
            f"the largest key, {finding.largest}",
            "ask for fewer, or widen the column and the sequence",
            is_final=True,
            hinders=Hinders.MOVING,
        )
    if misfit == "exhausted":
        return Obstacle(
            f"the range ends at {sequence.last}: "
            f"there is no value left past the largest key, {finding.largest}",
            "move that row to another key, or widen the column and the sequence",
            is_final=True,
            hinders=Hinders.MOVING,
        )
    if misfit == "cramped":
        return Obstacle(
            f"moving past the largest key, {finding.largest}, would use up "
            f"{finding.percent_used} % of the sequence's range, and there is no way back",
            f"check that row; if its key is intended, {finding.repair} or resyncsequences --force",
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
