"""Which tables the run has disturbed, so that their next INSERT needs a check of its own."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from safemigrate.sequences.finding import Finding
    from safemigrate.sequences.recheck import Recheck

    from .statements import Write


class Disturbed:
    """What the statements of one connection have given each table, and what checks have found."""

    def __init__(self) -> None:
        # The columns for which statements have given values; None once that may be all of them.
        # Under a table's name alone, which tables of several schemas may share, and under the name
        # as it was written.
        self._given: dict[str, frozenset[str] | None] = {}
        # Under the name alone, and then under the name as written.
        self._checks: defaultdict[str, dict[str, Recheck]] = defaultdict(dict)
        # Checked once: later the keys that triggers, say, have given can't be told from the others.
        self._unchecked: set[str] = set()
        self._late: set[str] = set()

    def mark(self, finding: Finding) -> None:
        """Remember the tables of a sequence that the sweep could not check, or left behind.

        Some can be resynced later: a number that is too large to be read once an index has made it
        unique, and one whose range was too narrow once it is wider.
        """
        keys = finding.sequence.keys
        may_become_key = finding.status == "not judged" and not all(key.is_unique for key in keys)
        is_late = may_become_key or finding.is_behind
        if is_late or finding.status == "unknown":
            for name in {key.table for key in keys}:
                (self._late if is_late else self._unchecked).add(name)
                self._checks.pop(name, None)  # one of another tenant may have been checked

    def forget_late(self) -> None:
        """Have those checked again, after a statement that may have altered what was in the way."""
        for name in self._late:
            self._checks.pop(name, None)

    def alter(self, tables: Iterable[tuple[str, str | None]]) -> None:
        """Remember tables that have a new name, or another sequence.

        That sequence was never in sync with what the table holds: whatever it holds may be in its
        way, as if the run had given it.
        """
        for name, new in tables:
            self._checks.pop(new or name, None)
            if new is None:
                self._give(name, None)
                continue
            for marked in (self._unchecked, self._late):
                if name in marked:
                    marked.add(new)
            self._give(new, self._given.get(name, frozenset()))

    def is_unchecked(self, insert: Write) -> bool:
        """Tell whether the sweep could not check what the INSERT draws from.

        Once the run has given keys, those that were there before can't be told from them: then it
        is a disturbed table like any other.
        """
        is_marked = insert.name in self._unchecked or insert.name in self._late
        return is_marked and self._check_of(insert) is None and not self._is_disturbed_for(insert)

    def given(self, insert: Write) -> frozenset[str] | None:
        """Return the columns of the very table that the run has given; None if it may be all."""
        return self._given.get(insert.table, frozenset())

    def has_given(self, finding: Finding) -> bool:
        """Tell whether the run may have given a key that the sequence feeds."""
        for key in finding.sequence.keys:
            given = self._given.get(key.table, frozenset())
            if given is None or key.column in given:
                return True
        return False

    def needs_recheck(self, insert: Write, leading: frozenset[Write]) -> bool:
        """Tell whether the INSERT draws from a sequence that may not be in sync any more."""
        if self._is_disturbed_for(insert):
            return insert in leading
        return self.is_unchecked(insert)

    def _check_of(self, insert: Write) -> Recheck | None:
        return self._checks[insert.name].get(insert.table)

    def _is_disturbed_for(self, insert: Write) -> bool:
        """Tell whether ``insert`` leaves out a column for which the run has supplied values.

        Once it is known what the sequences feed, no other column matters.
        """
        given = self._given.get(insert.name, frozenset())
        check = self._check_of(insert)
        if insert.columns is None or (check and check.free != 0):
            return False
        if check is None:
            return given is None or not given <= insert.columns
        drawn = check.columns - insert.columns
        return bool(drawn if given is None else drawn & given)

    def remember_check(self, insert: Write, found: Recheck) -> None:
        self._checks[insert.name][insert.table] = found

    def draw(self, inserts: Iterable[Write], count: int | None) -> None:
        """Remember that ``count`` values were drawn; None is an unknown number."""
        for insert in inserts:
            for check in self._checks[insert.name].values():
                if check.free is not None:
                    check.free = 0 if count is None else max(0, check.free - count)

    def learn(self, inserts: Iterable[Write], updates: Iterable[Write], count: int | None) -> None:
        """Remember what a statement supplied, and the ``count`` of rows it inserted, if known."""
        self.draw(inserts, count)
        for write in chain(inserts, updates):
            columns = write.columns
            self._give(write.name, columns)
            self._give(write.table, columns)
            for check in self._checks[write.name].values():
                if columns is None or columns & check.columns:
                    check.free = 0

    def _give(self, name: str, columns: frozenset[str] | None) -> None:
        given = self._given.get(name, frozenset())
        if given is None or (columns is not None and columns <= given):
            return  # of most statements nothing is new
        self._given[name] = None if columns is None else given | columns
