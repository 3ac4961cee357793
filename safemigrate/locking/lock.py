"""
Take turns: one run migrates a database, the others wait for it.

The turn is a transaction-level advisory lock on a connection of its own. It is polled for: the
snapshot of one that waits in the server would deadlock with CREATE INDEX CONCURRENTLY. It goes when
the process has ended, and whatever was forked from it. It is no fence: see ``watching``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_migrate
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_random,
)

from safemigrate.locking.wait import Telling, dial, first_line, twin, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from tenacity import RetryCallState

# In pg_locks, which knows it per database, classid and objid are its upper and lower half.
KEY = int.from_bytes(b"safemigr", "big")
NAME_LENGTH = 63
# How long to wait for a dead run's last statement: ``watching`` ends it within half a second.
LAST_STATEMENT = 5.0

Address = tuple[str, ...]


class LockError(Exception):
    """The turn was not had; the message says why and what to do."""


class LockUnavailableError(LockError):
    """No turns can be taken here: no spare connection, no privilege, or no advisory locks."""

    def __init__(self, alias: str, reason: Exception) -> None:
        super().__init__(
            f'Could not take turns on database "{alias}", which needs a second connection and '
            f"pg_try_advisory_xact_lock: {first_line(reason)}\n"
            "Run with --no-lock, and see to it that no other run is under way."
        )


class LockTimeoutError(LockError):
    """Another run still held the turn when patience was over."""

    def __init__(self, alias: str, patience: float, holder: Holder) -> None:
        self.holder = holder
        super().__init__(
            f'Gave up after {patience:g} s: database "{alias}" is being migrated by {holder}.\n'
            "Wait longer with --lock-wait; or, if that run hangs, end it"
            f"{holder.remedy()}. With --no-lock two runs migrate at once."
        )


@dataclass(frozen=True)
class Holder:
    """Who has the turn, as far as the server shows it to this role."""

    token: str
    host: str
    since: datetime | None
    backend: int | None
    worker: int | None
    running: str

    @property
    def process(self) -> str:
        return self.token.partition("_")[0] or "unknown"

    def remedy(self) -> str:
        return f" (SELECT pg_terminate_backend({self.backend}))" if self.backend else ""

    def __str__(self) -> str:
        since = f", since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        running = f", now {self.running}" if self.running else ""
        return f"process {self.process} on {self.host or 'an unknown host'}{since}{running}"


@dataclass
class Turn:
    """What became of asking: a nested run has not ``taken`` it; ``lost`` is known at the end."""

    taken: bool
    lost: bool = False


@contextmanager
def turn(
    connection: BaseDatabaseWrapper,
    *,
    patience: float,
    tell: Callable[[str], None],
    watches_at_once: bool = True,
) -> Iterator[Turn]:
    """
    Hold the turn of the connection's database, waiting up to ``patience`` seconds (0: try once).

    Raise LockTimeoutError when another run keeps it, LockUnavailableError where no turns can be
    taken, and the connection's own error where it cannot connect. A run inside the holder's own,
    in a forked or spawned child too, passes at once; on another vendor's database every run does.
    """
    if connection.vendor != "postgresql" or _is_held_by_kin(connection):
        yield Turn(taken=False)
        return
    with closing(Lock(connection)) as lock:
        if not lock.take(patience=patience, tell=tell):
            yield Turn(taken=False)
            return
        held = Turn(taken=True)
        try:
            with ExitStack() as stack:
                stack.enter_context(_known(lock.token, connection))
                stack.enter_context(_on_connecting(lock.follow))
                stack.enter_context(watching(connection, at_once=watches_at_once))
                yield held
        finally:
            held.lost = not lock.release()


# --- Whose turn it is -----------------------------------------------------------------------------

_held: dict[str, Address] = {}
_mine: ContextVar[frozenset[str]] = ContextVar("safemigrate_turns", default=frozenset())


def _is_held_by_kin(connection: BaseDatabaseWrapper) -> bool:
    address = _address(connection)
    return any(_is_kin(token) for token, held in list(_held.items()) if held == address)


def _is_kin(token: str) -> bool:
    """Tell whether the turn is this context's or an ancestor process's; not another thread's."""
    spawned = _variable(token) in os.environ and token.partition("_")[0] != str(os.getpid())
    return spawned or token in _mine.get()


def _address(connection: BaseDatabaseWrapper) -> Address:
    settings = connection.settings_dict
    options = settings["OPTIONS"]
    return (
        *(str(settings[name]) for name in ("HOST", "PORT", "NAME")),
        *(str(options.get(name, "")) for name in ("service", "host", "port", "dbname")),
    )


def _variable(token: str) -> str:
    return f"SAFEMIGRATE_TURN_{token}"


@contextmanager
def _known(token: str, connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let nested runs know whose turn it is: here, in forked and in spawned processes."""
    mine = _mine.set(_mine.get() | {token})
    _held[token] = _address(connection)
    os.environ[_variable(token)] = connection.alias
    try:
        yield
    finally:
        os.environ.pop(_variable(token), None)
        _held.pop(token, None)
        _mine.reset(mine)


# --- The lock -------------------------------------------------------------------------------------

# All of it is local to the transaction, for behind a pooler the session is others' as well. A
# setting that this server is too old for is one that current_setting() does not find.
BEGIN_AND_TRY = """
BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;
SELECT pg_catalog.set_config(own.name, own.value, true)
  FROM pg_catalog.json_each_text(%s::pg_catalog.json) AS own (name, value)
 WHERE pg_catalog.current_setting(own.name, true) IS NOT NULL;
SELECT pg_catalog.pg_try_advisory_xact_lock(%s)
"""

RENAME = "SELECT pg_catalog.set_config('application_name', %s, true)"

WHO_HOLDS_IT = """
SELECT pg_catalog.split_part(taker.application_name, ' ', 2),
       coalesce(nullif(pg_catalog.split_part(taker.application_name, ' ', 4), ''),
                pg_catalog.host(taker.client_addr), ''),
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - taker.xact_start)::pg_catalog.float8,
       taker.pid,
       worker.pid,
       worker.state,
       worker.query,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - worker.query_start)::pg_catalog.float8
  FROM pg_catalog.pg_locks AS lock
  JOIN pg_catalog.pg_database AS here
    ON here.oid = lock.database AND here.datname = pg_catalog.current_database()
  JOIN pg_catalog.pg_stat_activity AS taker
    ON taker.pid = lock.pid
  LEFT JOIN pg_catalog.pg_stat_activity AS worker
    ON worker.pid::pg_catalog.text = pg_catalog.split_part(taker.application_name, ' ', 3)
 WHERE lock.locktype = 'advisory'
   AND lock.granted
   AND lock.objsubid = 1
   AND (lock.classid::pg_catalog.int8 << 32) | lock.objid::pg_catalog.int8 = %s
"""

# pg_locks, not pg_stat_activity: within a transaction the latter shows what it showed first.
IS_IN_A_TRANSACTION = """
SELECT EXISTS (
       SELECT FROM pg_catalog.pg_locks AS lock
        WHERE lock.pid = %s AND lock.locktype = 'virtualxid')
"""

LOCAL_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # A host that vanished without a word gives its turn back in two minutes, not in two hours.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}


class Lock:
    """The connection that asks for the turn, and holds it."""

    def __init__(self, migrating: BaseDatabaseWrapper) -> None:
        self.migrating = migrating
        self.process = os.getpid()
        self.token = f"{self.process}_{secrets.token_hex(4)}"
        self.has_asked = False
        self.rival: Holder | None = None
        self.role = migrating.settings_dict["OPTIONS"].get("assume_role")
        self.twin = twin(migrating)
        self.twin.settings_dict["OPTIONS"].setdefault("keepalives_idle", 60)

    def take(self, *, patience: float, tell: Callable[[str], None]) -> bool:
        """Return whether the turn was taken: False where it is kin's already."""
        was_closed = self.migrating.connection is None
        self.migrating.ensure_connection()
        telling = Telling(tell, self._sentence(patience))

        def before_sleep(state: RetryCallState) -> None:
            telling(state)
            if was_closed:  # its slot may be what the holder needs, and idling may end it
                self.migrating.close()

        holder = self._poll(patience, before_sleep)
        if holder is None and self.rival:
            self._settle(self.rival)
        return holder is None

    def _poll(
        self, patience: float, before_sleep: Callable[[RetryCallState], None]
    ) -> Holder | None:
        retrying = Retrying(
            retry=retry_if_result(_is_rival)
            | retry_if_exception_type((OperationalError, InterfaceError)),
            stop=stop_after_delay(patience),
            wait=within(patience, wait_random(0.1, 1.0)),
            before_sleep=before_sleep,
            retry_error_callback=_last_answer,
        )
        holder: Holder | None = retrying(self._attempt)
        if holder and _is_rival(holder):
            raise LockTimeoutError(self.migrating.alias, patience, holder)
        return holder

    def _settle(self, rival: Holder) -> None:
        """Let the last statement of a run that died come to its end, and connect again."""
        if rival.worker:
            retrying = Retrying(
                retry=retry_if_result(bool),
                stop=stop_after_delay(LAST_STATEMENT),
                wait=wait_random(0.05, 0.2),
                retry_error_callback=_last_answer,
            )
            with suppress(Error):  # a lost lock is told when the turn is over
                retrying(lambda: self._row(IS_IN_A_TRANSACTION, [rival.worker])[0])
        self.migrating.ensure_connection()
        self.follow(self.migrating)

    def _sentence(self, patience: float) -> Callable[[RetryCallState], str]:
        def sentence(state: RetryCallState) -> str:
            error = state.outcome.exception() if state.outcome else None
            why = first_line(error) if error else f"being migrated by {self.rival}"
            return f'Waiting up to {patience:g} s for database "{self.migrating.alias}": {why}'

        return sentence

    def _attempt(self) -> Holder | None:
        """Take the turn, or return its holder; between two attempts no transaction is open."""
        try:
            holder = self._ask()
        except Error as error:
            self.close()
            if self.has_asked:
                raise
            raise LockUnavailableError(self.migrating.alias, error) from error
        self.has_asked = True
        self.rival = holder or self.rival
        return holder

    def _ask(self) -> Holder | None:
        if self.twin.connection is None:
            dial(self.twin).autocommit = True
        local = {"role": self.role} if self.role else {}
        local |= LOCAL_SETTINGS | {"application_name": self._name()}
        if self._row(BEGIN_AND_TRY, [json.dumps(local), KEY])[0]:
            return None
        holder = _holder(self._row(WHO_HOLDS_IT, [KEY]))
        self._row("ROLLBACK")
        return holder

    def _name(self) -> str:
        """Return an application_name that tells the waiting who holds the turn."""
        name = f"safemigrate {self.token} {_backend(self.migrating.connection)} "
        host = socket.gethostname().partition(".")[0]
        return name + host[len(name) - NAME_LENGTH :]

    def _row(self, sql: str, params: list[Any] | None = None) -> tuple[Any, ...]:
        """Return the first row of the last statement, or an empty one."""
        with self.twin.wrap_database_errors, self.twin.connection.cursor() as cursor:
            cursor.execute(sql, params)
            while is_psycopg3 and cursor.nextset():  # psycopg2 is at the last one anyway
                pass
            row: tuple[Any, ...] | None = cursor.fetchone() if cursor.description else None
            return row or ()

    def follow(self, connection: BaseDatabaseWrapper, **_: object) -> None:
        """Show the waiting the backend of a migrating connection that was opened anew."""
        if os.getpid() != self.process or connection.connection is not self.migrating.connection:
            return
        with suppress(Error):
            self._row(RENAME, [self._name()])

    def release(self) -> bool:
        """End the turn; return False if it was lost on the way."""
        if os.getpid() != self.process:
            return True
        try:
            self._row("ROLLBACK")
        except Error:
            return False
        return True

    def close(self) -> None:
        """Close the connection, except in a forked child: its socket is the parent's."""
        if os.getpid() == self.process:
            with suppress(Error):
                self.twin.close()


def _is_rival(holder: Holder | None) -> bool:
    return holder is not None and not _is_kin(holder.token)


def _last_answer(state: RetryCallState) -> Any:
    return state.outcome.result() if state.outcome else None


def _holder(row: tuple[Any, ...]) -> Holder:
    if not row:
        return Holder("", "", None, None, None, "")
    token, host, age, backend, worker, state, query, duration = row
    since = datetime.now(timezone.utc) - timedelta(seconds=age) if age is not None else None
    return Holder(token, host, since, backend, worker, _running(state, query, duration))


def _running(state: str | None, query: str, duration: float | None) -> str:
    """Say what a backend does, on one line and without the values in its text."""
    if state != "active":
        return state or ""
    text = re.sub(r"'(?:[^']|'')*(?:'|$)", "'…'", " ".join(query.split()))
    return f"running for {duration or 0:.0f} s: {text[:100]}"


def _backend(connection: Any) -> int:
    """Return the pid of a driver's connection as its client knows it; a pooler makes one up."""
    try:
        return int(connection.info.backend_pid or 0)
    except Exception:  # noqa: BLE001 - the driver's own, when the connection is lost
        return 0


# --- The migrating session ------------------------------------------------------------------------

# Not behind a pooler, where the backend is another client's in a moment: its pid is not the one
# that the client was told. Not where the server has it on already.
WATCH_THE_CLIENT = """
SELECT pg_catalog.set_config('client_connection_check_interval', '500', false)
 WHERE pg_catalog.current_setting('client_connection_check_interval', true) = '0'
   AND pg_catalog.pg_backend_pid() = %s
"""

STOP_WATCHING = """
SELECT pg_catalog.set_config('client_connection_check_interval', '0', false)
 WHERE pg_catalog.pg_backend_pid() = %s
"""


@contextmanager
def watching(connection: BaseDatabaseWrapper, *, at_once: bool = True) -> Iterator[None]:
    """
    Let the server end this session's statement, uncommitted, once its client is gone.

    Without it a killed run's statement goes on and commits. PostgreSQL 14 and later, where the
    platform has it; of a connection in a transaction, or behind a pooler, the server is not asked.
    Not ``at_once`` means from the moment that ``migrate`` has a plan, so that a run with nothing
    to do sends nothing.
    Connections that the alias opens in the meantime are watched too.
    """
    process = os.getpid()
    watched: list[Any] = []

    def watch(connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias == alias and _set(connection, WATCH_THE_CLIENT):
            watched.append(connection.connection)

    def watch_a_plan(using: str, plan: Any, **_: object) -> None:
        if plan and using == alias and not watched:
            watch(connection)

    alias = connection.alias
    connection.ensure_connection()
    if at_once:
        watch(connection)
    pre_migrate.connect(watch_a_plan)
    try:
        with _on_connecting(watch) if at_once else nullcontext():
            yield
    finally:
        pre_migrate.disconnect(watch_a_plan)
        if os.getpid() == process and connection.connection in watched:
            _set(connection, STOP_WATCHING)


def _set(connection: BaseDatabaseWrapper, sql: str) -> bool:
    """Send a setting past Django, wrappers and query log; return whether the server took it."""
    if connection.in_atomic_block or not connection.autocommit:
        return False
    with suppress(Error), connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(sql, [_backend(connection.connection)])
        return cursor.fetchone() is not None
    return False


@contextmanager
def _on_connecting(receiver: Callable[..., None]) -> Iterator[None]:
    connection_created.connect(receiver, weak=False)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)
