"""Why a run does not have the migration lock; what each message says to type is the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemigrate.printing import first_line, printable_ascii

if TYPE_CHECKING:
    from .holder import Holder


class LockError(Exception):
    """The migration lock could not be taken; the message says why, and what to do."""


class LockUnavailableError(LockError):
    """The migration lock cannot be taken here: no second connection, or no privilege."""

    def __init__(self, alias: str, reason: BaseException | None) -> None:
        super().__init__(
            f'Could not take the migration lock of database "{alias}": '
            f"{printable_ascii(first_line(reason))}\n"
            "A run needs two connections at once and EXECUTE on pg_try_advisory_xact_lock. The "
            "limit may be a pooler's pool size, the role's CONNECTION LIMIT or max_connections. A "
            "pooler that pools statements can't hold the lock at all.\n"
            "If no other run is under way, use --no-lock."
        )


class LockTimeoutError(LockError):
    """Somebody else still held the migration lock when the patience ran out."""

    def __init__(self, alias: str, patience: float, holder: Holder) -> None:
        self.holder = holder
        super().__init__(
            f'Gave up after {patience:g} s: the migration lock of database "{alias}" is held by '
            f"{holder}.\n"
            f"Wait longer with --lock-wait. {printable_ascii(holder.advice())} "
            "With --no-lock, two runs would migrate at once."
        )


class LockHeldByParentError(LockError):
    """The run that holds the lock may have started this one, and be waiting for it."""

    def __init__(self, alias: str, holder: Holder) -> None:
        super().__init__(
            f'The migration lock of database "{alias}" is held by {holder}, which may have '
            "started this run and be waiting for it.\n"
            "Start it in the same thread, or as a process with the same environment; or with "
            "--no-lock."
        )


class LockLostError(LockError):
    """The connection that held the lock was lost, and another run may have migrated since."""

    def __init__(self, alias: str, why: str) -> None:
        super().__init__(
            f'Stopped: the migration lock of database "{alias}" was lost during the run, {why}.\n'
            "What was applied so far is recorded. Run safemigrate again."
        )
