"""Check again, in the middle of a run, the sequences that feed one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .catalogue import table_of
from .state import Finding, look, looking, resync, settle

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True)
class Recheck:
    columns: frozenset[str]
    findings: list[Finding]
    free: int | None


def recheck(
    connection: BaseDatabaseWrapper, table: str, *, is_unchecked: bool, move: bool
) -> Recheck | None:
    with looking(connection) as cursor:
        oid = settle(cursor, table)
        found = None if oid is None else table_of(cursor, oid=oid)
        if found is None or not found.fed:
            return None
        findings, free = [], None
        for sequence in found.fed.values():
            state = look(cursor, [sequence])[0]
            if not state.is_behind:
                continue
            key = sequence.keys[0]
            cursor.execute(
                f"SELECT min({key.quoted_column}) FROM {key.quoted_table}"
                f" WHERE {key.quoted_column} >= %s",
                [state.next_value],
            )
            (nearest,) = cursor.fetchone()
            ahead = None if nearest is None else nearest - state.next_value
            if is_unchecked or ahead == 0:
                findings.append(resync(cursor, sequence))
            elif ahead is not None:
                free = ahead if free is None else min(free, ahead)
        return Recheck(frozenset(found.fed), findings, free)
