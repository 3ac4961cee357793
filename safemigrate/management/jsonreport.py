"""``--json-report``: what a run did, and what it waited for, as one JSON document."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from django.core.management.base import CommandError

from safemigrate.interrupt import Terminated
from safemigrate.printing import one_line
from safemigrate.report import Note, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from safemigrate.report import LockWait


@dataclass
class Record:
    """All that the document tells of one run."""

    database: str
    report: Report = field(default_factory=Report)
    waits: list[dict[str, Any]] = field(default_factory=list)
    blocked_by: list[LockWait] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add what the command itself has found."""
        self.report.notes.append(Note(self.database, text))

    @contextmanager
    def waiting(self, what: str, tell: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
        """Give a ``tell`` for a block that may have to wait, and says so then."""
        started = monotonic()
        reasons: list[str] = []

        def hear(text: str) -> None:
            reasons.append(text)
            tell(text)

        try:
            yield hear
        finally:
            if reasons:
                passed = round(monotonic() - started, 3)
                self.waits.append({"for": what, "seconds": passed, "reason": reasons[0]})

    def document(self, error: BaseException | None) -> dict[str, Any]:
        resyncs = self.report.resyncs
        return {
            "database": self.database,
            "exit_status": _exit_status(error),
            "error": f"{type(error).__name__}: {one_line(str(error))}" if error else None,
            "resynced": [vars(each) for each in resyncs],
            "retried": sum(each.retried for each in resyncs),
            "notes": [vars(each) for each in self.report.notes],
            "waited": self.waits,
            "blocked_by": [vars(each) for each in self.blocked_by],
        }


def _exit_status(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, Terminated):
        return Terminated.status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.returncode if isinstance(error, CommandError) else 1


@contextmanager
def recording(
    file: str | None, database: str, tell_note: Callable[[str], None]
) -> Iterator[Record]:
    """Give a record of the block, and write it to ``file``, if there is one, however it ends.

    Raises CommandError, before anything is done, for a file that can't be written to.
    """
    record = Record(database)
    process = os.getpid()
    stream = _opened(file) if file is not None else None
    try:
        yield record
    except BaseException as error:
        if os.getpid() == process:  # not a forked child that leaves the run
            _write(record.document(error), stream, tell_note)
        raise
    _write(record.document(None), stream, tell_note)


def _opened(file: str) -> TextIO:
    try:
        return Path(file).open("w", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"The report can't be written to {file}: {error.strerror}.") from error


def _write(
    document: dict[str, Any], stream: TextIO | None, tell_note: Callable[[str], None]
) -> None:
    """Write the document and close the stream; the run is over, whatever comes of that."""
    if stream is not None:
        try:
            with stream:
                stream.write(f"{json.dumps(document, indent=2)}\n")
        except BrokenPipeError:
            pass  # whoever was to read it has gone
        except OSError as error:
            tell_note(f"The report could not be written: {error.strerror}.")
