"""Everything that differs between psycopg2 and psycopg 3, and what only the driver knows.

What is sent from here bypasses the project's execute wrappers, query log and cursor classes: they
see the statements that ``migrate`` would have sent, and no others.
"""

from __future__ import annotations

import _thread
import socket
import threading
from contextlib import contextmanager, suppress
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.postgresql.psycopg_any import is_psycopg3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# Python's signal handlers have to wait until a statement of psycopg2's has ended.
WAITS_IN_C = not is_psycopg3
# libpq's transaction states.
IDLE, ACTIVE, IN_TRANSACTION, FAILED, UNKNOWN = range(5)
# SQLSTATEs, as sqlstate() gives them.
LOCK_NOT_AVAILABLE, DEADLOCK_DETECTED = "55P03", "40P01"
# psycopg2's own status of a connection on which it has begun no transaction.
PSYCOPG2_READY = 1


class Cursor:
    """A cursor whose rows have their columns as attributes, and whose errors are Django's."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._wrap_errors = connection.wrap_database_errors
        with self._wrap_errors:
            self._cursor = _plain_cursor(connection.connection)

    def execute(self, sql: str, params: Any = None) -> None:
        with self._wrap_errors:
            self._cursor.execute(sql, params)

    def rows(self, sql: str, params: Any = None) -> list[Any]:
        """Return the rows of a statement, as named tuples."""
        with self._wrap_errors:
            self._cursor.execute(sql, params)
            return list(self._cursor.fetchall())

    def row(self, sql: str, params: Any = None) -> Any:
        """Return the first row of a statement, or None if there is none."""
        rows = self.rows(sql, params)
        return rows[0] if rows else None

    def last_row(self, sql: str, params: Any = None) -> Any:
        """Return the first row of the last one of several statements."""
        with self._wrap_errors:
            self._cursor.execute(sql, params)
            while is_psycopg3 and self._cursor.nextset():  # psycopg2 is at the last one anyway
                pass
            return self._cursor.fetchone()

    def close(self) -> None:
        self._cursor.close()


def _plain_cursor(driver: Any) -> Any:
    """Return the driver's own cursor, with its own types: a project may read numbers as floats."""
    if is_psycopg3:
        from psycopg import ClientCursor  # noqa: PLC0415 - installed or not
        from psycopg.rows import namedtuple_row  # noqa: PLC0415
        from psycopg.types.numeric import IntLoader, NumericLoader  # noqa: PLC0415

        ours: Any = ClientCursor(driver, row_factory=namedtuple_row)
        for name, loader in {"int8": IntLoader, "oid": IntLoader, "numeric": NumericLoader}.items():
            ours.adapters.register_loader(name, loader)
        return ours
    from psycopg2 import ROWID, extensions  # noqa: PLC0415
    from psycopg2.extras import NamedTupleCursor  # noqa: PLC0415

    ours = driver.cursor(cursor_factory=NamedTupleCursor)
    numbers = extensions.LONGINTEGER, ROWID, extensions.DECIMAL
    for kind in (*numbers, extensions.ROWIDARRAY, extensions.UNICODEARRAY):
        extensions.register_type(kind, ours)
    return ours


@contextmanager
def cursor(connection: BaseDatabaseWrapper) -> Iterator[Cursor]:
    """Give a :class:`Cursor`; the connection has to be open."""
    ours = Cursor(connection)
    try:
        yield ours
    finally:
        with suppress(Exception):  # the connection may be gone, and the block has raised that
            ours.close()


def lets_threads_run() -> bool:
    """Tell whether other threads run while the driver waits for the server.

    gevent makes them greenlets of a single one: then psycopg2 has to be told how to wait.
    """
    if is_psycopg3 or isinstance(_thread.start_new_thread, BuiltinFunctionType):
        return True
    from psycopg2.extensions import get_wait_callback  # noqa: PLC0415 - installed or not

    return get_wait_callback() is not None


def transaction_status(connection: BaseDatabaseWrapper) -> int:
    """Ask libpq for one of its states, without sending anything."""
    return int(connection.connection.info.transaction_status)


def server_version(connection: BaseDatabaseWrapper) -> int:
    """Return what the server said of itself when it was connected to, such as 150004."""
    return int(connection.connection.info.server_version)


def address(connection: BaseDatabaseWrapper) -> tuple[str, ...]:
    """Return where the settings of a connection lead: equal for two aliases of one database."""
    settings = connection.settings_dict
    options = settings["OPTIONS"]
    return (
        *(str(settings[name]) for name in ("HOST", "PORT", "NAME")),
        *(str(options.get(name, "")) for name in ("service", "host", "port", "dbname")),
    )


def is_closed(connection: BaseDatabaseWrapper) -> bool:
    return connection.connection is None or bool(connection.connection.closed)


def is_idle(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether a statement could be sent outside of any transaction."""
    return not is_closed(connection) and transaction_status(connection) == IDLE


@contextmanager
def deadline(connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
    """Cut the connection if the block takes longer; what waits for the server then fails.

    Neither driver has a client-side time limit for a statement.
    """
    with connection.wrap_database_errors:
        descriptor = connection.connection.fileno()
    with socket.fromfd(descriptor, -1, -1) as ours:  # of whichever family and type it is

        def cut() -> None:
            with suppress(OSError):  # the other end has gone, or Ctrl-C has ended the block early
                ours.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


@contextmanager
def transaction(connection: BaseDatabaseWrapper) -> Iterator[Cursor]:
    """Wrap the block in a transaction of its own; the server must be IDLE, whatever Django thinks.

    The transaction that the driver will begin with the project's next statement is a later one, and
    includes nothing of this one.
    """
    driver = connection.connection
    # psycopg2 does not notice that the project's own COMMIT has ended a transaction.
    would_begin = not driver.autocommit and getattr(driver, "status", PSYCOPG2_READY) == (
        PSYCOPG2_READY
    )
    if would_begin:
        driver.autocommit = True
    try:
        with cursor(connection) as ours:
            try:
                ours.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                yield ours
            except BaseException:
                with suppress(Error):
                    ours.execute("ROLLBACK")
                raise
            ours.execute("COMMIT")
    finally:
        if would_begin and not driver.closed:
            driver.autocommit = False


@contextmanager
def savepoint(connection: BaseDatabaseWrapper) -> Iterator[Cursor]:
    """Give back, after the block, the locks and settings that it took in a transaction."""
    with cursor(connection) as ours:
        ours.execute("SAVEPOINT safemigrate")
        try:
            yield ours
        finally:
            ours.execute("ROLLBACK TO SAVEPOINT safemigrate")
            ours.execute("RELEASE SAVEPOINT safemigrate")


@contextmanager
def aside(connection: BaseDatabaseWrapper) -> Iterator[Cursor]:
    """Give a cursor whose settings and locks, but not whose ``setval``, end with the block.

    It connects, if need be. A cursor of Django's comes first: with it django-tenants sets the
    search path of the tenant whose turn it is.
    """
    connection.cursor().close()
    with (transaction if is_idle(connection) else savepoint)(connection) as ours:
        yield ours


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, or of the driver's error behind Django's."""
    cause = getattr(error, "__cause__", None) or error
    for each in (error, cause):
        if state := getattr(each, "sqlstate", None) or getattr(each, "pgcode", None):
            return str(state)
    return None


def is_of_the_connection(error: BaseException) -> bool:
    """Tell whether another connection may do better: this one is lost, or was refused.

    psycopg2 uses any class for a lost one.
    """
    return isinstance(error, (OperationalError, InterfaceError)) or sqlstate(error) is None


def diagnostics(error: BaseException) -> Any:
    """Return libpq's fields of a Django error, or None if its driver's error has none."""
    return getattr(error.__cause__, "diag", None)


def text_of(sql: Any, connection: BaseDatabaseWrapper) -> str:
    """Return the text of a string, bytes or a driver's Composable, or "" if it has none."""
    if isinstance(sql, str):
        return sql
    with suppress(Exception):  # whatever a stranger's as_string() raises
        return sql.decode() if isinstance(sql, bytes) else str(sql.as_string(connection.connection))
    return ""


def backend_pid(driver: Any) -> int:
    """Return the pid of the backend as the client was told it; a pooler makes one up."""
    try:
        return int(driver.info.backend_pid or 0)
    except Exception:  # noqa: BLE001 - the driver's own, when the connection is lost
        return 0
