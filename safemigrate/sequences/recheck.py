"""What a run checks of one table: before an INSERT that it has disturbed, and after a collision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .catalogue import HOLDS, sequences_of
from .checking import LONG_WAIT, checking_table
from .feeds import feeds_of_table
from .resync import move_past, resync_if_behind
from .state import check

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.driver import Cursor

    from .finding import Finding
    from .sequence import Key, Place, Sequence

# The columns of an index, those in its expressions too, and the trigger that may fill them.
CONSTRAINT = f"""
SELECT t.oid,
       ARRAY (
           SELECT a.attname::pg_catalog.text
           FROM pg_catalog.pg_attribute AS a
           WHERE a.attrelid = i.indrelid AND {HOLDS.format(attribute="a.attnum")}
           ORDER BY a.attnum) AS columns,
       i.indexrelid IS NOT NULL AS is_there,
       EXISTS (
           -- Before each row of an INSERT: 1 is for each row, 2 before it, 4 an INSERT.
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
GONE = (
    "{table} has no constraint {constraint} now: the transaction that failed had made or renamed "
    "it, and took it back. Whether a sequence was behind then can't be known any more."
)
# As one on (true), for a table of one row, or on the row as a whole.
COLUMNLESS = (
    "The index {constraint} of {table} names no column, so it can't be known whether a sequence is "
    "involved."
)
# The key that is met first from the next value on, in the sequence's own direction.
NEAREST = """(
    SELECT pg_catalog.{aggregate}({column}){cast}::pg_catalog.numeric
    FROM {table}
    WHERE {column} {at_least} {next_value})"""


@dataclass
class Recheck:
    """What a check in the middle of a run found of the sequences that feed one table.

    ``columns`` are those that they feed. ``free`` is how many values can be drawn until one is
    taken already, None where there is no end in sight; it is counted down as they are drawn.
    """

    columns: frozenset[str]
    findings: list[Finding]
    free: int | None


def recheck(  # noqa: PLR0913 - a table, and how it is to be checked
    connection: BaseDatabaseWrapper,
    table: str,
    *,
    listed: frozenset[str] = frozenset(),
    is_unchecked: bool = False,
    given: frozenset[str] | None = frozenset(),
    is_of_sweep: bool = False,
) -> Recheck:
    """Check the sequences that an INSERT into ``table``, as a statement names it, draws from.

    Those are the ones that feed other columns than the statement has ``listed``. One whose next
    value is taken is resynced. Where the table ``is_unchecked``, every sequence that is behind is,
    except where the run itself has ``given`` values for its column (None: for any). Waits for the
    table's lock as long as the INSERT would. Of a table that is not there nothing is found.

    Where it ``is_of_sweep``, no INSERT is known: whatever may collide with what is there is
    resynced, and no lock is waited for long.
    """
    lock_timeout = LONG_WAIT if is_of_sweep else None
    with checking_table(connection, table, lock_timeout=lock_timeout) as (cursor, oid):
        if oid is None:
            return Recheck(frozenset(), [], None)
        feeds, own = feeds_of_table(cursor, oid)
        if is_of_sweep:
            own = dict.fromkeys(own, True)
        sequences = sequences_of(cursor, feeds)
        fed = [{key.column for key in each.keys if key.place in own} for each in sequences]
        found: list[tuple[Finding, int | None]] = []
        for sequence, columns in zip(sequences, fed, strict=True):
            if not is_unchecked:
                if not columns or not columns <= listed:
                    found.append(_resync_if_taken(cursor, sequence, own))
            elif given is not None and not columns & given:
                found.append((resync_if_behind(cursor, sequence), None))
    # What was left out may be taken at once: then the next INSERT checks again.
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
    return move_past(cursor, sequence), None


def _free(cursor: Cursor, finding: Finding, keys: list[Key]) -> int | None:
    """Return how many values can be drawn until one is taken; None for no end in sight."""
    sequence = finding.sequence
    rising = sequence.increment > 0
    nearest = [
        NEAREST.format(
            aggregate="min" if rising else "max",
            at_least=">=" if rising else "<=",
            column=key.quoted_column,
            table=key.quoted_table if key.is_partitioned else f"ONLY {key.quoted_table}",
            next_value=finding.next_value,
            cast=key.cast,
        )
        for key in keys
    ]
    row = cursor.row(f"SELECT {'LEAST' if rising else 'GREATEST'}({', '.join(nearest)}) AS key")
    if row.key is None or finding.next_value is None:
        return None
    return -(-abs(int(row.key) - finding.next_value) // abs(sequence.increment))


class Feeding(NamedTuple):
    """What feeds the columns of a constraint, and what was found of it.

    ``why_not`` says in one sentence why nothing could be judged; else it is empty. ``is_drawn``
    says that a sequence has given the value, and is in sync by that very draw.
    """

    columns: tuple[str, ...]
    findings: list[Finding]
    why_not: str = ""
    is_drawn: bool = False


def resync_constraint(  # noqa: PLR0913 - what the server says of a collision
    connection: BaseDatabaseWrapper,
    schema: str | None,
    table: str,
    constraint: str,
    *,
    listed: frozenset[str] | None = None,
    may_draw: bool = False,
    move: bool,
) -> Feeding:
    """Check, and with ``move`` resync, the sequences that feed a unique or exclusion constraint.

    The table is looked up by its schema, or by the name alone where ``schema`` is None. ``listed``
    are the columns that the statement names, None if that is not known, and gives itself unless it
    ``may_draw`` their values: then the sequences that feed them are left out.
    """
    given = frozenset() if may_draw or listed is None else listed
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
        if found is None or not found.is_there:
            return Feeding((), [], GONE.format(table=table, constraint=constraint))
        if not found.columns:
            return Feeding((), [], COLUMNLESS.format(table=table, constraint=constraint))
        feeds, own = feeds_of_table(cursor, found.oid)
        fed = [
            (each, {key.column for key in each.keys if key.place in own} & set(found.columns))
            for each in sequences_of(cursor, feeds)
        ]
        findings = [
            resync_if_behind(cursor, each) if move else check(cursor, [each])[0]
            for each, columns in fed
            if columns - given
        ]
    is_fed = any(columns for _, columns in fed)
    why_not = "" if is_fed else _unfed(table, found)
    sole = {key.column for each, _ in fed for key in each.keys if own.get(key.place)}
    is_left_out = listed is not None and sole - listed >= set(found.columns)
    is_drawn = is_left_out and all(each.status == "in sync" for each in findings)
    return Feeding(tuple(found.columns), findings, why_not, is_drawn)


def _unfed(table: str, found: Any) -> str:
    names = ", ".join(f"{table}.{column}" for column in found.columns)
    if found.is_filled:
        return (
            f"No sequence feeds {names}, but a trigger may fill it: whether its source is behind "
            "can't be known."
        )
    if found.is_computed:
        return f"The default of {names} is computed, so whether it is behind can't be known."
    return (
        f"No sequence feeds {names}: the statement supplied this value itself, unless its "
        "transaction had made one do so."
    )
