"""Give up a lock that isn't had at once, let the queue behind it pass, and try again.

In autocommit a statement is retried, in a transaction a whole migration: from a savepoint before
its first statement, so that the locks it has taken are given back while it waits.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import Error, OperationalError, connections, transaction
from django.db.migrations.recorder import MigrationRecorder
from tenacity import Retrying, retry_if_exception, wait_exponential, wait_random

from safemigrate import driver
from safemigrate.report import Audience, logger
from safemigrate.signals import lock_waited
from safemigrate.sqltext import words_of_one_statement

from .blockers import Watcher
from .concurrently import can_be_repeated, invalid_indexes, queues_nobody
from .migrations import around_migrations, noting_python
from .watching import on_connecting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations.state import ProjectState
    from tenacity import RetryCallState

    from safemigrate.report import LockWait

    from .migrations import Step

LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"
LONGEST_PAUSE, LONGEST_INTERVAL = 5.0, 0.5

SET = "SELECT pg_catalog.set_config('lock_timeout', %s, %s)"
# Behind a pooler the session is another client's in a moment.
SET_IN_OWN_SESSION = """
SELECT pg_catalog.current_setting('lock_timeout') AS before,
       pg_catalog.set_config('lock_timeout', %s, false) AS ours
 WHERE pg_catalog.pg_backend_pid() = %s
"""
# Not where the migration has set its own.
REPLACE = """
SELECT pg_catalog.set_config('lock_timeout', %s, false) AS now
 WHERE pg_catalog.current_setting('lock_timeout') = %s
"""
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

# Why something is not retried.
DONE_IN_PART = "It was not retried, because a part of it may have been committed."
PYTHON_HAS_RUN = (
    "The migration was not retried, because Python of the project's had run in it. "
    "If running that again does no harm, use --retry-python."
)
NO_SAVEPOINT = (
    "The migration was not retried: it does not run at READ COMMITTED throughout, in the one "
    "transaction that Django has begun for it."
)

T = TypeVar("T")


@contextmanager
def lock_timeout(
    connection: BaseDatabaseWrapper,
    seconds: float | None,
    *,
    patience: float,
    retry_python: bool = False,
    tell: Callable[[LockWait], None],
) -> Iterator[None]:
    """Wait for locks ``seconds`` at a time, for up to ``patience`` seconds; None does nothing.

    ``tell`` is called in another thread, while the statement waits. With ``retry_python`` a
    migration is retried though Python of the project's has run in it.
    """
    is_ours = connection.vendor == "postgresql" and connection.settings_dict["AUTOCOMMIT"]
    if seconds is None or not is_ours:
        yield
        return
    connection = connections[connection.alias]  # itself, not Django's proxy
    connection.ensure_connection()
    watcher = Watcher(connection, min(seconds / 3, LONGEST_INTERVAL), tell)
    waits = _Waits(connection, seconds, patience, watcher, retry_python=retry_python)
    with ExitStack() as stack:
        stack.enter_context(watcher)
        stack.enter_context(waits.timeout_set())
        stack.enter_context(around_migrations(connection, waits.around))
        # The outermost one: a statement is retried with all that others do around it.
        connection.execute_wrappers.insert(0, waits)
        stack.callback(connection.execute_wrappers.remove, waits)
        yield


class _Waits:
    """The waits of one connection's statements and migrations."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        seconds: float,
        patience: float,
        watcher: Watcher,
        *,
        retry_python: bool,
    ) -> None:
        self.connection = connection
        self.seconds = seconds
        self.patience = patience
        self.watcher = watcher
        self.retry_python = retry_python
        self._pid: int | None = None  # None behind a pooler
        self._whole: _Whole | None = None

    # The setting.

    @contextmanager
    def timeout_set(self) -> Iterator[None]:
        self._open(self.connection)
        try:
            with on_connecting(self._open):
                yield
        finally:
            if self._pid and not driver.is_closed(self.connection):
                with suppress(Error):
                    self._send(REPLACE, [self._before, self._ours])

    def _open(self, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection is not self.connection:
            return
        pid = driver.backend_pid(connection.connection)
        found = self._send(SET_IN_OWN_SESSION, [_milliseconds(self.seconds), pid])
        self._pid = pid if found else None
        self._before = found.before if found else ""
        self._ours = found.ours if found else ""

    @contextmanager
    def _as_long_as_patience_lasts(self) -> Iterator[None]:
        longest = _milliseconds(max(self.patience, self.seconds))
        longer = self._send(REPLACE, [longest, self._ours]) if self._pid else None
        try:
            yield
        finally:
            if longer:
                with suppress(Error):  # a failed transaction, whose rollback takes the setting back
                    self._send(REPLACE, [self._ours, longer.now])

    def _send(self, sql: str, params: Any = None) -> Any:
        with driver.cursor(self.connection) as cursor:
            return cursor.row(sql, params)

    # A statement.

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,  # noqa: FBT001 - as Django calls it
        context: dict[str, Any],
    ) -> Any:
        text = self._text_of(sql)
        is_long = queues_nobody(text)

        def send() -> Any:
            with ExitStack() as stack:
                if is_long:
                    stack.enter_context(self._as_long_as_patience_lasts())
                stack.enter_context(self.watcher.statement(self._pid))
                return execute(sql, params, many, context)

        if self._whole:
            self._whole.begin(text)
        if many or not self._is_idle():
            return send()
        there = self._invalid_indexes(text)

        def undo() -> str:
            is_whole = self._is_idle() and can_be_repeated(text)
            return "" if is_whole and self._drop_left(text, there) else DONE_IN_PART

        return self._retry(send, undo, since=monotonic() if is_long else None)

    def _text_of(self, sql: Any) -> str:
        try:
            return driver.text_of(sql, self.connection)
        except Exception:  # noqa: BLE001 - whatever a stranger's as_string() raises
            return ""

    def _invalid_indexes(self, text: str) -> set[str]:
        with driver.cursor(self.connection) as cursor:
            return invalid_indexes(cursor, text)

    def _drop_left(self, text: str, there: set[str]) -> bool:
        """Drop the INVALID index that CREATE INDEX CONCURRENTLY has left, if it was not there."""
        with suppress(Error), driver.cursor(self.connection) as cursor:
            for left in invalid_indexes(cursor, text) - there:
                with self._as_long_as_patience_lasts():
                    cursor.execute(f"DROP INDEX CONCURRENTLY {left}")
            return True
        return False

    def _is_idle(self) -> bool:
        return (
            self.connection.autocommit
            and not driver.is_closed(self.connection)
            and driver.transaction_status(self.connection) == driver.IDLE
        )

    # A migration.

    def around(self, step: Step) -> ProjectState:
        # Within somebody's transaction, or without one, there is nothing to give back.
        is_whole = step.editor.atomic_migration and not self.connection.savepoint_ids
        if not is_whole or step.editor.connection is not self.connection:
            return step.run()
        self._whole = whole = _Whole(self.connection, None if self._pid else self.seconds)
        python_of = () if self.retry_python else step.migration.operations
        if step.is_the_projects and not self.retry_python:
            whole.note_python()
        deferred = list(step.editor.deferred_sql)

        def attempt() -> ProjectState:
            step.editor.deferred_sql[:] = deferred
            state = step.run(step.state.clone())
            # Django sends them when it leaves the transaction, too late for a retry.
            is_deferring = bool(step.editor.deferred_sql)
            while step.editor.deferred_sql:
                step.editor.execute(step.editor.deferred_sql.pop(0), None)
            with self.watcher.statement(self._pid):
                may_record = whole.end()
            if is_deferring and not may_record:
                # Something to send, and Django records it as whoever it was before.
                step.editor.deferred_sql.append("SELECT 1")
            return state

        try:
            with noting_python(python_of, whole.note_python):
                return self._retry(attempt, whole.undo)
        finally:
            self._whole = None

    # Both.

    def _retry(
        self, attempt: Callable[[], T], undo: Callable[[], str], *, since: float | None = None
    ) -> T:
        """Repeat what fails until patience is over, which begins with the first failure.

        ``undo`` takes back what a failed attempt has done, or returns why that can't be.
        """
        why = ""

        def left(_: RetryCallState) -> float:
            nonlocal since
            since = since or monotonic()
            return since + self.patience - monotonic()

        def pause(state: RetryCallState) -> float:
            wait = wait_exponential(0.2, max=LONGEST_PAUSE) + wait_random(0, 0.3)
            return max(0.0, min(wait(state), left(state)))

        def may_retry(error: BaseException) -> bool:
            nonlocal why
            if not is_lock_failure(error):
                return False
            why = undo()
            self._publish()
            return not why

        retrying = Retrying(
            retry=retry_if_exception(may_retry),
            stop=lambda state: left(state) <= 0,
            wait=pause,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except OperationalError as error:
            if is_lock_failure(error):
                self._explain(error, why or f"Gave up waiting after {self.patience:g} s.")
            raise

    def _publish(self) -> None:
        """Hand the last wait to the log and the signal, in the thread that migrates."""
        if record := self.watcher.last:
            logger.info("%s", record, extra=asdict(record))
            lock_waited.send_robust(type(record), using=record.using, record=record)

    def _explain(self, error: BaseException, text: str) -> None:
        record = self.watcher.last
        remedy = f" {record}. {record.remedy}" if record else ""
        Audience(self.connection.alias).explain(error, text + remedy)


class _Whole:
    """A migration in a transaction of its own, with a savepoint before its first statement."""

    def __init__(self, connection: BaseDatabaseWrapper, seconds: float | None) -> None:
        self.connection = connection
        self.seconds = seconds
        self.is_alone: bool | None = None  # when the first statement has come
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
            self.is_alone = driver.transaction_status(self.connection) == driver.IDLE
        sets_transaction = SET_TRANSACTION.search(text) is not None
        words = words_of_one_statement(text) or [""]
        if words[0] in MAY_PRECEDE_IT and not sets_transaction:
            return
        self.has_begun = True
        if sets_transaction or not self.is_alone:
            return
        with driver.cursor(self.connection) as cursor:
            if self.seconds:
                cursor.row(SET, [_milliseconds(self.seconds), True])
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


def is_lock_failure(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and (
        driver.sqlstate(error) in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED)
    )


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1000))}ms"
