"""What a run did and found, as data, and who is told of it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .signals import sequence_resynced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from safemigrate.sequences.state import Finding

logger = logging.getLogger("safemigrate")
# Without a handler of the project's own, logging would print our warnings a second time.
logger.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Resync:
    """A sequence that was moved past the keys it feeds.

    ``before`` and ``after`` are the values that it would have given, and gives now, next.
    ``repeated`` tells whether a statement had failed and was sent again.
    """

    using: str
    schema: str
    table: str
    column: str
    sequence: str
    before: int
    after: int
    repeated: bool = False

    def __str__(self) -> str:
        return (
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
        wanted = f"{self.mode} on {self.relation}" if self.relation else "a transaction to end"
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
    """Something that was found and not mended; ``text`` says what to type.

    ``is_fatal`` tells that it explains the error that the run is about to end with.
    """

    using: str
    text: str
    is_fatal: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Report:
    """What a run of ``healing()`` did: ``resyncs`` and ``notes``, in order."""

    resyncs: list[Resync] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    tell: Callable[[Resync | Note], None] | None = None

    def add(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            self.resyncs.append(event)
        else:
            self.notes.append(event)
        if self.tell:
            self.tell(event)


class Audience:
    """Those who are told of one connection: its reports, the log, the signal's receivers."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.reports: list[Report] = []
        self._noted: set[str] = set()
        self._left_behind: set[int] = set()

    def tell_of(
        self, finding: Finding, relations: Iterable[int] = (), *, repeated: bool = False
    ) -> None:
        """Tell of a sequence that was moved or is behind still, by a key of ``relations``."""
        sequence = finding.sequence
        if finding.moved_to is not None and finding.next_value is not None:
            key = next((each for each in sequence.keys if each.relation in relations), None)
            key = key or sequence.keys[0]
            self._resynced(
                Resync(
                    using=self.using,
                    schema=sequence.schema,
                    table=key.table,
                    column=key.column,
                    sequence=sequence.name,
                    before=finding.next_value,
                    after=finding.moved_to + sequence.increment,
                    repeated=repeated,
                )
            )
        elif finding.is_behind and sequence.oid not in self._left_behind:
            self._left_behind.add(sequence.oid)
            self.note(f"{finding} and was left alone: {finding.remedy}")

    def _resynced(self, record: Resync) -> None:
        logger.info("%s", record, extra=asdict(record))
        sequence_resynced.send_robust(Resync, using=self.using, record=record)
        self._add(record)

    def _add(self, event: Resync | Note) -> None:
        for report in self.reports:
            report.add(event)

    def note(self, text: str, *, is_fatal: bool = False) -> None:
        """Tell, once, what was found and not mended."""
        if text not in self._noted:
            self._noted.add(text)
            logger.warning("%s", text, extra={"using": self.using})
            self._add(Note(self.using, text, is_fatal))

    def explain(self, error: BaseException, text: str) -> None:
        """Attach ``text`` to ``error``, which says it wherever it gets out."""
        if text:
            if hasattr(error, "add_note"):
                error.add_note(f"safemigrate: {text}")
            notes = (*_notes(error), (self.using, text))
            error.safemigrate_notes = notes  # type: ignore[attr-defined]

    def tell_why(self, leaving: BaseException) -> None:
        """Tell what is known of the error that the run ends with, and of those behind it."""
        met: list[BaseException] = []
        error: BaseException | None = leaving
        while error is not None and error not in met:
            met.append(error)
            for using, text in _notes(error):
                if using == self.using:
                    self.note(text, is_fatal=True)
            error = error.__cause__ or error.__context__


def _notes(error: BaseException) -> tuple[tuple[str, str], ...]:
    # Python has notes of its own from 3.11 on, and other people's among them.
    return getattr(error, "safemigrate_notes", ())
