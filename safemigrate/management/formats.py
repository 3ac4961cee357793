"""How ``resyncsequences`` prints what it finds: as a table, as SQL, as one JSON document."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from time import monotonic
from typing import TYPE_CHECKING, Any, get_args

from safemigrate.management import losses
from safemigrate.printing import printable
from safemigrate.sequences.catalogue import Hinders
from safemigrate.sequences.expected import percent_used
from safemigrate.sequences.state import Status, sign_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.management.color import Style

    from safemigrate.sequences.catalogue import Obstacle
    from safemigrate.sequences.expected import Loss
    from safemigrate.sequences.state import Finding

    Cells = tuple[str, ...]

HEADINGS = ("Sequence", "Column", "Next value", "Largest key", "")
# With numbers of ten digits a row has 120 characters then; a longer name gets a line of its own.
LONGEST_NAMES = (36, 30)
# What a long run has found so far is printed every so many seconds, and not lost if it is ended.
PATIENCE = 2.0
# So many remedies are printed unless all are asked for.
REMEDIES = 20


@dataclass
class Tally:
    """How many sequences have each status; ``short`` are those behind for want of headroom only."""

    headroom: int = 0
    other_vendor: str = ""
    counts: Counter[Status] = field(default_factory=Counter)
    short: Counter[Status] = field(default_factory=Counter)
    lost: list[Loss] = field(default_factory=list)
    nearly_used_up: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.counts[finding.status] += 1
        self.nearly_used_up += filter(None, [losses.usage(finding)])
        self.short[finding.status] += _is_short(finding)

    def __str__(self) -> str:
        if self.other_vendor:
            return f"{self.other_vendor} has no sequences that could be behind: nothing to do."
        total = self.counts.total()
        sequences = "sequence feeds" if total == 1 else "sequences feed"
        found = ", ".join(f"{count} {what}" for count, what in self._parts() if count)
        return f"{total} {sequences} a key{': ' if found else ''}{found}."

    def _parts(self) -> Iterator[tuple[int, str]]:
        counts, short = self.counts, self.short
        yield counts["in sync"], "in sync"
        yield counts["resynced"] - short["resynced"], "behind and resynced"
        yield short["resynced"], f"moved to leave {self.headroom} values free"
        yield counts["behind"] - short["behind"], "behind"
        yield short["behind"], f"with fewer than {self.headroom} values free"
        yield counts["unknown"], "not checked"
        yield counts["exempt"], "exempt"


def _is_short(finding: Finding) -> bool:
    """Tell whether a sequence is past its largest key, but not by the headroom asked for."""
    if finding.target is None or finding.largest is None or finding.next_value is None:
        return False
    return sign_of(finding.sequence) * (finding.next_value - finding.largest) > 0


def obstacles_of(finding: Finding) -> list[Obstacle]:
    """List all that stands in the way, so that nobody clears it away one by one."""
    first = finding.obstacle
    if first is None:
        return []
    others = (each for each in finding.sequence.obstacles if each != first)
    is_final = first.hinders is Hinders.JUDGING
    return [first, *(each for each in others if not is_final or each.hinders is first.hinders)]


def _reasons(finding: Finding) -> str:
    return "; ".join(each.reason for each in obstacles_of(finding))


def _advice(finding: Finding) -> list[str]:
    advice = [each.advice for each in obstacles_of(finding) if each.advice]
    if finding.repair and not any(finding.repair in each for each in advice):
        advice.append(f"{'or, ' if advice else ''}with the right to: {finding.repair}")
    return advice


def _new_next_value(finding: Finding) -> int | None:
    moved_to = finding.moved_to
    return None if moved_to is None else moved_to + finding.sequence.increment


class Format:
    """What is told of each finding, at once or in the end; ``write`` takes a line."""

    def __init__(self, write: Callable[[str], None], verbosity: int) -> None:
        self.write = write
        self.verbosity = verbosity

    def add(self, finding: Finding) -> None:
        raise NotImplementedError

    def end(self, tally: Tally, error: str = "") -> None:
        """Tell the rest; ``error`` is what has ended the run early."""
        raise NotImplementedError

    def is_listed(self, finding: Finding) -> bool:
        return self.verbosity > 1 or finding.status not in ("in sync", "exempt")


class Table(Format):
    """Rows, printed every few seconds; below them what to do about those that stay behind.

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
        self._held: list[Finding] = []
        self._left: list[Finding] = []
        self._is_movable = False
        self._widths: list[int] = []
        self._printed_at = monotonic()

    def add(self, finding: Finding) -> None:
        if not self.verbosity or not self.is_listed(finding):
            return
        self._held.append(finding)
        if finding.obstacle:
            self._left.append(finding)
        self._is_movable |= finding.is_behind and not finding.obstacle
        if monotonic() - self._printed_at >= PATIENCE:
            self._print_held()

    def end(self, tally: Tally, error: str = "") -> None:
        if not self.verbosity:
            return
        self._print_held()
        for line in self._remedies():
            self.write(line)
        if not error:
            self.write(self.style.MIGRATE_HEADING(str(tally)))
            if self.to_type and self._is_movable:
                self.write(f"To move what is behind: {self.to_type}")
        for line in (*tally.nearly_used_up, *losses.lines(tally.lost, self.to_restore)):
            self.write(self.style.WARNING(line))

    def _print_held(self) -> None:
        rows = [(_cells(each), self._style_of(each)) for each in self._held]
        if rows and not self._widths:
            rows.insert(0, (HEADINGS, self.style.MIGRATE_HEADING))
        self._widths = _widths([cells for cells, _ in rows], self._widths)
        for cells, style in rows:
            for line in _lines(cells, self._widths):
                self.write(style(line))
        self._held.clear()
        self._printed_at = monotonic()

    def _style_of(self, finding: Finding) -> Callable[[str], str]:
        styles = {"resynced": self.style.SUCCESS, "behind": self.style.WARNING}
        return styles.get(finding.status, str)

    def _remedies(self) -> Iterator[str]:
        shown = self._left if self.verbosity > 1 else self._left[:REMEDIES]
        for finding in shown:
            yield _printable(f"{finding.sequence} {self._what_of(finding)}: {_reasons(finding)}")
            yield from (_printable(f"  {advice}") for advice in _advice(finding))
        if more := len(self._left) - len(shown):
            yield f"{more} more could not be checked or moved; --verbosity 2 says why."

    def _what_of(self, finding: Finding) -> str:
        if finding.is_behind:
            return f"is behind and {'would not be' if self.to_type else 'was not'} moved"
        return "could not be checked" if finding.status == "unknown" else "is exempt"


def _printable(text: str) -> str:
    return printable(text, "utf-8")


def _cells(finding: Finding) -> Cells:
    sequence = finding.sequence
    here = f"{sequence.schema}."
    outcome: str = finding.status
    if finding.moved_to is not None:
        outcome = f"resynced to {_new_next_value(finding)}"
    elif _is_short(finding):
        outcome = "short of headroom"
    return (
        _printable(str(sequence)),
        ", ".join(_printable(str(key).removeprefix(here)) for key in sequence.keys),
        "" if finding.next_value is None else str(finding.next_value),
        "" if finding.largest is None else str(finding.largest),
        outcome,
    )


def _widths(rows: list[Cells], before: list[int]) -> list[int]:
    """Return the columns' widths, not narrower than they were before."""
    columns = zip(*rows, strict=True)
    longest = [max(map(len, column)) for column in columns]
    capped = [
        min(width, most or width)
        for width, most in zip_longest(longest, LONGEST_NAMES[: len(longest)], fillvalue=0)
    ]
    return [max(pair) for pair in zip_longest(capped, before, fillvalue=0)]


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


class Sql(Format):
    """What a DBA could run, with a comment for all else."""

    def __init__(
        self, write: Callable[[str], None], verbosity: int, *, restores: bool = False
    ) -> None:
        super().__init__(write, verbosity)
        self.restores = restores

    def add(self, finding: Finding) -> None:
        if finding.status != "in sync" and self.is_listed(finding):
            for line in sql_lines(finding):
                self.write(line)

    def end(self, tally: Tally, error: str = "") -> None:
        for line in losses.script(tally.lost, is_asked=self.restores):
            self.write(line)
        self.write(f"-- {tally}")
        if error:
            self.write(comment(f"Not complete: {error}"))


def sql_lines(finding: Finding) -> Iterator[str]:
    """Yield a comment on a sequence that is behind or could not be checked, and its statement.

    The statement is a comment as well where somebody has to decide on it first.
    """
    if finding.status == "in sync":
        return
    reasons = f": {_reasons(finding)}" if finding.obstacle else ""
    what = "could not be checked" if finding.status == "unknown" else "is exempt"
    about = str(finding) if finding.is_behind else f"Sequence {finding.sequence} {what}"
    yield comment(f"{about}{reasons}")
    yield from (comment(each.advice) for each in obstacles_of(finding) if each.advice)
    if finding.repair:
        is_decided = not any(each.can_force for each in obstacles_of(finding))
        yield finding.repair if is_decided else comment(finding.repair)


def comment(text: str) -> str:
    """Return ``text`` as SQL's comment of one line, whatever it holds."""
    return f"-- {_printable(text)}"


class Json(Format):
    """One document, whose keys are here to stay; see docs/reference.md."""

    def __init__(
        self, write: Callable[[str], None], verbosity: int, *, database: str, vendor: str
    ) -> None:
        super().__init__(write, verbosity)
        self.about = {"database": database, "vendor": vendor}
        self._sequences: list[dict[str, Any]] = []

    def add(self, finding: Finding) -> None:
        self._sequences.append(_document(finding))

    def end(self, tally: Tally, error: str = "") -> None:
        document = {
            **self.about,
            "headroom": tally.headroom,
            "sequences": self._sequences,
            "lost": [losses.document(loss) for loss in tally.lost],
            "summary": {status: tally.counts[status] for status in get_args(Status)},
            "error": error or None,
        }
        self.write(json.dumps(document, indent=2))


def _document(finding: Finding) -> dict[str, Any]:
    sequence = finding.sequence
    return {
        "schema": sequence.schema,
        "sequence": sequence.name,
        "columns": [
            {"schema": key.schema, "table": key.table, "column": key.column}
            for key in sequence.keys
        ],
        "status": finding.status,
        "next_value": finding.next_value,
        "largest_key": finding.largest,
        "new_next_value": _new_next_value(finding),
        "percent_used": percent_used(finding),
        "reason": _reasons(finding) or None,
        "advice": "; ".join(each.advice for each in obstacles_of(finding) if each.advice) or None,
        "sql": (finding.repair or None) if finding.is_behind else None,
    }


def annotation(finding: Finding) -> str:
    """Return GitHub's command for a warning on the page of a workflow's run."""
    text = _printable(str(finding)).replace("%", "%25")
    return f"::warning title=Sequence behind::{text}"
