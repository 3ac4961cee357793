"""Which tables the run has disturbed, so that their next INSERT needs a check of its own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .statements import Write


@dataclass
class _Table:
    # The columns for which statements have supplied values; None once that may be all of them.
    given: frozenset[str] | None = frozenset()
    # The columns that a sequence feeds, according to the last check.
    fed: frozenset[str] | None = None
    # How many values the sequence can give before one is taken; None if no end is in sight.
    free: int | None = 0

    def is_disturbed_for(self, insert: Write) -> bool:
        """Tell whether ``insert`` leaves out a column for which the run has supplied values.

        Once it is known what the sequences feed, no other column matters.
        """
        if insert.columns is None or (self.free is None or self.free > 0):
            return False
        if self.fed is None:
            return self.given is None or not self.given <= insert.columns
        drawn = self.fed - insert.columns
        return bool(drawn if self.given is None else drawn & self.given)

    def give(self, columns: frozenset[str] | None) -> None:
        self.given = None if columns is None or self.given is None else self.given | columns
        if columns is None or self.fed is None or columns & self.fed:
            self.free = 0

    def draw(self, count: int | None) -> None:
        if self.free is not None:
            self.free = max(0, self.free - count) if count is not None else 0


@dataclass
class Disturbed:
    """What the statements of one connection have supplied, by the tables' unqualified names."""

    _tables: defaultdict[str, _Table] = field(default_factory=lambda: defaultdict(_Table))
    # Of the tables of these names some could not be checked; those written so have been, since.
    _unchecked: set[str] = field(default_factory=set)
    _checked: set[str] = field(default_factory=set)

    def mark_unchecked(self, names: Iterable[str]) -> None:
        """Remember tables whose sequences the sweep could not check."""
        self._unchecked.update(names)

    def is_unchecked(self, insert: Write) -> bool:
        """Tell whether the sweep could not check what the INSERT draws from.

        Once the run has given keys, those that were there before can't be told from them: then it
        is a disturbed table like any other.
        """
        is_unchecked = insert.name in self._unchecked and insert.table not in self._checked
        return is_unchecked and not self._is_disturbed_for(insert)

    def needs_recheck(self, insert: Write, leading: frozenset[Write]) -> bool:
        """Tell whether the INSERT draws from a sequence that may not be in sync any more."""
        if self._is_disturbed_for(insert):
            return insert in leading
        return self.is_unchecked(insert)

    def _is_disturbed_for(self, insert: Write) -> bool:
        table = self._tables.get(insert.name)
        return table is not None and table.is_disturbed_for(insert)

    def settle(self, insert: Write, fed: frozenset[str], free: int | None) -> None:
        """Remember what a check found: the columns that are fed, and how many draws are free."""
        table = self._tables[insert.name]
        table.fed, table.free = fed, free
        self._checked.add(insert.table)

    def learn(self, inserts: Iterable[Write], updates: Iterable[Write], count: int | None) -> None:
        """Remember what a statement supplied, and the ``count`` of rows it inserted, if known."""
        for insert in inserts:
            table = self._tables[insert.name]
            table.draw(count)
            table.give(insert.columns)
        for update in updates:
            self._tables[update.name].give(update.columns)
