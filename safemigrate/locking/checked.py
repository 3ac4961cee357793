"""Before each migration, and at the end of its transaction: is the migration lock still held?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import LockLostError
from .migrations import around_migrations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations.state import ProjectState

    from .lock import MigrationLock
    from .migrations import Step


@contextmanager
def checking_lock(
    connection: BaseDatabaseWrapper, lock: MigrationLock, tell: Callable[[str], None]
) -> Iterator[None]:
    """Check the lock before each migration that is not faked, and before it is committed.

    It does no harm if the lock was lost and taken again, unless another run has dealt with one of
    the migrations in the meantime.
    """
    was_lost = was_just_checked = False

    def check(step: Step) -> None:
        nonlocal was_lost
        if not lock.check():
            was_lost = True
            tell("The migration lock was lost and taken again.")
        if was_lost:
            is_recorded = lock.is_recorded(step.migration.app_label, step.migration.name)
            if is_recorded is (not step.is_backwards):
                why = f"and another run has dealt with {step.migration}"
                raise LockLostError(connection.alias, why)

    def around(step: Step) -> ProjectState:
        nonlocal was_just_checked
        if was_lost or not was_just_checked or not step.editor.atomic_migration:
            check(step)
        state = step.run()
        if step.editor.atomic_migration:
            check(step)
        # Not where Django still has indexes and constraints to make before it commits.
        was_just_checked = step.editor.atomic_migration and not step.editor.deferred_sql
        return state

    with around_migrations(connection, around):
        yield
