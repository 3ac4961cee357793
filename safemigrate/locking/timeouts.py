"""Give up a lock that isn't had at once, let the queue behind it pass, and try again.

In autocommit a statement is retried, in a transaction a whole migration: from a savepoint that is
set before its first operation, so that the locks it has taken are given back while it waits.
"""

from __future__ import annotations

import logging
import re
import sys
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db import Error, OperationalError, transaction
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_migrate
from tenacity import Retrying, retry_if_exception, wait_exponential, wait_random

from safemigrate import driver
from safemigrate.report import Audience
from safemigrate.signals import lock_waited
from safemigrate.sqltext import words_of_one_statement

from .blockers import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations import Migration
    from django.db.migrations.operations.base import Operation
    from tenacity import RetryCallState

    from safemigrate.report import LockWait

LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"
LONGEST_PAUSE = 5.0
# The few that may have committed a part of what they do.
MAY_COMMIT = {"call", "do", "begin", "start", "commit", "end", "rollback", "abort", "prepare"}
OURS = {"django", "safemigrate", *sys.stdlib_module_names}

SET = "SELECT pg_catalog.set_config('lock_timeout', %s, %s)"
# Behind a pooler the session is another client's in a moment.
IS_OWN_SESSION = """
SELECT pg_catalog.pg_backend_pid() = %s AS own,
       pg_catalog.current_setting('lock_timeout') AS before
"""
ISOLATION = "SELECT pg_catalog.current_setting('transaction_isolation') AS level"
INVALID_INDEX = """
SELECT pg_catalog.format('%%I.%%I', space.nspname, class.relname) AS name
  FROM pg_catalog.pg_index AS index
  JOIN pg_catalog.pg_class AS class
    ON class.oid = index.indexrelid
  JOIN pg_catalog.pg_namespace AS space
    ON space.oid = class.relnamespace
 WHERE NOT index.indisvalid
   AND index.indexrelid <> ALL (%s)
   AND class.relname = %s
   AND pg_catalog.pg_has_role(class.relowner, 'USAGE')
"""
INDEX_NAME = re.compile(
    r"""CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(?:"([^"]+)"|([\w$]+))\s+ON\b""", re.IGNORECASE
)
INVALID_BEFORE = """
SELECT coalesce(pg_catalog.array_agg(indexrelid::pg_catalog.int8), '{}') AS oids
  FROM pg_catalog.pg_index
 WHERE NOT indisvalid
"""

PYTHON_HAS_RUN = (
    "The migration was not retried, because Python of the project's had run in it. "
    "If running that again does no harm, use --retry-python."
)


@dataclass
class _Patience:
    """Counts from the first failure: what came before it was work, not waiting."""

    seconds: float
    end: float | None = None

    @property
    def left(self) -> float:
        if self.end is None:
            self.end = monotonic() + self.seconds
        return self.end - monotonic()

    def is_over(self, _: RetryCallState) -> bool:
        return self.left <= 0

    def pause(self, state: RetryCallState) -> float:
        wait = wait_exponential(0.2, max=LONGEST_PAUSE) + wait_random(0, 0.3)
        return max(0.0, min(wait(state), self.left))


@contextmanager
def lock_timeout(
    connection: BaseDatabaseWrapper,
    seconds: float | None,
    *,
    patience: float,
    retry_python: bool = False,
    tell: Callable[[LockWait], None],
) -> Iterator[None]:
    """Wait for locks in bouts of ``seconds``, for up to ``patience`` seconds; None does nothing.

    ``tell`` is called in another thread, while the statement waits. With ``retry_python`` a
    migration is retried though Python of the project's has run in it.
    """
    if seconds is None or connection.vendor != "postgresql":
        yield
        return
    waits = Waits(connection, seconds, patience, retry_python, tell)
    connection.ensure_connection()
    with waits.installed():
        yield


@dataclass(eq=False)
class Waits:
    """The waits of one connection's statements and migrations."""

    connection: BaseDatabaseWrapper
    seconds: float
    patience: float
    retry_python: bool
    tell: Callable[[LockWait], None]
    has_own_session: bool = False
    python_has_run: bool = False
    _before: str = ""
    _hooked: list[tuple[Any, str]] = field(default_factory=list)

    @contextmanager
    def installed(self) -> Iterator[None]:
        self.watcher = Watcher(self.connection, min(self.seconds / 3, 1.0), self.tell)
        wrappers = self.connection.execute_wrappers
        with ExitStack() as stack:
            self.watcher.start()
            stack.callback(self.watcher.stop)
            self._open(self.connection)
            stack.callback(self._close)
            for signal, receiver in (
                (connection_created, self._open),
                (pre_migrate, self._hook_plan),
            ):
                signal.connect(receiver, weak=False)
                stack.callback(signal.disconnect, receiver)
            stack.callback(self._unhook)
            # The outermost one: a statement is retried with all that others do around it.
            wrappers.insert(0, self)
            stack.callback(wrappers.remove, self)
            yield

    # --- The setting

    def _open(self, connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection is not self.connection:
            return
        with suppress(Error), driver.cursor(connection) as cursor:
            found = cursor.row(IS_OWN_SESSION, [driver.backend_pid(connection.connection)])
            self.has_own_session, self._before = found.own, found.before
            if self.has_own_session:
                self._set(self.seconds)

    def _close(self) -> None:
        if self.has_own_session and not driver.is_closed(self.connection):
            with suppress(Error), driver.cursor(self.connection) as cursor:
                cursor.row(SET, [self._before, False])

    def _set(self, seconds: float, *, local: bool = False) -> None:
        with driver.cursor(self.connection) as cursor:
            cursor.row(SET, [f"{max(1, round(seconds * 1000))}ms", local])

    # --- A statement

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,  # noqa: FBT001 - as Django calls it
        context: dict[str, Any],
    ) -> Any:
        text = driver.text_of(sql, self.connection)
        queues_nobody = _queues_nobody(text)

        def send() -> Any:
            with self.watcher.statement(), self._longer(queues_nobody):
                return execute(sql, params, many, context)

        if driver.transaction_status(self.connection) != driver.IDLE:
            return send()
        indexes = self._invalid_indexes(text) if queues_nobody else []

        def may_retry(error: BaseException) -> bool:
            return not many and self._may_retry(error, text)

        def before_sleep(state: RetryCallState) -> None:
            self._publish()
            try:
                self._drop_invalid_index(text, indexes)
            except Error:
                if state.outcome:
                    state.outcome.result()  # raises what migrate would have raised

        return self._retrying(may_retry, before_sleep)(send)

    @contextmanager
    def _longer(self, queues_nobody: bool) -> Iterator[None]:  # noqa: FBT001
        """Let a statement wait as long as patience lasts where nobody queues behind it."""
        if not (queues_nobody and self.has_own_session):
            yield
            return
        self._set(max(self.patience, self.seconds))
        try:
            yield
        finally:
            with suppress(Error):  # a failed transaction, whose rollback takes the setting back
                self._set(self.seconds)

    def _may_retry(self, error: BaseException, text: str) -> bool:
        is_idle = not driver.is_closed(self.connection) and (
            driver.transaction_status(self.connection) == driver.IDLE
        )
        words = words_of_one_statement(text)
        return bool(
            is_lock_failure(error)
            and is_idle
            and words
            and words[0] not in MAY_COMMIT
            and ("concurrently" not in words or "index" in words[:3])
            and words[0] != "reindex"
        )

    def _invalid_indexes(self, text: str) -> list[int]:
        if not _creates_index(text):
            return []
        with driver.cursor(self.connection) as cursor:
            return list(cursor.row(INVALID_BEFORE).oids)

    def _drop_invalid_index(self, text: str, before: list[int]) -> None:
        """Drop the index that a failed CREATE INDEX CONCURRENTLY has left, and no other."""
        named = INDEX_NAME.search(text) if _creates_index(text) else None
        if named is None:
            return
        name = named[1] or named[2].lower()
        with self._longer(queues_nobody=True), driver.cursor(self.connection) as cursor:
            left = cursor.rows(INVALID_INDEX, [before, name])
            if len(left) == 1:
                cursor.execute(f"DROP INDEX CONCURRENTLY {left[0].name}")

    # --- A migration

    def _hook_plan(self, using: str, plan: Any, **_: object) -> None:
        """Give each migration of the plan, for this run, an apply() or unapply() that retries."""
        if using != self.connection.alias:
            return
        for migration, is_backwards in plan:
            name = "unapply" if is_backwards else "apply"
            if name not in vars(migration):
                self._hook(migration, name, self._retried(migration, getattr(migration, name)))
                for operation in _with_python(migration.operations):
                    for method in ("database_forwards", "database_backwards"):
                        self._hook(operation, method, self._noting(getattr(operation, method)))

    def _hook(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        if name not in vars(owner):
            setattr(owner, name, function)
            self._hooked.append((owner, name))

    def _unhook(self) -> None:
        for owner, name in self._hooked:
            delattr(owner, name)

    def _noting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            self.python_has_run = True
            return original(*args, **kwargs)

        return noting

    def _retried(self, migration: Migration, original: Callable[..., Any]) -> Callable[..., Any]:
        def apply(state: Any, schema_editor: Any, collect_sql: bool = False) -> Any:  # noqa: FBT001
            # Within somebody's transaction, or without one, there is nothing to give back.
            is_whole = schema_editor.atomic_migration and not self.connection.savepoint_ids
            if collect_sql or not is_whole or schema_editor.connection is not self.connection:
                return original(state, schema_editor, collect_sql)
            self.python_has_run = False
            deferred = list(schema_editor.deferred_sql)

            def attempt() -> Any:
                schema_editor.deferred_sql[:] = deferred
                with transaction.atomic(self.connection.alias):
                    if not self.has_own_session:
                        self._set(self.seconds, local=True)
                    result = original(state.clone(), schema_editor)
                    # Django sends them when it leaves the transaction, too late for us.
                    while schema_editor.deferred_sql:
                        schema_editor.execute(schema_editor.deferred_sql.pop(0), None)
                return result

            retrying = self._retrying(self._may_retry_migration, lambda _: self._publish())
            return retrying(attempt)

        return apply

    def _may_retry_migration(self, error: BaseException) -> bool:
        if not is_lock_failure(error) or driver.is_closed(self.connection):
            return False
        if self.python_has_run and not self.retry_python:
            self._explain(error, PYTHON_HAS_RUN)
            return False
        with driver.cursor(self.connection) as cursor:
            level = cursor.row(ISOLATION).level
        # The snapshot of others is the transaction's, and would be old when the lock is had.
        return bool(level in ("read committed", "read uncommitted"))

    # --- Both

    def _retrying(
        self,
        may_retry: Callable[[BaseException], bool],
        before_sleep: Callable[[RetryCallState], None],
    ) -> Retrying:
        patience = _Patience(self.patience)

        def give_up(state: RetryCallState) -> Any:
            error = state.outcome and state.outcome.exception()
            if error:
                self._publish()
                self._explain(error, f"Gave up waiting after {self.patience:g} s.")
                raise error

        return Retrying(
            retry=retry_if_exception(may_retry),
            stop=patience.is_over,
            wait=patience.pause,
            before_sleep=before_sleep,
            retry_error_callback=give_up,
        )

    def _publish(self) -> None:
        """Hand the last wait to the log and the signal, in the thread that migrates."""
        if record := self.watcher.last:
            logging.getLogger("safemigrate").info("%s", record, extra=asdict(record))
            lock_waited.send_robust(type(record), using=record.using, record=record)

    def _explain(self, error: BaseException, text: str) -> None:
        record = self.watcher.last
        remedy = f" {record}. {record.remedy}" if record else ""
        Audience(self.connection.alias).explain(error, text + remedy)


def is_lock_failure(error: BaseException) -> bool:
    return isinstance(error, OperationalError) and (
        driver.sqlstate(error) in (LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED)
    )


def _queues_nobody(text: str) -> bool:
    """Tell of what lets reads and writes pass while it waits for transactions to end."""
    text = text.casefold()
    return "concurrently" in text or "validate constraint" in text


def _creates_index(text: str) -> bool:
    words = words_of_one_statement(text) or []
    return words[:1] == ["create"] and "index" in words[1:3] and "concurrently" in words[:5]


def _with_python(operations: list[Operation]) -> Iterator[Operation]:
    """Find the operations in which Python of the project's runs."""
    for operation in operations:
        yield from _with_python(getattr(operation, "database_operations", []))
        default = getattr(getattr(operation, "field", None), "default", None)
        code = (getattr(operation, each, None) for each in ("code", "reverse_code"))
        run = [type(operation), *filter(callable, (default, *code))]
        if any((each.__module__ or "").partition(".")[0] not in OURS for each in run):
            yield operation
