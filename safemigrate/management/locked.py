"""Before each migration: is the migration lock still held?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db.migrations.recorder import MigrationRecorder

from safemigrate.locking.lock import LockLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.management.base import BaseCommand
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations import Migration

    from safemigrate.locking.lock import MigrationLock

# Whether a migration is recorded before it is applied or unapplied.
IS_RECORDED = {"apply_start": False, "unapply_start": True}


@contextmanager
def checking_lock(
    migrate: BaseCommand,
    connection: BaseDatabaseWrapper,
    lock: MigrationLock,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Check the lock before each migration, in the callback with which ``migrate`` shows progress.

    It does no harm if the lock was lost and taken again, unless another run has dealt with the next
    migration in the meantime. A ``migrate`` without such a callback is only checked at the end.
    """
    progress: Any = getattr(migrate, "migration_progress_callback", None)
    if progress is None or not lock.taken:
        yield
        return

    def checked(action: str, migration: Migration | None = None, fake: bool = False) -> None:  # noqa: FBT001 - Django's
        if migration is not None and action in IS_RECORDED and not lock.check():
            tell("The migration lock was lost and taken again.")
            recorded = (migration.app_label, migration.name) in MigrationRecorder(
                connection
            ).applied_migrations()
            if recorded is not IS_RECORDED[action]:
                raise LockLostError(connection.alias, f"and another run has dealt with {migration}")
        progress(action, migration, fake)

    migrate.migration_progress_callback = checked  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del migrate.migration_progress_callback  # type: ignore[attr-defined]
