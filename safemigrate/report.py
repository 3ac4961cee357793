"""What a run did and found, as data, and who is told of it.

The records are for projects, and no tuples: of one, "%s" % record would take the fields one by one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .printing import printable
from .signals import sequence_resynced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from safemigrate.sequences.finding import Finding

logger = logging.getLogger("safemigrate")
# Without a handler of the project's own, logging would print our warnings a second time.
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Resync:
    """A sequence that was moved past the keys it feeds.

    ``before`` and ``after`` are its next value before and after the resync. ``retried`` tells
    whether a statement had failed and was retried.
    """

    using: str
    schema: str
    table: str
    column: str
    sequence: str
    before: int
    after: int
    retried: bool = False

    def __str__(self) -> str:
        return printable(
            f"Resynced {self.schema}.{self.sequence} from {self.before} to {self.after} "
            f"for {self.table}.{self.column}"
        )


@dataclass(frozen=True)
class LockWait:
    """A statement that waits for a lock, and the session that it waits for.

    ``relation`` is empty where it waits for a transaction to end, ``transaction_age`` is seconds.
    What this role may not see of other sessions is empty or None.
    """

    using: str
    relation: str
    mode: str
    pid: int
    role: str
    application_name: str
    client: str
    transaction_age: float | None
    state: str
    statement: str

    def __str__(self) -> str:
        if self.relation:
            wanted = f"{self.mode} on {self.relation}"
        elif self.mode in ("ShareLock", ""):
            wanted = "a transaction to end"
        else:
            wanted = f"{self.mode} (not on a table)"
        age = self.transaction_age
        known = (
            self.role and f"role {self.role}",
            self.application_name and f"application {self.application_name}",
            self.client and f"client {self.client}",
            f"in a transaction for {age:.1f} s" if age is not None else "",
            self.state,
            self.statement,
        )
        whom = ", ".join((f"pid {self.pid}", *filter(None, known)))
        return f"Waiting for {wanted}, blocked by {whom}"

    @property
    def remedy(self) -> str:
        return (
            f"SELECT pg_terminate_backend({self.pid}) would end that session, and roll back "
            "what it has not committed."
            if self.pid
            else "It is a prepared transaction: see pg_prepared_xacts."
        )


@dataclass(frozen=True)
class Note:
    """Something that was found and left as it is; ``text`` says what to type.

    If ``is_fatal``, it explains the error that the run is about to end with. If ``is_expected``,
    nothing needs to be done about it unless there is such an error.
    """

    using: str
    text: str
    is_fatal: bool = False
    is_expected: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Report:
    """What a run of ``healing()`` did: ``resyncs`` and ``notes``, in order."""

    resyncs: list[Resync] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    tell: Callable[[Resync | Note], None] | None = None
    # If each resync is printed, a log on the same terminal need not repeat it.
    log_level: int = logging.INFO

    def add(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            self.resyncs.append(event)
        else:
            self.notes.append(event)
        if self.tell:
            try:
                self.tell(event)
            except Exception:  # it is told of the run, and does not decide it
                logger.exception("tell() failed for: %s", event)


class Audience:
    """Everything that hears of one connection: its reports, the log, the signal's receivers."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.reports: list[Report] = []
        self._noted: set[tuple[str, bool]] = set()

    def tell_of(
        self, finding: Finding, *, is_retried: bool = False, is_expected: bool = False
    ) -> None:
        """Report a sequence that was moved, was found behind, or could not be checked."""
        if finding.moved_to is not None:
            self._tell_resync(finding, is_retried=is_retried)
        elif finding.is_behind:
            self.note(f"{finding} and was left alone: {finding.remedy}", is_expected=is_expected)
        elif finding.status == "unknown":
            text = f"{finding.sequence} could not be checked: {finding.obstacle}"
            self.note(text, is_expected=is_expected)

    def _tell_resync(self, finding: Finding, *, is_retried: bool) -> None:
        sequence = finding.sequence
        record = Resync(
            using=self.using,
            schema=sequence.schema,
            table=sequence.keys[0].table,
            column=sequence.keys[0].column,
            sequence=sequence.name,
            before=finding.next_value or 0,
            after=finding.new_next_value or 0,
            retried=is_retried,
        )
        level = min((report.log_level for report in self.reports), default=logging.INFO)
        logger.log(level, "%s", record, extra=vars(record))
        sequence_resynced.send_robust(Resync, using=self.using, record=record)
        self._add(record)

    def _add(self, event: Resync | Note) -> None:
        for report in self.reports:
            report.add(event)

    def note(self, text: str, *, is_fatal: bool = False, is_expected: bool = False) -> None:
        """Report, once, what was found and left as it is."""
        text = printable(text)
        if (text, is_expected) not in self._noted:
            self._noted.add((text, is_expected))
            level = logging.INFO if is_expected else logging.WARNING
            logger.log(level, "%s", text, extra={"using": self.using})
            self._add(Note(self.using, text, is_fatal=is_fatal, is_expected=is_expected))

    def explain(self, error: BaseException, text: str) -> None:
        """Attach ``text`` to ``error``, so that it is shown wherever the error ends up."""
        text = printable(text)
        attach(error, text)
        notes = (*_notes(error), (self.using, text))
        error.safemigrate_notes = notes  # type: ignore[attr-defined]

    def tell_why(self, leaving: BaseException) -> None:
        """Report the notes on the error that the run ends with, and on those that caused it."""
        for error in chain(leaving):
            for using, text in _notes(error):
                if using == self.using:
                    self.note(text, is_fatal=True)


def attach(error: BaseException, text: str) -> None:
    """Have the traceback of ``error`` end with ``text``, from Python 3.11 on."""
    if hasattr(error, "add_note"):
        error.add_note(f"safemigrate: {text}")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that caused it, each once."""
    met: dict[int, BaseException] = {}  # by identity: == may be of the error's own, and fail
    while error is not None and id(error) not in met:
        met[id(error)] = error
        yield error
        error = error.__context__ if error.__cause__ is None else error.__cause__


def _notes(error: BaseException) -> tuple[tuple[str, str], ...]:
    # Not Python's own notes, which came with 3.11 and may be other people's.
    return getattr(error, "safemigrate_notes", ())
