"""The table that ``resyncsequences`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemigrate.printing import printable

from . import losses
from .findings import advice_of, is_short
from .formats import Format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.management.color import Style

    from safemigrate.sequences.finding import Finding

    from .findings import Tally

    Cells = tuple[str, ...]

HEADINGS = ("Sequence", "Column", "Next value", "Largest key", "")
# With numbers of ten digits a row has 120 characters then; a longer name gets a line of its own.
LONGEST_NAMES = (36, 30)
# So many remedies are printed unless all are asked for.
REMEDIES = 20


class Table(Format):
    """Rows, and below them what to do about those that stay behind.

    ``to_type`` is the command that would move what a mere check has found, ``to_restore`` the one
    that would restore what is lost.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        verbosity: int,
        *,
        style: Style,
        to_type: str = "",
        to_restore: str = "",
    ) -> None:
        super().__init__(write, verbosity)
        self.style = style
        self.to_type = to_type
        self.to_restore = to_restore
        self._listed: list[Finding] = []

    def add(self, finding: Finding) -> None:
        if self.is_listed(finding):
            self._listed.append(finding)

    def end(self, tally: Tally, error: str = "") -> None:
        if not self.verbosity:
            return
        for line in (*self._rows(), *self._remedies()):
            self.write(line)
        if not error:
            self.write(self.style.MIGRATE_HEADING(str(tally)))
            if self.to_type and any(each.is_behind and not each.obstacle for each in self._listed):
                self.write(f"To move what is behind: {self.to_type}")
        for line in (*tally.nearly_used_up, *losses.lines(tally.lost, self.to_restore)):
            self.write(self.style.WARNING(line))

    def _rows(self) -> Iterator[str]:
        if self._listed:
            rows = [
                (HEADINGS, self.style.MIGRATE_HEADING),
                *((_cells(each), self._style_of(each)) for each in self._listed),
            ]
            widths = _widths([cells for cells, _ in rows])
            yield from (style(line) for cells, style in rows for line in _lines(cells, widths))

    def _style_of(self, finding: Finding) -> Callable[[str], str]:
        styles = {"resynced": self.style.SUCCESS, "behind": self.style.WARNING}
        return styles.get(finding.status, str)

    def _remedies(self) -> Iterator[str]:
        left = [each for each in self._listed if each.obstacle]
        told = left if self.verbosity > 1 else left[:REMEDIES]
        for finding in told:
            yield printable(f"{finding.sequence} {self._what_of(finding)}: {finding.reasons}")
            yield from (printable(f"  {advice}") for advice in advice_of(finding))
        if more := len(left) - len(told):
            yield f"{more} more could not be checked or moved; --verbosity 2 says why."

    def _what_of(self, finding: Finding) -> str:
        if finding.is_behind:
            return f"is behind and {'would not be' if self.to_type else 'was not'} moved"
        return "could not be checked" if finding.status == "unknown" else "is not judged"


def _cells(finding: Finding) -> Cells:
    sequence = finding.sequence
    here = f"{sequence.schema}."
    outcome: str = finding.status
    if finding.moved_to is not None:
        outcome = f"resynced to {finding.new_next_value}"
    elif is_short(finding):
        outcome = "short of headroom"
    return (
        printable(str(sequence)),
        ", ".join(printable(str(key).removeprefix(here)) for key in sequence.keys),
        "" if finding.next_value is None else str(finding.next_value),
        "" if finding.largest is None else str(finding.largest),
        outcome,
    )


def _widths(rows: list[Cells]) -> list[int]:
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [*map(min, longest, LONGEST_NAMES), *longest[len(LONGEST_NAMES) :]]


def _lines(cells: Cells, widths: list[int]) -> Iterator[str]:
    """Yield a row's line; before it a line for each name, where they are too long."""
    names = cells[: len(LONGEST_NAMES)]
    if any(len(name) > width for name, width in zip(names, widths, strict=False)):
        yield from (f"{indent}{name}" for indent, name in zip(("  ", "    "), names, strict=True))
        cells = ("", "", *cells[len(names) :])
    padded = [
        cell.ljust(width) if i in {0, 1, 4} else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    yield f"  {'  '.join(padded)}".rstrip()
