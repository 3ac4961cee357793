"""The execute wrapper of one connection: looks first, guards, catches, and has it repaired."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import Error, IntegrityError

from safemigrate.report import Audience
from safemigrate.sequences.state import (
    FAILED,
    IDLE,
    SAVEPOINT,
    in_transaction,
    looking,
    obstacle_of,
    settle,
    table_of,
    transaction_status,
)

from .collisions import collision_of, explanation
from .repair import Attempt, Repair, Repairer, fed_columns, feeders, reading, table_in
from .statements import UNREADABLE, Change, Insert, Statement, read
from .trust import Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from .collisions import Collision

    Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

# PostgreSQL keeps 64 subtransactions of a transaction at hand for other sessions; beyond that
# every one of them has to look into pg_subtrans. Some are left to the migration itself.
GUARDS = 60
UNGUARDED = "The statement failed in a transaction and had no savepoint, so it was not repeated."


@dataclass(frozen=True)
class _Debt:
    """A collision in a transaction that had no guard: it is looked at after the rollback."""

    error: IntegrityError
    collision: Collision


class Healer:
    """What stands between a connection's statements and the server during ``healing()``."""

    def __init__(self, connection: BaseDatabaseWrapper, *, retries: int, touch: bool) -> None:
        self.connection = connection
        self.audience = Audience(connection.alias)
        self._repairer = Repairer(connection, self.audience, retries=retries, touch=touch)
        self._trust = Trust(connection)
        self._guards = 0
        self._debts: list[_Debt] = []

    def __call__(
        self,
        execute: Execute,
        sql: Any,
        params: Any,
        many: bool,  # noqa: FBT001 - as Django calls it
        context: dict[str, Any],
    ) -> Any:
        if not many and self._trust.lets_pass(sql):
            return self._send_routine(execute, sql, params, context)
        if not self._can_look(context):
            # In a failed transaction this is the rollback to a savepoint, past looks of ours.
            self._trust.learn(self._read(sql), is_done=False)
            return execute(sql, params, many, context)
        if many:
            params = list(params)
        with self._among_ourselves():
            if self._trust.catch_up():
                self._guards = 0
                self._settle_debts()
            statement = self._read(sql)
            is_guarded = self._prepare(statement)
        send = partial(execute, sql, params, many, context)
        is_done = False
        try:
            result = self._send(self._attempt(send, statement, is_guarded=is_guarded, many=many))
            is_done = True
        finally:
            self._trust.learn(statement, is_done=is_done)
        self._trust.let_pass(sql, statement)
        return result

    def _send_routine(
        self, execute: Execute, sql: str, params: Any, context: dict[str, Any]
    ) -> Any:
        try:
            return execute(sql, params, False, context)
        except IntegrityError as error:
            failure = error
        send = partial(execute, sql, params, False, context)
        with self._among_ourselves():
            return self._mend(failure, self._attempt(send, read(sql)))

    def _attempt(
        self,
        send: Callable[[], Any],
        statement: Statement,
        *,
        is_guarded: bool = False,
        many: bool = False,
    ) -> Attempt:
        # psycopg2 sends, and so commits, the rows of executemany() one by one.
        is_piecemeal = many and not hasattr(self.connection.connection, "pgconn")
        return Attempt(
            send=send,
            statement=statement,
            is_guarded=is_guarded,
            may_repeat_in_autocommit=not (
                is_piecemeal or statement.never_in_autocommit or statement.controls_transaction
            ),
        )

    def _send(self, attempt: Attempt) -> Any:
        try:
            result = attempt.send()
        except IntegrityError as error:
            failure = error
        else:
            if attempt.is_guarded:
                self._release()
            return result
        with self._among_ourselves():
            return self._mend(failure, attempt)

    @contextmanager
    def _among_ourselves(self) -> Iterator[None]:
        """Send the statements of the block past this wrapper and, as they aren't theirs, others."""
        wrappers, self.connection.execute_wrappers = self.connection.execute_wrappers, []
        try:
            yield
        finally:
            self.connection.execute_wrappers = wrappers

    def _is_closed(self) -> bool:
        return self.connection.connection is None or bool(self.connection.connection.closed)

    def _can_look(self, context: dict[str, Any]) -> bool:
        # A named cursor lives on the server and can be executed but once.
        return not (
            self.connection.needs_rollback
            or getattr(context["cursor"].cursor, "name", None)
            or self._is_closed()
            or transaction_status(self.connection) == FAILED
        )

    def _read(self, sql: Any) -> Statement:
        try:
            if isinstance(sql, bytes):
                sql = sql.decode()
            elif not isinstance(sql, str):
                sql = sql.as_string(self.connection.connection)
        except Exception:  # noqa: BLE001 - whatever a stranger's as_string() raises
            return UNREADABLE
        return read(sql)

    # Before: look and guard.

    def _prepare(self, statement: Statement) -> bool:
        """Look at what the statement draws from or takes; return whether it now has a guard."""
        may_guard = (
            self._guards < GUARDS
            and not statement.controls_transaction
            and in_transaction(self.connection)
        )
        has_guard = False
        for target in statement.targets:
            if self._trust.needs_look(target):
                if has_guard:
                    self._release()
                self._look_first(target, keep_savepoint=may_guard)
                has_guard = may_guard
        if may_guard and not has_guard and self._needs_guard(statement):
            self._execute(f"SAVEPOINT {SAVEPOINT}")
            has_guard = True
        self._guards += has_guard
        return has_guard

    def _look_first(self, target: Insert | Change, *, keep_savepoint: bool) -> None:
        """Look, and where that failed once more: an upsert would lose its rows in silence."""
        for is_last in (False, True):
            with (
                self._enduring(target.table, tell=is_last),
                looking(self.connection, keep_savepoint=keep_savepoint) as cursor,
            ):
                self._look(cursor, target)
            if is_last or not self._trust.needs_look(target):
                return
            if keep_savepoint:
                self._release()

    def _look(self, cursor: Any, target: Insert | Change) -> None:
        oid = settle(cursor, target.table)
        table = None if oid is None else table_of(cursor, oid=oid)
        if table is None:
            return
        self._trust.remember(target.table, table)
        for column, sequence in table.fed.items():
            if target.calls_for_look(column, table.columns):
                self._repairer.resync(cursor, table, sequence)
                self._trust.rely_on(target.table)

    def _needs_guard(self, statement: Statement) -> bool:
        """Tell whether the statement may insert into a table that it doesn't name."""
        return statement.may_write_elsewhere or any(
            self._trust.may_write_elsewhere(target.table) for target in statement.targets
        )

    @contextmanager
    def _enduring(self, what: object, *, tell: bool = True) -> Iterator[None]:
        """Let no look's failure become the statement's, unless nothing could be sent after it."""
        try:
            yield
        except Error as error:
            if self._is_closed() or transaction_status(self.connection) == FAILED:
                raise
            if tell:
                self.audience.note(f"Could not look at {what}: {obstacle_of(error)}")

    def _execute(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    def _release(self) -> None:
        if transaction_status(self.connection) != IDLE:
            with self._among_ourselves():
                self._execute(f"RELEASE SAVEPOINT {SAVEPOINT}")

    # After: catch, and have it repaired.

    def _mend(self, failure: IntegrityError, attempt: Attempt) -> Any:
        """Return what the healed statement returned, or raise ``failure`` as it came."""
        collision = collision_of(failure)
        if collision is None or self._is_plainly_genuine(collision, attempt.statement):
            self.audience.explain(failure, explanation(failure, attempt.statement))
            raise failure
        inside = in_transaction(self.connection)
        if inside and not attempt.is_guarded:
            self._debts.append(_Debt(failure, collision))
            self._trust.forget_all()
            raise failure
        try:
            result = Repair(self._repairer, attempt, self._trust, inside=inside).mend(failure)
        except Error:
            if inside:
                self._leave_failed()
            raise
        if inside:
            self._release()
        return result

    def _is_plainly_genuine(self, collision: Collision, statement: Statement) -> bool:
        """Tell, without asking the server, whether the statement named the key itself."""
        where = (collision.schema, collision.table)
        return any(
            reading(statement, table, fed_columns(table, collision), self._trust).is_genuine
            for table in self._trust
            if (table.schema, table.name) == where
        )

    def _leave_failed(self) -> None:
        """Leave the transaction as the error alone would have left it: failed."""
        if transaction_status(self.connection) not in (IDLE, FAILED):
            with suppress(Error):
                self._execute("ROLLBACK TO SAVEPOINT safemigrate_gave_up")

    # At the end of a transaction, and of the run.

    def settle(self, leaving: BaseException | None = None) -> None:
        """Look at what is still to be looked at; tell what is known of the ``leaving`` error."""
        with self._among_ourselves():
            self._settle_debts()
        if leaving is not None:
            self.audience.tell_why(leaving)

    def _settle_debts(self) -> None:
        debts, self._debts = self._debts, []
        for debt in debts:
            self.audience.explain(debt.error, f"{UNGUARDED} {self._settled(debt.collision)}")

    def _settled(self, collision: Collision) -> str:
        where = f"{collision.schema}.{collision.table}"
        if self._is_closed() or transaction_status(self.connection) != IDLE:
            return f"After the rollback, type: manage.py resyncsequences --check (for {where})."
        findings = []
        with self._enduring(where), looking(self.connection) as cursor:
            if table := table_in(cursor, collision):
                sequences = feeders(table, collision)
                findings = [self._repairer.resync(cursor, table, each) for each in sequences]
        if any(finding.moved_to is not None for finding in findings):
            return f"The sequence of {where} was behind and is right now: run the command again."
        return f"After the rollback no sequence of {where} is behind."
