"""How ``resyncsequences`` prints what it finds for other programs: as SQL, as JSON, for GitHub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from safemigrate.printing import comment, printable
from safemigrate.sequences.finding import Status, sql_lines

from . import losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from safemigrate.sequences.finding import Finding
    from safemigrate.sequences.needs import Loss

    from .findings import Tally


AGAIN = "Then run it again: what these tables will draw from can be checked only afterwards."


class Format:
    """What is told of each finding, at once or in the end; ``write`` takes a line."""

    def __init__(self, write: Callable[[str], None], verbosity: int) -> None:
        self.write = write
        self.verbosity = verbosity

    def begin(self, lost: list[Loss]) -> None:
        """Tell what tables have lost, if that comes first."""

    def add(self, finding: Finding) -> None:
        raise NotImplementedError

    def end(self, tally: Tally, error: str = "") -> None:
        """Tell the rest; ``error`` is what has ended the run early."""
        raise NotImplementedError

    def is_listed(self, finding: Finding) -> bool:
        return self.verbosity > 1 or finding.status not in ("in sync", "not judged")


class Sql(Format):
    """What a DBA could run, with a comment for all else."""

    def __init__(
        self, write: Callable[[str], None], verbosity: int, *, restores: bool = False
    ) -> None:
        super().__init__(write, verbosity)
        self.restores = restores
        self._restored: set[tuple[str, str, str]] = set()

    def begin(self, lost: list[Loss]) -> None:
        for line in losses.script(lost, is_asked=self.restores):
            self.write(line)
        if self.restores:
            self._restored = {loss.place for loss in lost if loss.is_restorable}
        if self._restored:
            self.write(comment(AGAIN))

    def add(self, finding: Finding) -> None:
        if self.is_listed(finding):
            is_restored = any(
                (key.schema, key.table, key.column) in self._restored
                for key in finding.sequence.keys
            )
            for line in sql_lines(finding):
                self.write(comment(line) if is_restored else line)

    def end(self, tally: Tally, error: str = "") -> None:
        self.write(f"-- {tally}")
        if error:
            self.write(comment(f"Not complete: {error}"))


class Json(Format):
    """One document, whose keys are here to stay; see docs/reference.md."""

    def __init__(self, write: Callable[[str], None], verbosity: int, *, database: str) -> None:
        super().__init__(write, verbosity)
        self.database = database
        self._sequences: list[dict[str, Any]] = []

    def add(self, finding: Finding) -> None:
        self._sequences.append(_document(finding))

    def end(self, tally: Tally, error: str = "") -> None:
        document = {
            "database": self.database,
            "vendor": tally.vendor,
            "headroom": tally.headroom,
            "sequences": self._sequences,
            "lost": [_lost(loss) for loss in tally.lost],
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
        "new_next_value": finding.new_next_value,
        "percent_used": finding.percent_used,
        "reason": finding.reasons or None,
        "advice": "; ".join(each.advice for each in finding.obstacles if each.advice) or None,
        "sql": (finding.repair or None) if finding.is_behind else None,
    }


def _lost(loss: Loss) -> dict[str, Any]:
    return {
        "schema": loss.schema,
        "table": loss.table,
        "column": loss.column,
        "status": loss.status,
        "reason": loss.why,
        "advice": loss.advice or None,
        "sql": loss.sql,
    }


def annotation(title: str, what: Finding | Loss) -> str:
    """Return GitHub's command for a warning on the page of a workflow's run."""
    text = printable(str(what)).replace("%", "%25")
    return f"::warning title={title}::{text}"
