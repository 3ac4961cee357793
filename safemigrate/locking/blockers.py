"""Who blocks a session, asked from a second connection while its statement waits."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from django.db import Error

from safemigrate import driver
from safemigrate.printing import printable_ascii
from safemigrate.report import LockWait

from .holder import head
from .twin import dial, twin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# pg_blocking_pids() stops the lock manager for a moment: it is asked of a session that waits only.
WHO_BLOCKS = """
SELECT coalesce(lock.relation::pg_catalog.regclass::pg_catalog.text, '') AS relation,
       coalesce(lock.mode, '') AS mode,
       blocker.pid,
       coalesce(other.usename, '') AS role,
       coalesce(other.application_name, '') AS application_name,
       coalesce(pg_catalog.host(other.client_addr), '') AS client,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) other.xact_start
           )::pg_catalog.float8 AS transaction_age,
       coalesce(other.state, '') AS state,
       other.query
  FROM pg_catalog.pg_stat_activity AS waiting
  CROSS JOIN LATERAL pg_catalog.unnest(pg_catalog.pg_blocking_pids(waiting.pid)) AS blocker (pid)
  LEFT JOIN pg_catalog.pg_locks AS lock
    ON lock.pid OPERATOR(pg_catalog.=) waiting.pid AND NOT lock.granted
  LEFT JOIN pg_catalog.pg_stat_activity AS other
    ON other.pid OPERATOR(pg_catalog.=) blocker.pid
 WHERE waiting.pid OPERATOR(pg_catalog.=) %s
   AND waiting.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
 ORDER BY other.xact_start
 LIMIT 1
"""


@dataclass
class _Statement:
    """A statement that is under way, of the backend ``pid``."""

    pid: int
    blocker: LockWait | None = None


class Watcher:
    """A thread that asks who blocks the statement under way, if it takes ``interval`` seconds.

    ``tell`` is called in that thread, once for each statement. Without a second connection it is
    never called.
    """

    def __init__(
        self, connection: BaseDatabaseWrapper, interval: float, tell: Callable[[LockWait], None]
    ) -> None:
        self.interval = interval
        self.tell = tell
        self.last: LockWait | None = None
        self._twin = twin(connection)
        self._statement: _Statement | None = None
        self._process = os.getpid()
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="safemigrate-blockers", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End the thread and its connection; a forked child leaves both to its parent."""
        self._is_over.set()
        if os.getpid() == self._process:
            self._thread.join(1.0)

    @contextmanager
    def statement(self, pid: int | None) -> Iterator[None]:
        """Watch the block's statement; if it fails, ``last`` is who blocked it, as far as known."""
        statement = self._statement = _Statement(pid) if pid else None
        try:
            yield
        except Error:
            self.last = statement.blocker if statement else None
            raise
        finally:
            self._statement = None

    def _run(self) -> None:
        before = None
        with suppress(Exception):  # nothing depends on the answers
            while not self._is_over.wait(self.interval):
                statement = self._statement
                if statement and statement is before and not statement.blocker:
                    self._ask(statement)
                before = statement
        if self._twin.connection is not None:  # past Django, which takes it for another thread's
            self._twin.connection.close()

    def _ask(self, statement: _Statement) -> None:
        if self._twin.connection is None:
            dial(self._twin).autocommit = True
        with driver.cursor(self._twin) as cursor:
            row = cursor.row(WHO_BLOCKS, [statement.pid])
        if row and statement is self._statement:
            statement.blocker = lock_wait(self._twin.alias, row)
            self.tell(statement.blocker)


def lock_wait(using: str, row: Any) -> LockWait:
    """Make a record of a row of WHO_BLOCKS, with no value in it, and nothing a terminal obeys."""
    return LockWait(
        using=using,
        relation=printable_ascii(row.relation),
        mode=row.mode,
        pid=row.pid,
        role=printable_ascii(row.role),
        application_name=printable_ascii(row.application_name),
        client=row.client,
        transaction_age=row.transaction_age,
        state=row.state,
        statement=printable_ascii(head(row.query)) if row.state else "",
    )
