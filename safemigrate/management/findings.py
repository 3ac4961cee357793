"""What is said of a finding, whatever it is printed as."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safemigrate.printing import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safemigrate.sequences.finding import Finding, Status
    from safemigrate.sequences.needs import Loss

# From so much of a range on somebody should think of a wider one.
NEARLY_USED_UP = 80


@dataclass
class Tally:
    """How many sequences have each status; ``short`` are those behind for want of headroom only."""

    headroom: int = 0
    vendor: str | None = None
    other_vendor: str = ""
    counts: Counter[Status] = field(default_factory=Counter)
    short: Counter[Status] = field(default_factory=Counter)
    lost: list[Loss] = field(default_factory=list)
    nearly_used_up: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        self.nearly_used_up += filter(None, [usage(finding)])
        self.counts[finding.status] += 1
        self.short[finding.status] += is_short(finding)

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
        yield counts["not judged"], "not judged"


def is_short(finding: Finding) -> bool:
    """Tell whether a sequence is past its largest key, but not by the headroom asked for."""
    if finding.target is None or finding.largest is None or finding.next_value is None:
        return False
    return finding.sequence.sign * (finding.next_value - finding.largest) > 0


def advice_of(finding: Finding) -> list[str]:
    advice = [each.advice for each in finding.obstacles if each.advice]
    if finding.repair and not any(finding.repair in each for each in advice):
        advice.append(f"{'or, ' if advice else ''}as a role that may: {finding.repair}")
    return advice


def usage(finding: Finding) -> str:
    """Say how much of its range a sequence has used, where that is most of it; else nothing."""
    percent = finding.percent_used
    if percent is None or percent < NEARLY_USED_UP:
        return ""
    sequence = finding.sequence
    return printable(
        f"{sequence}: nearly used up; {percent} % of its values are gone, the last is "
        f"{sequence.last}"
    )
