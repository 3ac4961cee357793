"""Who blocks a session, asked from a second connection while a statement waits."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from django.db import Error

from safemigrate import driver
from safemigrate.report import LockWait
from safemigrate.sqltext import words_of_one_statement

from .wait import dial, twin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from django.db.backends.base.base import BaseDatabaseWrapper

# pg_blocking_pids() stops the lock manager for a moment: it is asked of a session that waits only.
WHO_BLOCKS = """
SELECT coalesce(lock.relation::pg_catalog.regclass::pg_catalog.text, '') AS relation,
       coalesce(lock.mode, '') AS mode,
       blocker.pid,
       coalesce(other.usename, '') AS role,
       coalesce(other.application_name, '') AS application_name,
       coalesce(pg_catalog.host(other.client_addr), '') AS client,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - other.xact_start)::pg_catalog.float8
           AS transaction_age,
       coalesce(other.state, '') AS state,
       coalesce(other.query, '') AS query
  FROM pg_catalog.pg_stat_activity AS waiting
  CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting.pid)) AS blocker (pid)
  LEFT JOIN pg_catalog.pg_locks AS lock
    ON lock.pid = waiting.pid AND NOT lock.granted
  LEFT JOIN pg_catalog.pg_stat_activity AS other
    ON other.pid = blocker.pid
 WHERE waiting.pid = %s AND waiting.wait_event_type = 'Lock'
 ORDER BY other.xact_start
 LIMIT 1
"""


class Watcher:
    """A thread that asks who blocks the statement that is under way, every ``interval`` seconds.

    Each statement's first blocker is told at once. Without a second connection nothing is told.
    """

    def __init__(
        self, connection: BaseDatabaseWrapper, interval: float, tell: Callable[[LockWait], None]
    ) -> None:
        self.connection = connection
        self.interval = interval
        self.tell = tell
        self.process = os.getpid()
        self.twin = twin(connection)
        self.last: LockWait | None = None
        self._seen: LockWait | None = None
        self._mutex = Lock()
        self._since: float | None = None
        self._pid = 0
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="safemigrate-blockers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection; a forked child leaves both to its parent."""
        self._is_over.set()
        if os.getpid() == self.process:
            self._thread.join(1.0)

    @contextmanager
    def statement(self) -> Iterator[None]:
        """Watch the statement that the block sends; if it fails, ``last`` is whom it waited for."""
        with self._mutex:
            self._seen = None
            self._pid = driver.backend_pid(self.connection.connection)
            self._since = monotonic()
        try:
            yield
        except Error:
            self.last = self._seen
            raise
        finally:
            with self._mutex:
                self._since = None

    def _run(self) -> None:
        while not self._is_over.wait(self.interval):
            since = self._since
            if since and self._seen is None and monotonic() - since >= self.interval:
                # Nothing depends on the answer, and it may be asked for once more.
                with suppress(Error):
                    self._ask(since)
        if self.twin.connection is not None:  # past Django, which takes it for another thread's
            self.twin.connection.close()

    def _ask(self, since: float) -> None:
        if self.twin.connection is None or driver.is_closed(self.twin):
            dial(self.twin).autocommit = True
        with driver.cursor(self.twin) as cursor:
            row = cursor.row(WHO_BLOCKS, [self._pid])
        if row is None:
            return
        record = lock_wait(self.connection.alias, row)
        with self._mutex:
            if self._since != since:  # it has ended meanwhile
                return
            self._seen = record
        self.tell(record)


def lock_wait(using: str, row: Any) -> LockWait:
    """Make a record of a row of WHO_BLOCKS, with nothing in it that a terminal would obey."""
    words = words_of_one_statement(row.query)
    return LockWait(
        using=using,
        relation=printable(row.relation),
        mode=row.mode,
        pid=row.pid,
        role=printable(row.role),
        application_name=printable(row.application_name),
        client=row.client,
        transaction_age=row.transaction_age,
        state=row.state,
        statement=printable(words[0].upper()) if words and row.role else "",
    )


def printable(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)
