"""The migration lock: one run migrates a database, the others wait for it.

It is a transaction-level advisory lock on a connection of its own. It is polled: the snapshot of a
session that waited for it in the server would deadlock with CREATE INDEX CONCURRENTLY. It is
released when the process and its forks have ended. It does not stop a run that has lost it: see
``watching``.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import closing, contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db import Error, OperationalError
from django.db.backends.signals import connection_created
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_random,
)

from safemigrate import driver
from safemigrate.plans import receiving
from safemigrate.printing import first_line, printable_ascii
from safemigrate.report import logger

from .errors import (
    LockError,
    LockHeldByParentError,
    LockLostError,
    LockTimeoutError,
    LockUnavailableError,
)
from .holder import Holder, holder_of, name_of_run
from .kin import is_held_by_kin, is_kin, is_parent, known_to_kin
from .twin import dial, knock, twin
from .wait import Telling, error_of, within
from .watching import watching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from tenacity import RetryCallState

# The first of the lock's two numbers; the second is that of the schema of django_migrations.
KEY = int.from_bytes(b"safe", "big")
# Seconds that an answer may always take; and those that the answer of a pooler, or of the session
# that holds the lock, may take at most.
SHORTEST_ANSWER, LONGEST_ANSWER = 5.0, 30.0


@contextmanager
def migration_lock(
    connection: BaseDatabaseWrapper,
    *,
    patience: float,
    tell: Callable[[str], None],
    waited: Callable[[], None] = lambda: None,
) -> Iterator[MigrationLock]:
    """Hold the migration lock, waiting for it up to ``patience`` seconds (0: try once).

    ``waited`` is called after a wait, in which other runs may have migrated, and before anything is
    sent on the connection again.

    Raise LockTimeoutError if somebody else keeps it, LockHeldByParentError if that is the run that
    has started this one, LockUnavailableError if it cannot be taken here, and the connection's own
    error if it cannot connect. A run that the holder itself has started takes no lock, nor does it
    wait, in a forked or spawned child either. On another vendor's database there is none.
    """
    with closing(MigrationLock(connection, patience)) as lock:
        if connection.vendor == "postgresql" and not is_held_by_kin(connection):
            lock.taken = lock.take(tell, waited)
        if not lock.taken:
            yield lock
            return
        try:
            with (
                known_to_kin(lock.token, connection),
                receiving(connection_created, lock.follow),
                watching(connection),
            ):
                yield lock
        finally:
            lock.release()


# All of it is local to the transaction, because behind a pooler others use the session as well. If
# the server is too old for a setting, current_setting() does not find it. The schema is found by
# the search_path of the role and the alias, by functions that leave no lock on a catalogue: what
# rewrites one, such as VACUUM FULL in a migration, would wait for it.
BEGIN_AND_TRY = """
BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY;
SELECT pg_catalog.set_config(own.name, own.value, true)
  FROM pg_catalog.json_each_text(%s::pg_catalog.json) AS own (name, value);
SELECT pg_catalog.set_config('safemigrate.schema', coalesce(
       (pg_catalog.pg_identify_object(
           'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid,
           pg_catalog.to_regclass('django_migrations')::pg_catalog.oid, 0)).schema,
       pg_catalog.quote_ident(pg_catalog.current_schema()), ''), true);
SELECT pg_catalog.set_config(own.name, own.value, true)
  FROM pg_catalog.json_each_text(%s::pg_catalog.json) AS own (name, value)
 WHERE pg_catalog.current_setting(own.name, true) IS NOT NULL;
SELECT key.schema,
       pg_catalog.pg_backend_pid() AS backend,
       pg_catalog.pg_try_advisory_xact_lock(%s, key.schema) AS is_taken
  FROM pg_catalog.hashtext(pg_catalog.current_setting('safemigrate.schema')) AS key (schema)
"""

RENAME = "SELECT pg_catalog.set_config('application_name', %s, true)"

# pg_locks, not pg_stat_activity: within a transaction the latter shows what it showed first.
IS_IN_A_TRANSACTION = """
SELECT EXISTS (
       SELECT FROM pg_catalog.pg_locks AS lock
        WHERE lock.pid = %s AND lock.locktype = 'virtualxid') AS is_busy
"""

# As the role that has logged in, whose session it is.
END = """
SELECT pg_catalog.set_config('role', 'none', true);
SELECT pg_catalog.pg_terminate_backend(%s)
"""

# The migrating transaction may hold the table's lock itself.
IS_RECORDED = """
SELECT pg_catalog.set_config('lock_timeout', '1s', true) AS patience,
       pg_catalog.set_config('search_path', COALESCE(
           pg_catalog.quote_ident(%s), pg_catalog.current_setting('safemigrate.schema')), true
       ) AS path;
SELECT EXISTS (
       SELECT FROM django_migrations AS record
        WHERE record.app::pg_catalog.text OPERATOR(pg_catalog.=) %s
          AND record.name::pg_catalog.text OPERATOR(pg_catalog.=) %s) AS is_recorded
"""

LOCAL_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # A host that vanishes without a word loses its lock after two minutes, not after two hours.
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}


class MigrationLock:
    """The connection that asks for the migration lock, and holds it if it has ``taken`` it.

    ``lost`` is known at the end. A nested run does not take it.
    """

    def __init__(self, migrating: BaseDatabaseWrapper, patience: float) -> None:
        self.migrating = migrating
        self.alias = migrating.alias
        self.taken = self.lost = False
        self.patience = patience
        self.end = monotonic() + patience
        self.process = os.getpid()
        self.token = f"{self.process}_{secrets.token_hex(4)}"
        self.rival: Holder | None = None
        self.is_given_up = False
        self.is_pooled = False
        self.role = migrating.settings_dict["OPTIONS"].get("assume_role")
        self.twin = twin(migrating)
        self.twin.settings_dict["OPTIONS"].setdefault("keepalives_idle", 60)

    @property
    def left(self) -> float:
        return max(0.0, self.end - monotonic())

    # Taking it.

    def take(self, tell: Callable[[str], None], waited: Callable[[], None]) -> bool:
        """Return whether the lock was taken: False if this run's family holds it already."""
        has_waited = False
        was_closed = self.migrating.connection is None
        self.migrating.ensure_connection()
        telling = Telling(tell, self._sentence)

        def before_sleep(state: RetryCallState) -> None:
            nonlocal has_waited
            has_waited = True
            telling(state)
            if was_closed:  # its slot may be what the holder needs, and idling may end it
                self.migrating.close()

        holder: Holder | None = self._retrying(_is_rival, before_sleep)(self._attempt)
        if has_waited:
            waited()
        if holder is not None:
            return False
        self._prove()
        if has_waited:
            if self.rival:
                self._let_finish(self.rival, telling)
            self._retrying(lambda _: False, telling)(self._reconnect)
        return True

    def _retrying(
        self, until: Callable[[Any], bool], before_sleep: Callable[[RetryCallState], None]
    ) -> Retrying:
        left = self.left
        return Retrying(
            retry=retry_if_result(until) | retry_if_exception_type(Error),
            stop=stop_after_delay(left),
            wait=within(left, wait_random(0.1, 1.0)),
            before_sleep=before_sleep,
            retry_error_callback=self._give_up,
        )

    def _give_up(self, state: RetryCallState) -> None:
        error = error_of(state)
        if error or self.rival is None:
            raise LockUnavailableError(self.alias, error) from error
        raise LockTimeoutError(self.alias, self.patience, self.rival)

    def _sentence(self, state: RetryCallState) -> str:
        error = error_of(state)
        why = first_line(error) if error else f"held by {self.rival}"
        return printable_ascii(
            f"Waiting up to {self.patience:g} s for the migration lock of database "
            f'"{self.alias}": {why}'
        )

    def _attempt(self) -> Holder | None:
        """Take the lock, or return its holder. No transaction is open between two attempts."""
        with self._closing_on_failure():
            holder = self._ask()
        if holder and not is_kin(holder.token):
            self.rival = holder
            if is_parent(holder):
                raise LockHeldByParentError(self.alias, holder)
        return holder

    @contextmanager
    def _closing_on_failure(self) -> Iterator[None]:
        """Raise an Error only where another attempt, on another connection, may do better."""
        try:
            yield
        except Exception as error:  # a project's own pool of connections raises its own
            self.close()
            if isinstance(error, Error) and driver.is_of_the_connection(error):
                raise
            raise LockUnavailableError(self.alias, error) from error

    def _ask(self) -> Holder | None:
        patience = max(self.left, SHORTEST_ANSWER)
        if self.twin.connection is None:
            dial(self.twin, patience=patience).autocommit = True
        local = LOCAL_SETTINGS | {"application_name": self._name()}
        role = {"role": self.role} if self.role else {}
        with driver.deadline(self.twin, patience), driver.cursor(self.twin) as ours:
            asked = ours.last_row(BEGIN_AND_TRY, [json.dumps(role), json.dumps(local), KEY])
            self.is_pooled = asked.backend != driver.backend_pid(self.twin.connection)
            if asked.is_taken:
                return None
            holder = holder_of(ours, (KEY, asked.schema))
            ours.execute("ROLLBACK")
        return holder

    def _name(self) -> str:
        return name_of_run(self.token, driver.backend_pid(self.migrating.connection))

    def _let_finish(self, rival: Holder, telling: Telling) -> None:
        """Wait for the transaction of a run that has ended, or lost the lock, to end as well."""
        if rival.worker:
            self._retrying(bool, telling)(self._is_busy, rival.worker)

    def _is_busy(self, backend: int) -> bool:
        # A lost lock is told by check() and release().
        with suppress(Error), driver.cursor(self.twin) as ours:
            return bool(ours.row(IS_IN_A_TRANSACTION, [backend]).is_busy)
        return False

    def _reconnect(self) -> None:
        """Reopen the migrating connection, if the wait or the server's restart has closed it."""
        connection = self.migrating
        if connection.in_atomic_block:
            return
        connection.ensure_connection()
        if not connection.is_usable():
            connection.close()
            raise OperationalError("the migrating connection was lost")
        self.follow(connection)

    def _prove(self) -> None:
        """Make sure that a pooler lends a second connection while the lock keeps the first."""
        connection = self.migrating
        if not self.is_pooled or connection.in_atomic_block:
            return
        patience = min(max(self.patience, SHORTEST_ANSWER), LONGEST_ANSWER)
        try:
            if connection.connection is None:
                knock(twin(connection), patience)
                return
            with driver.deadline(connection, patience), driver.cursor(connection) as ours:
                ours.execute("SELECT 1")
        except Error as error:
            connection.close()
            raise LockUnavailableError(self.alias, error) from error

    # Holding it.

    def follow(self, connection: BaseDatabaseWrapper, **_: object) -> None:
        """Show to waiting runs the backend of a migrating connection that was reopened."""
        if os.getpid() != self.process or connection.connection is not self.migrating.connection:
            return
        if driver.is_closed(self.twin):  # the lock was lost
            return
        with suppress(Error), driver.cursor(self.twin) as ours:
            ours.execute(RENAME, [self._name()])

    def check(self) -> bool:
        """Return whether the lock was held all along; if it wasn't, it has been taken again.

        Raises LockLostError if it can't be. Costs one round trip on the lock's connection, whose
        silence proves nothing: what is between the two may have forgotten the session.
        """
        if not self.taken or os.getpid() != self.process:
            return True
        try:
            self._send("SELECT 1")
        except Error as error:
            self._take_again(error)
            return False
        return True

    def is_recorded(self, app: str, name: str) -> bool | None:
        """Return whether the last committed state has a migration applied; None if unknown.

        Asked on the lock's connection: the migration may have changed the role, the search path or
        the snapshot of its own. Tenants have their own records.
        """
        tenant = getattr(self.migrating, "schema_name", None) or None
        with (
            suppress(Error),
            driver.deadline(self.twin, LONGEST_ANSWER),
            driver.savepoint(self.twin) as ours,
        ):
            return bool(ours.last_row(IS_RECORDED, [tenant, app, name]).is_recorded)
        return None

    def _send(self, sql: str) -> None:
        with driver.deadline(self.twin, LONGEST_ANSWER), driver.cursor(self.twin) as ours:
            ours.execute(sql)

    def _take_again(self, lost: Error) -> None:
        self.is_given_up = True  # unless it is had again
        self.close()
        self.end = monotonic()
        retrying = Retrying(
            retry=retry_if_result(self._is_own) | retry_if_exception_type(Error),
            stop=stop_after_delay(SHORTEST_ANSWER),
            wait=wait_random(0.1, 0.5),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        try:
            holder = retrying(self._ask_again)
            why = f"and is held by {holder}" if holder else ""
        except (LockError, Error) as error:
            reason = printable_ascii(first_line(error.__cause__ or error))
            why = f"and could not be taken again: {reason}"
        self.is_given_up = bool(why)
        logger.warning(
            'The migration lock of database "%s" was lost (%s) %s',
            self.alias,
            first_line(lost),
            why or "and was taken again",
            extra={"using": self.alias},
        )
        if why:
            raise LockLostError(self.alias, why)

    def _ask_again(self) -> Holder | None:
        """Take the lock, or return its holder; a session of our own is ended, for it is cut off."""
        with self._closing_on_failure():
            holder = self._ask()
            if holder and self._is_own(holder):
                with driver.cursor(self.twin) as ours:
                    ours.execute(END, [holder.pid])
            return holder

    def _is_own(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self.token

    def release(self) -> None:
        """Release the lock; it is ``lost`` if it was so during the run and nobody was told."""
        if os.getpid() != self.process or self.is_given_up:
            return
        try:
            self._send("ROLLBACK")
        except Error as error:
            logger.warning(
                'The migration lock of database "%s" was lost: %s',
                self.alias,
                first_line(error),
                extra={"using": self.alias},
            )
            self.lost = True

    def close(self) -> None:
        """Close the connection, except in a forked child: its socket is the parent's."""
        if os.getpid() == self.process:
            with suppress(Error):
                self.twin.close()


def _is_rival(holder: Holder | None) -> bool:
    return holder is not None and not is_kin(holder.token)
