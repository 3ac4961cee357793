"""A savepoint before the first statement of a migration in a transaction of its own.

A rollback to it gives back all the locks that the migration has taken.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.db import Error, transaction
from django.db.migrations.recorder import MigrationRecorder

from safemigrate import driver
from safemigrate.sqltext import verb_of_one_statement

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

SET_LOCAL = "SELECT pg_catalog.set_config('lock_timeout', %s, true)"
# It has to come before any query and outside of any savepoint.
SET_TRANSACTION = re.compile(r"\bSET\s+(?:LOCAL\s+|SESSION\s+)?TRANSACTION", re.IGNORECASE)
# They take no lock and no snapshot, and SET TRANSACTION may follow.
MAY_PRECEDE_IT = frozenset(("set", "show", "reset"))
SAVEPOINT = "safemigrate_migration"
HAS_WRITTEN = "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"
# Else the server would end the session in a pause.
STAY = "SET LOCAL idle_in_transaction_session_timeout = 0"
MAY_RECORD = "SELECT pg_catalog.has_table_privilege(pg_catalog.to_regclass(%s), 'INSERT')"
LOCK_RECORDS = "LOCK TABLE {} IN ROW EXCLUSIVE MODE"

# Why a migration is not retried.
PYTHON_HAS_RUN = (
    "The migration was not retried, because Python of the project's had run in it. "
    "If running that again does no harm, use --retry-python."
)
NO_SAVEPOINT = (
    "The migration was not retried: it does not run at READ COMMITTED throughout, in the one "
    "transaction that Django has begun for it."
)


class Savepoint:
    """The savepoint of one migration, and why it may not be gone back to."""

    def __init__(self, connection: BaseDatabaseWrapper, timeout: str) -> None:
        self.connection = connection
        self.timeout = timeout  # for this transaction alone; empty if the session has it
        # None until the first statement; then, whether no transaction had begun before it.
        self.is_alone: bool | None = None
        self.has_begun = False
        self.has_savepoint = False
        self.has_run_python = False
        self.count_of_hooks = len(connection.run_on_commit)

    def note_python(self) -> None:
        self.has_run_python = True

    def begin(self, text: str) -> None:
        """Set the savepoint, if this is the first statement, and one can be gone back to.

        Above READ COMMITTED the snapshot of the others would be older than the lock.
        """
        if self.has_begun:
            return
        was_alone = self.is_alone
        if was_alone is None:
            self.is_alone = driver.is_idle(self.connection)
        sets_transaction = SET_TRANSACTION.search(text) is not None
        if verb_of_one_statement(text) in MAY_PRECEDE_IT and not sets_transaction:
            return
        self.has_begun = True
        if sets_transaction or not self.is_alone:
            return
        with driver.cursor(self.connection) as cursor:
            if self.timeout:
                cursor.row(SET_LOCAL, [self.timeout])
            (level,) = cursor.row("SHOW transaction_isolation")
            if level not in ("read committed", "read uncommitted"):
                return
            # After settings, the driver's own cursor may have sent something.
            if was_alone and cursor.row(HAS_WRITTEN)[0]:
                return
            cursor.execute(f"SAVEPOINT {SAVEPOINT}")
            self.has_savepoint = True

    def end(self) -> bool:
        """Wait here for the table that Django records the migration in, which it does next.

        Returns False where the transaction's role may not write to it, or does not find it: the
        migration can have changed its role or its search_path until it ends.
        """
        table = MigrationRecorder.Migration._meta.db_table
        lock = LOCK_RECORDS.format(table)
        self.begin(lock)
        if driver.transaction_status(self.connection) == driver.IN_TRANSACTION:
            with driver.cursor(self.connection) as cursor:
                if not cursor.row(MAY_RECORD, [table])[0]:
                    return False
                cursor.execute(lock)
        return True

    def undo(self) -> str:
        """Give back all that the migration has done, its locks too; or return why that can't be."""
        if self.has_run_python:
            return PYTHON_HAS_RUN
        if not self.has_savepoint:
            return NO_SAVEPOINT
        try:
            with driver.cursor(self.connection) as cursor:
                cursor.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
                cursor.execute(STAY)
        except Error:  # the migration has sent a COMMIT, or the connection is gone
            return NO_SAVEPOINT
        del self.connection.run_on_commit[self.count_of_hooks :]
        transaction.set_rollback(False, using=self.connection.alias)
        return ""
