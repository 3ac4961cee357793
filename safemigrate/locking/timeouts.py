"""Give up a lock that isn't had at once, let the queue behind it pass, and try again.

In autocommit a statement is retried, in a transaction a whole migration: from a savepoint before
its first statement, so that the locks it has taken are given back while it waits.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from django.apps import apps
from django.db import Error, OperationalError, connections, transaction
from django.db.backends.signals import connection_created
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from safemigrate import driver
from safemigrate.plans import receiving
from safemigrate.report import Audience, logger
from safemigrate.signals import lock_waited

from .blockers import Watcher
from .concurrently import can_be_repeated, does_not_wait, invalid_indexes, queues_nobody
from .migrations import around_migrations, noting_python
from .savepoint import Savepoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations.state import ProjectState
    from tenacity import RetryCallState

    from safemigrate.report import LockWait

    from .migrations import Step

LONGEST_PAUSE, LONGEST_INTERVAL = 5.0, 0.5
MOST_MILLISECONDS = 2**31 - 1  # the server's own limit

# Behind a pooler the session is another client's in a moment.
SET_IN_OWN_SESSION = """
SELECT pg_catalog.current_setting('lock_timeout') AS before,
       pg_catalog.set_config('lock_timeout', %s, false) AS longer,
       pg_catalog.set_config('lock_timeout', %s, false) AS ours
 WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) %s
"""
REPLACE = """
SELECT pg_catalog.set_config('lock_timeout', %s, false) AS now
 WHERE pg_catalog.current_setting('lock_timeout') OPERATOR(pg_catalog.=) ANY (%s)
"""

DONE_IN_PART = "It was not retried, because a part of it may have been committed."
LEFT_INVALID = (
    "It has left the INVALID index {index}, which could not be dropped either. "
    "Type: DROP INDEX CONCURRENTLY {index}; and run the command again."
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
        stack.callback(waits.remove)
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
        self._savepoint: Savepoint | None = None

    def remove(self) -> None:
        with suppress(ValueError):  # somebody else may have removed it
            self.connection.execute_wrappers.remove(self)

    # The setting.

    @contextmanager
    def timeout_set(self) -> Iterator[None]:
        self._open(self.connection)
        try:
            with receiving(connection_created, self._open):
                yield
        finally:
            if self._pid and not driver.is_closed(self.connection):
                self._give_back([self._ours, self._longer], self._before)

    def _open(self, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection is not self.connection:
            return
        pid = driver.backend_pid(connection.connection)
        longer = max(self.patience, self.seconds)
        found = self._send(
            SET_IN_OWN_SESSION, [_milliseconds(longer), _milliseconds(self.seconds), pid]
        )
        self._pid = pid if found else None
        if found:
            self._before, self._longer, self._ours = found

    @contextmanager
    def _as_long_as_patience_lasts(self) -> Iterator[None]:
        is_longer = self._pid and self._send(REPLACE, [self._longer, [self._ours]])
        try:
            yield
        finally:
            if is_longer:
                self._give_back([self._longer], self._ours)

    def _give_back(self, ours: list[str], before: str) -> None:
        """Set what was set before, unless the migration has set its own."""
        # After Ctrl-C the first may be cancelled: a statement is, whichever it is.
        twice = Retrying(stop=stop_after_attempt(2), reraise=True)
        with suppress(Error):  # a failed transaction, whose rollback takes the setting back
            twice(self._send, REPLACE, [before, ours])

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
        text = driver.text_of(sql, self.connection)
        is_long = self._is_idle() and queues_nobody(text)  # in a transaction others queue for more

        def send() -> Any:
            with ExitStack() as stack:
                if is_long:
                    stack.enter_context(self._as_long_as_patience_lasts())
                stack.enter_context(self.watcher.statement(self._pid))
                return execute(sql, params, many, context)

        if self._savepoint:
            self._savepoint.begin(text)
        if many or not self._is_idle() or does_not_wait(text):
            return send()
        there = invalid_indexes(self.connection, text)

        def undo() -> str:
            is_whole = self._is_idle() and can_be_repeated(text)
            return self._drop_left(text, there) if is_whole else DONE_IN_PART

        return self._retry(send, undo, since=monotonic() if is_long else None)

    def _drop_left(self, text: str, there: set[str]) -> str:
        """Drop the INVALID index that CREATE INDEX CONCURRENTLY has left, if it was not there.

        Returns why that can't be.
        """
        left = ""
        try:
            for left in invalid_indexes(self.connection, text) - there:  # at most one
                with (
                    self._as_long_as_patience_lasts(),
                    driver.cursor(self.connection) as cursor,
                ):
                    cursor.execute(f"DROP INDEX CONCURRENTLY {left}")
        except Error:
            return LEFT_INVALID.format(index=left) if left else DONE_IN_PART
        return ""

    def _is_idle(self) -> bool:
        return self.connection.autocommit and driver.is_idle(self.connection)

    # A migration.

    def around(self, step: Step) -> ProjectState:
        # Within somebody's transaction, or without one, there is nothing to give back.
        is_whole = step.editor.atomic_migration and not self.connection.savepoint_ids
        if not is_whole or step.editor.connection is not self.connection:
            return step.run()
        self._savepoint = savepoint = Savepoint(
            self.connection, "" if self._pid else _milliseconds(self.seconds)
        )
        python_of = () if self.retry_python else step.migration.operations
        if step.is_the_projects and not self.retry_python:
            savepoint.note_python()
        deferred = list(step.editor.deferred_sql)

        def attempt() -> ProjectState:
            step.editor.deferred_sql[:] = deferred
            # It sends nothing; a cache of what the transaction has read ends with it.
            with transaction.atomic(using=self.connection.alias, savepoint=False):
                state = step.run(step.state.clone())
            self._send_deferred(step, savepoint)
            return state

        def undo() -> str:
            why = savepoint.undo()
            _forget_content_types(step.state)
            return why

        try:
            with noting_python(python_of, savepoint.note_python):
                return self._retry(attempt, undo)
        finally:
            self._savepoint = None

    def _send_deferred(self, step: Step, savepoint: Savepoint) -> None:
        """Send what Django sends as it leaves the transaction, which is too late for a retry."""
        waiting = step.editor.deferred_sql
        is_deferring = bool(waiting)
        while waiting:
            step.editor.execute(waiting.pop(0), None)
        with self.watcher.statement(self._pid):
            may_record = savepoint.end()
        if is_deferring and not may_record:
            # As long as there is something to send, Django records the migration after the
            # transaction, in which its role or search_path was another.
            waiting.append("SELECT 1")

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
            logger.info("%s", record, extra=vars(record))
            lock_waited.send_robust(type(record), using=record.using, record=record)

    def _explain(self, error: BaseException, text: str) -> None:
        record = self.watcher.last
        remedy = f" {record}. {record.remedy}" if record else ""
        Audience(self.connection.alias).explain(error, text + remedy)


def _forget_content_types(state: ProjectState) -> None:
    """Empty the caches of ContentType's managers, in which there may be what was rolled back."""
    registries = [apps, state.apps] if "apps" in state.__dict__ else [apps]
    for registry in registries:
        with suppress(LookupError):
            registry.get_model("contenttypes", "ContentType").objects.clear_cache()


def is_lock_failure(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and (
        driver.sqlstate(error) in (driver.LOCK_NOT_AVAILABLE, driver.DEADLOCK_DETECTED)
    )


def _milliseconds(seconds: float) -> str:
    return f"{max(1, min(round(seconds * 1000), MOST_MILLISECONDS))}ms"
