"""Before each migration: is the migration lock still held?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db.migrations.recorder import MigrationRecorder

from safemigrate.locking.lock import LockLostError
from safemigrate.locking.migrations import around_migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations.state import ProjectState

    from safemigrate.locking.lock import MigrationLock
    from safemigrate.locking.migrations import Step


@contextmanager
def checking_lock(
    connection: BaseDatabaseWrapper, lock: MigrationLock, tell: Callable[[str], None]
) -> Iterator[None]:
    """Check the lock before each migration, but for faked ones.

    A lock that was lost and taken again is enough, unless another run has met the plan's next
    migration in between.
    """

    def check(step: Step) -> ProjectState:
        if not lock.check():
            tell("The migration lock was lost and taken again.")
            name = (step.migration.app_label, step.migration.name)
            is_recorded = name in MigrationRecorder(connection).applied_migrations()
            if is_recorded is not step.is_backwards:
                raise LockLostError(connection.alias, f"and another run has met {step.migration}")
        return step.run()

    with around_migrations(connection, check):
        yield
