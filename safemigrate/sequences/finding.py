"""What was found of one sequence: its status, and what to type about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from safemigrate.printing import comment, sql_literal, sql_name

from .sequence import Hinders, Obstacle, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

# Not judged: it can't be behind, or nobody can tell, as where numbers start over on purpose.
# Unknown: it could not be checked.
Status = Literal["in sync", "behind", "resynced", "unknown", "not judged"]
WHERE = {"in sync": "is in sync with", "behind": "is behind", "resynced": "was behind"}


@dataclass(frozen=True)
class Finding:
    """What a check of one sequence found, and where a resync left it.

    ``largest`` is the key that is farthest in the sequence's own direction (so the smallest, where
    the increment is negative), None where there is no key. ``target`` is the value after which the
    sequence is past it, None where the sequence is not behind. ``moved_to`` is the last value that
    a resync used up, None where nothing was moved. ``obstacle`` says why not, or what kept the
    check from being done; then ``next_value`` is None.
    """

    sequence: Sequence
    next_value: int | None = None
    largest: int | None = None
    target: int | None = None
    moved_to: int | None = None
    obstacle: Obstacle | None = None

    @property
    def is_behind(self) -> bool:
        return self.target is not None and self.moved_to is None

    @property
    def status(self) -> Status:
        if self.moved_to is not None:
            return "resynced"
        if self.target is not None:
            return "behind"
        if self.obstacle is None:
            return "in sync"
        return "not judged" if self.obstacle.hinders is Hinders.JUDGING else "unknown"

    @property
    def obstacles(self) -> list[Obstacle]:
        """All that stands in the way, so that nobody clears it away one by one."""
        first = self.obstacle
        if first is None:
            return []
        others = (each for each in self.sequence.obstacles if each != first)
        is_final = first.hinders is Hinders.JUDGING
        return [first, *(each for each in others if not is_final or each.hinders is first.hinders)]

    @property
    def reasons(self) -> str:
        return "; ".join(each.reason for each in self.obstacles)

    @property
    def new_next_value(self) -> int | None:
        """What the next session gets, if the sequence was moved; otherwise None."""
        return None if self.moved_to is None else self.moved_to + self.sequence.increment

    @property
    def percent_used(self) -> int | None:
        """How much of its range the sequence has used once it is in sync; None if not known."""
        if self.next_value is None:
            return None
        sequence, sign = self.sequence, self.sequence.sign
        given = [self.next_value - sequence.increment, self.target, self.moved_to]
        last = max(sign * each for each in given if each is not None)
        first, end = sorted((sign * sequence.lowest, sign * sequence.highest))
        return min(max(0, 100 * (last - first + 1) // (end - first + 1)), 100)

    @property
    def repair(self) -> str:
        """The statement that a DBA could type, or an empty string where there is none."""
        if self.target is None or (self.obstacle and self.obstacle.is_final):
            return ""
        sequence = self.sequence
        name = sql_name(sequence.quoted, sequence.schema, sequence.name)
        short = "<=" if sequence.increment > 0 else ">="
        return (
            f"SELECT pg_catalog.setval({sql_literal(sequence.quoted)}, {self.target}) "
            f"FROM {name} WHERE last_value {short} {self.target};"
        )

    @property
    def remedy(self) -> str:
        """Why the sequence was left alone, and what to type."""
        if self.obstacle is None:
            return f"healing is off. To move it: {self.repair}"
        if not self.repair or self.repair in self.obstacle.advice:
            return str(self.obstacle)
        return f"{str(self.obstacle).removesuffix(';')}; or, as a role that may: {self.repair}"

    def __str__(self) -> str:
        if self.status == "unknown":
            return f"Sequence {self.sequence} could not be checked"
        if self.status == "not judged":
            return f"Sequence {self.sequence} is not judged"
        where = WHERE[self.status]
        keys = ", ".join(map(str, self.sequence.keys))
        return (
            f"Sequence {self.sequence} {where} {keys} (next value {self.next_value}, largest "
            f"key {self.largest})"
        )


def sql_lines(finding: Finding) -> Iterator[str]:
    """Yield a comment on a sequence that is not in sync, and the statement that moves it.

    The statement is a comment as well where somebody has to decide on it first.
    """
    if finding.status == "in sync":
        return
    yield comment(f"{finding}: {finding.reasons}" if finding.obstacle else str(finding))
    yield from (comment(each.advice) for each in finding.obstacles if each.advice)
    if finding.repair:
        is_decided = not any(each.can_force for each in finding.obstacles)
        yield finding.repair if is_decided else comment(finding.repair)
