"""Decide: what is looked at, what is guarded, what is repeated.

The one public name is :func:`healing`. It puts an execute wrapper (Django's "database
instrumentation") on the PostgreSQL connections of this thread, and takes it away again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error, IntegrityError, connections
from tenacity import Retrying, retry_if_exception

from . import conf
from .collisions import Collision, collision_of, explanation
from .sequences import (
    FAILED,
    IDLE,
    SAVEPOINT,
    Finding,
    Sequence,
    Table,
    drain,
    in_transaction,
    look,
    looking,
    obstacle_of,
    own_transaction,
    resync,
    settle,
    table_of,
    transaction_status,
)
from .signals import sequence_resynced
from .statements import UNREADABLE, Insert, Statement, bare_name, read
from .survey import current_schemas, sequences_in, survey

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("safemigrate")
# Without a handler of the project's own, logging would print our warnings a second time.
logger.addHandler(logging.NullHandler())

# PostgreSQL keeps 64 subtransactions of a transaction at hand for other sessions; beyond that
# every one of them has to look into pg_subtrans. Some are left to the migration itself.
GUARDS = 60
ALONE = "what it gives is not a sequence's own next value, so it was left alone."
UNGUARDED = "The statement failed in a transaction and had no savepoint, so it was not repeated."

ANY_TRIGGERS = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE NOT tgisinternal)
        OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE relhasrules AND oid >= 16384)
"""

Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]


@dataclass(frozen=True)
class Resync:
    """A sequence that was moved past the keys it feeds.

    ``before`` and ``after`` are the values that it would have given, and gives now, next.
    ``repeated`` tells whether a statement had failed and was sent again.
    """

    using: str
    schema: str
    table: str
    column: str
    sequence: str
    before: int
    after: int
    repeated: bool = False

    def __str__(self) -> str:
        return (
            f"Resynced {self.schema}.{self.sequence} from {self.before} to {self.after} "
            f"for {self.table}.{self.column}"
        )


@dataclass(frozen=True)
class Note:
    """Something that was found and not mended; ``text`` says what to type.

    ``is_fatal`` tells that it explains the error that the run is about to end with.
    """

    using: str
    text: str
    is_fatal: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(eq=False)
class Report:
    """What a run of :func:`healing` did: ``resyncs`` and ``notes``, in order."""

    resyncs: list[Resync] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    tell: Callable[[Resync | Note], None] | None = None

    def add(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            self.resyncs.append(event)
        else:
            self.notes.append(event)
        if self.tell:
            self.tell(event)


@contextmanager
def healing(
    using: str | Iterable[str] | None = None,
    *,
    max_retries: int | None = None,
    heal: bool | None = None,
    tell: Callable[[Resync | Note], None] | None = None,
) -> Iterator[Report]:
    """Let no sequence that is behind stop, or silently cut short, what the block does.

    ``using`` is an alias, several, or None for every PostgreSQL database of the settings; only
    the connections of the current thread are meant. ``max_retries`` is how often one statement is
    repeated for one table (default: the setting ``SAFEMIGRATE_MAX_RETRIES``, 3); 0 resyncs without
    repeating. With ``heal`` False (default: ``SAFEMIGRATE_HEAL``, True) nothing is touched, only
    noted. ``tell`` is called with each :class:`Resync` and :class:`Note` as it happens.

    Inside another ``healing()`` of the same connection the outer one's options stand. A connection
    that is configured with ``AUTOCOMMIT: False`` is left alone.

    Yields a :class:`Report`. Raises ImproperlyConfigured for a setting that can't be used.
    """
    retries = conf.max_retries() if max_retries is None else max_retries
    touch = conf.heal() if heal is None else heal
    report = Report(tell=tell)
    with ExitStack() as stack:
        for connection in _connections(using):
            stack.enter_context(_installed(connection, report, retries=retries, touch=touch))
        yield report


def resync_first(
    using: str, *, heal: bool = True, tell: Callable[[Resync | Note], None] | None = None
) -> Report:
    """Set right every sequence in the current schemas of a database, once and beforehand.

    For what :func:`healing` can't see, such as COPY and rows that triggers insert with ON CONFLICT.
    """
    report = Report(tell=tell)
    for connection in _connections(using):
        healer = Healer(connection, retries=0, touch=heal)
        healer.reports.append(report)
        oids = sequences_in(connection, current_schemas(connection))
        for chunk in survey(connection, oids, move=heal):
            for finding in chunk:
                healer.tell_of(finding)
                if finding.status == "unknown":
                    healer.note(f"Could not look at {finding.sequence}: {finding.obstacle}")
    return report


def _connections(using: str | Iterable[str] | None) -> Iterator[BaseDatabaseWrapper]:
    met: list[BaseDatabaseWrapper] = []
    for alias in [using] if isinstance(using, str) else using or connections:
        try:
            connection = connections[alias]
        except ImproperlyConfigured:
            if using is not None:
                raise
            continue
        # A test's MIRROR is the connection of another alias.
        if connection.vendor == "postgresql" and connection not in met:
            met.append(connection)
            if connection.settings_dict["AUTOCOMMIT"]:
                yield connection


@contextmanager
def _installed(
    connection: BaseDatabaseWrapper, report: Report, *, retries: int, touch: bool
) -> Iterator[None]:
    wrappers = connection.execute_wrappers
    healer = next((each for each in wrappers if isinstance(each, Healer)), None)
    is_outermost = healer is None
    if healer is None:
        healer = Healer(connection, retries=retries, touch=touch)
        wrappers.append(healer)
    healer.reports.append(report)
    try:
        yield
    except BaseException as error:
        healer.settle(error)
        raise
    else:
        healer.settle()
    finally:
        healer.reports.remove(report)
        # By identity: leaving connection.execute_wrapper() takes off whichever stands last.
        if is_outermost and healer in wrappers:
            wrappers.remove(healer)


@dataclass(frozen=True)
class _Attempt:
    """A statement on its way, and how to send it."""

    send: Callable[[], Any]
    statement: Statement
    is_guarded: bool
    may_repeat_in_autocommit: bool


@dataclass(frozen=True)
class _Debt:
    """A collision in a transaction that had no guard: it is looked at after the rollback."""

    error: IntegrityError
    collision: Collision


class Healer:
    """The execute wrapper of one connection, and what it has learned of the tables there."""

    def __init__(self, connection: BaseDatabaseWrapper, *, retries: int, touch: bool) -> None:
        self.connection = connection
        self.retries = retries
        self.touch = touch
        self.reports: list[Report] = []
        self._busy = False
        self._driver: Any = None
        self._tables: dict[str, Table] = {}
        self._trusted: set[str] = set()
        # What the current transaction has redefined, and whether it may have changed anything.
        self._redefined: set[str] = set()
        self._is_unsure = False
        self._any_triggers: bool | None = None
        self._guards = 0
        self._debts: list[_Debt] = []
        self._explanations: list[tuple[BaseException, str]] = []
        self._noted: set[str] = set()
        self._left_behind: set[int] = set()

    def __call__(
        self,
        execute: Execute,
        sql: Any,
        params: Any,
        many: bool,  # noqa: FBT001 - as Django calls it
        context: dict[str, Any],
    ) -> Any:
        if self._busy or not self._can_look(context):
            return execute(sql, params, many, context)
        if many:
            params = list(params)
        with self._among_ourselves():
            self._catch_up()
            statement = self._read(sql)
            is_guarded = self._prepare(statement)
        attempt = _Attempt(
            send=partial(execute, sql, params, many, context),
            statement=statement,
            is_guarded=is_guarded,
            may_repeat_in_autocommit=not (
                statement.never_in_autocommit
                or statement.controls_transaction
                # psycopg2 sends, and so commits, the rows of executemany() one by one.
                or (many and not hasattr(self._driver, "pgconn"))
            ),
        )
        try:
            return self._send(attempt)
        finally:
            self._learn(statement)

    def _send(self, attempt: _Attempt) -> Any:
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
        """Let the statements of the block pass this wrapper as they are."""
        was_busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = was_busy

    def _execute(self, sql: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def _can_look(self, context: dict[str, Any]) -> bool:
        # A named cursor lives on the server and can be executed but once.
        return not (
            self.connection.needs_rollback
            or getattr(context["cursor"].cursor, "name", None)
            or self.connection.connection is None
            or self.connection.connection.closed
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

    # What is known of the tables, and until when.

    def _key(self, table: str) -> str:
        # django-tenants sets the search_path beneath the wrappers, one schema after another.
        return f"{getattr(self.connection, 'schema_name', '')} {table}"

    def _catch_up(self) -> None:
        """Forget what may not hold any more, now that a transaction or a connection has ended."""
        if self.connection.connection is not self._driver:
            self._driver = self.connection.connection
            self._forget_all()
        if transaction_status(self.connection) != IDLE:
            return
        self._guards = 0
        if self._is_unsure:
            self._forget_all()
        elif self._redefined:
            self._forget(self._redefined)
        self._is_unsure = False
        self._redefined = set()
        self._settle_debts()

    def _forget_all(self) -> None:
        self._tables.clear()
        self._trusted.clear()
        self._any_triggers = None

    def _forget(self, names: Iterable[str]) -> None:
        for key in [key for key in self._tables if bare_name(key) in names]:
            del self._tables[key]
            self._trusted.discard(key)

    def _learn(self, statement: Statement) -> None:
        """Take from a statement that was sent what it means for the tables that are trusted."""
        if statement.ends_trust:
            self._forget_all()
            self._is_unsure = True
        if statement.redefines:
            self._forget(statement.redefines)
            self._redefined |= statement.redefines
        for insert in statement.inserts:
            if table := self._tables.get(self._key(insert.table)):
                self._distrust(
                    sequence
                    for column, sequence in table.fed.items()
                    if insert.names(column, table.columns)
                )
        for change in statement.changes:
            # By the column's name alone: the table may be known by another spelling, or a view.
            self._distrust(
                table.fed[name]
                for table in list(self._tables.values())
                for name in table.fed.keys() & change.columns
            )

    def _distrust(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._trusted -= {
                key
                for key in self._trusted
                if any(each.oid == sequence.oid for each in self._tables[key].sequences)
            }

    # Before: look and guard.

    def _prepare(self, statement: Statement) -> bool:
        """Look at what the statement will draw from; return whether it now has a guard."""
        needs_guard = statement.may_write_elsewhere
        may_guard = (
            in_transaction(self.connection)
            and not statement.controls_transaction
            and self._guards < GUARDS
        )
        has_guard = False
        for insert in statement.inserts:
            if self._needs_look(insert):
                if has_guard:
                    self._release()
                has_guard = self._look_first(insert, keep_savepoint=may_guard)
            needs_guard |= self._is_indirect(insert.table)
        if may_guard and not needs_guard and statement.changes and self._has_any_triggers():
            needs_guard = any(self._is_indirect(each.table) for each in statement.changes)
        if may_guard and needs_guard and not has_guard:
            self._execute(f"SAVEPOINT {SAVEPOINT}")
            has_guard = True
        self._guards += has_guard
        return has_guard

    def _needs_look(self, insert: Insert) -> bool:
        key = self._key(insert.table)
        table = self._tables.get(key)
        return table is None or (
            key not in self._trusted
            and any(insert.leaves(column, table.columns) for column in table.fed)
        )

    def _look_first(self, insert: Insert, *, keep_savepoint: bool) -> bool:
        key = self._key(insert.table)
        with (
            self._enduring(insert.table),
            looking(self.connection, keep_savepoint=keep_savepoint) as cursor,
        ):
            table = self._table_named(cursor, insert.table)
            if table is None:
                return keep_savepoint
            for column, sequence in table.fed.items():
                if insert.leaves(column, table.columns):
                    self.resync(cursor, table, sequence)
                    self._trusted.add(key)
        return keep_savepoint

    def _table_named(self, cursor: Any, name: str) -> Table | None:
        oid = settle(cursor, name)
        table = None if oid is None else table_of(cursor, oid=oid)
        if table:
            self._tables[self._key(name)] = table
        return table

    @contextmanager
    def _enduring(self, what: object) -> Iterator[None]:
        """Let no look's failure become the statement's, unless the connection itself is gone."""
        try:
            yield
        except Error as error:
            if self.connection.connection is None or self.connection.connection.closed:
                raise
            self.note(f"Could not look at {what}: {obstacle_of(error)}")

    def _is_indirect(self, name: str) -> bool:
        """Tell whether writing to a table may insert into another."""
        key = self._key(name)
        if key not in self._tables:
            with self._enduring(name), looking(self.connection) as cursor:
                self._table_named(cursor, name)
        table = self._tables.get(key)
        return table is None or table.has_triggers or table.is_view

    def _has_any_triggers(self) -> bool:
        if self._any_triggers is None:
            self._any_triggers = bool(self._execute(ANY_TRIGGERS))
        return self._any_triggers

    def _release(self) -> None:
        if transaction_status(self.connection) != IDLE:
            with self._among_ourselves():
                self._execute(f"RELEASE SAVEPOINT {SAVEPOINT}")

    # After: catch, resync, repeat.

    def _mend(self, failure: IntegrityError, attempt: _Attempt) -> Any:
        """Heal what ``failure`` names and repeat the statement, or raise ``failure``."""
        collision = collision_of(failure)
        if collision is None or self._is_plainly_genuine(collision, attempt.statement):
            self.explain(failure, explanation(failure, attempt.statement))
            raise failure
        inside = in_transaction(self.connection)
        if inside and not attempt.is_guarded:
            self._debts.append(_Debt(failure, collision))
            self._forget_all()
            raise failure
        repair = _Repair(self, attempt, inside=inside)
        try:
            if not repair.heals(failure):
                raise failure
            result = Retrying(retry=retry_if_exception(repair.heals), reraise=True)(repair.repeat)
        except Error:
            if inside:
                self._leave_failed()
            raise
        if inside:
            self._release()
        return result

    def _leave_failed(self) -> None:
        """Leave the transaction as the error alone would have left it: failed."""
        if transaction_status(self.connection) in (IDLE, FAILED):
            return
        with suppress(Error):
            self._execute("ROLLBACK TO SAVEPOINT safemigrate_gave_up")

    def _is_plainly_genuine(self, collision: Collision, statement: Statement) -> bool:
        where = (collision.schema, collision.table)
        for table in self._tables.values():
            if (table.schema, table.name) == where:
                return self.says(table, collision, statement) == (True, False)
        return False

    def says(self, table: Table, collision: Collision, statement: Statement) -> tuple[bool, bool]:
        """Tell whether the statement names, and whether it leaves, the key that collided."""
        columns = [
            each for each in table.indexes.get(collision.constraint, ()) if each in table.fed
        ]
        names = leaves = False
        for insert in statement.inserts:
            target = self._tables.get(self._key(insert.table))
            if target and target.oid in table.lineage:
                names |= any(insert.names(each, target.columns) for each in columns)
                leaves |= any(insert.leaves(each, target.columns) for each in columns)
        for change in statement.changes:
            target = self._tables.get(self._key(change.table))
            if target is None or target.oid in table.lineage:
                names |= any(each in change.columns for each in columns)
        return names, leaves

    def leaves_default(self, table: Table, collision: Collision, statement: Statement) -> bool:
        """Tell whether the statement leaves a column of the constraint to a default of its own."""
        columns = table.indexes.get(collision.constraint, ())
        return any(
            insert.leaves(each, target.columns)
            for insert in statement.inserts
            if (target := self._tables.get(self._key(insert.table))) and target.oid in table.lineage
            for each in columns
        )

    def resync(
        self, cursor: Any, table: Table, sequence: Sequence, *, repeated: bool = False
    ) -> Finding:
        finding = resync(cursor, sequence) if self.touch else look(cursor, [sequence])[0]
        self.tell_of(finding, table.lineage, repeated=repeated)
        return finding

    def tell_of(
        self, finding: Finding, relations: Iterable[int] = (), *, repeated: bool = False
    ) -> None:
        """Tell of a sequence that was moved or is behind still, by a key of ``relations``."""
        sequence = finding.sequence
        if finding.moved_to is not None and finding.next_value is not None:
            key = next((each for each in sequence.keys if each.relation in relations), None)
            key = key or sequence.keys[0]
            self._tell(
                Resync(
                    using=self.connection.alias,
                    schema=sequence.schema,
                    table=key.table,
                    column=key.column,
                    sequence=sequence.name,
                    before=finding.next_value,
                    after=finding.moved_to + sequence.increment,
                    repeated=repeated,
                )
            )
        elif finding.is_behind and sequence.oid not in self._left_behind:
            self._left_behind.add(sequence.oid)
            self.note(f"{finding} and was left alone: {finding.remedy}")

    def table_in(self, cursor: Any, collision: Collision) -> Table | None:
        """Read the table that an error names, by its own schema where the error gave one."""
        if collision.schema is None:
            quoted = collision.table.replace('"', '""')
            oid = settle(cursor, f'"{quoted}"')
            return None if oid is None else table_of(cursor, oid=oid)
        settle(cursor)
        return table_of(cursor, schema=collision.schema, table=collision.table)

    # Tell.

    def _tell(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            logger.info("%s", event, extra=asdict(event))
            sequence_resynced.send_robust(Resync, using=event.using, record=event)
        for report in self.reports:
            report.add(event)

    def note(self, text: str, *, is_fatal: bool = False) -> None:
        """Tell, once, what was found and not mended."""
        if text not in self._noted:
            self._noted.add(text)
            logger.warning("%s", text, extra={"using": self.connection.alias})
            self._tell(Note(self.connection.alias, text, is_fatal))

    def explain(self, error: BaseException, text: str) -> None:
        """Attach ``text`` to ``error``; it is told if the error gets out."""
        if not text:
            return
        if hasattr(error, "add_note"):
            error.add_note(f"safemigrate: {text}")
        self._explanations.append((error, text))

    def settle(self, leaving: BaseException | None = None) -> None:
        """Look at what is still to be looked at; tell what is known of the ``leaving`` error."""
        with self._among_ourselves():
            self._settle_debts()
        chain = []
        while leaving is not None and leaving not in chain:
            chain.append(leaving)
            leaving = leaving.__cause__ or leaving.__context__
        for error, text in self._explanations:
            if error in chain:
                self.note(text, is_fatal=True)
        self._explanations.clear()

    def _settle_debts(self) -> None:
        debts, self._debts = self._debts, []
        for debt in debts:
            self.explain(debt.error, f"{UNGUARDED} {self._settled(debt)}")

    def _settled(self, debt: _Debt) -> str:
        where = f"{debt.collision.schema}.{debt.collision.table}"
        closed = self.connection.connection is None or self.connection.connection.closed
        if closed or transaction_status(self.connection) != IDLE:
            return f"After the rollback, type: manage.py resyncsequences --check (for {where})."
        findings: list[Finding] = []
        with self._enduring(where), looking(self.connection) as cursor:
            if table := self.table_in(cursor, debt.collision):
                sequences = fed_by(table, debt.collision)
                findings = [self.resync(cursor, table, each) for each in sequences]
        if any(finding.moved_to is not None for finding in findings):
            return f"The sequence of {where} was behind and is right now: run the command again."
        return f"After the rollback no sequence of {where} is behind."


def fed_by(table: Table, collision: Collision) -> list[Sequence]:
    """Return the sequences that feed the columns of the constraint that was violated."""
    return table.feeders(table.indexes.get(collision.constraint, ()))


class _Repair:
    """What is done about a statement that collided, until it goes through or can't be healed."""

    def __init__(self, healer: Healer, attempt: _Attempt, *, inside: bool) -> None:
        self.healer = healer
        self.connection = healer.connection
        self.attempt = attempt
        self.inside = inside
        self.repeats: Counter[int] = Counter()
        self.unexplained: set[int] = set()

    def repeat(self) -> Any:
        if self.inside:
            return self.attempt.send()
        with own_transaction(self.connection):
            return self.attempt.send()

    def heals(self, error: BaseException) -> bool:
        """Resync what ``error`` names; tell whether it is worth sending the statement again."""
        collision = collision_of(error) if isinstance(error, IntegrityError) else None
        if collision is None:
            return False
        try:
            if self.inside:
                with self.connection.cursor() as cursor:
                    cursor.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            with looking(self.connection) as cursor:
                table = self.healer.table_in(cursor, collision)
                return table is not None and self._heals(cursor, error, table, collision)
        except Error as obstacle:
            self.healer.explain(error, f"Could not heal {collision.table}: {obstacle_of(obstacle)}")
            return False

    def _heals(self, cursor: Any, error: BaseException, table: Table, collision: Collision) -> bool:
        sequences = fed_by(table, collision)
        names, leaves = self.healer.says(table, collision, self.attempt.statement)
        if not sequences and self.healer.leaves_default(table, collision, self.attempt.statement):
            self.healer.explain(error, f"The default of the key of {table} is computed: {ALONE}")
            return False
        if not sequences or (names and not leaves):
            self.healer.explain(error, explanation(error, self.attempt.statement))
            return False
        self.repeats[table.oid] += 1
        refusal = self._refusal(table)
        findings = [
            self.healer.resync(cursor, table, each, repeated=not refusal) for each in sequences
        ]
        if any(finding.moved_to is not None for finding in findings):
            if refusal:
                self.healer.explain(error, f"{table} was resynced, but the statement {refusal}.")
            return not refusal
        if left := next((each for each in findings if each.obstacle or each.is_behind), None):
            text = f"{left.sequence}, which feeds {table}, was left alone: {left.remedy}"
            self.healer.explain(error, text)
            return False
        if names or refusal or not self._may_have_moved_on(cursor, table, findings):
            why = f", but the statement {refusal}" if refusal else ""
            self.healer.explain(error, f"No sequence that feeds {table} is behind now{why}.")
            return False
        return True

    def _may_have_moved_on(self, cursor: Any, table: Table, findings: list[Finding]) -> bool:
        """Allow one repeat where nothing is behind: the failed draw itself moved the sequence."""
        if table.oid in self.unexplained or not self.healer.touch:
            return False
        self.unexplained.add(table.oid)
        for finding in findings:
            drain(cursor, finding)
        return True

    def _refusal(self, table: Table) -> str:
        if self.repeats[table.oid] > self.healer.retries:
            return f"was not repeated more than {self.healer.retries} times"
        if not self.inside and not self.attempt.may_repeat_in_autocommit:
            return "was not repeated: a part of it may be committed already"
        return ""
