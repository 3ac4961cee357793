"""Hurt a run at its Nth statement, as a server, a network or an operator would.

Nothing is mocked: the server ends the session, times out or raises. A fault in a healing run may
leave the database only in a state that a fault in a plain ``migrate``, with sequences that are
right, can leave it in; and the next run goes on from there as plain ``migrate`` would.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connection, connections, migrations, models, transaction
from django.db.backends.utils import CursorWrapper

from safemigrate.driver import IDLE, sqlstate, transaction_status
from tests.support.databases import Databases, binding, execute, put_behind, rows
from tests.support.project import COLUMNS, CONSTRAINTS, INDEXES, Project, run_python
from tests.support.twins.running import canonical, end_process, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN_TRANSACTION, FAILED = 2, 3
ADVISORY = 424242
SQLSTATES = ("40001", "40P01", "53100", "53200", "25006", "42501", "23503", "23505", "XX000")
RECORDED = "SELECT app, name, count(*) FROM django_migrations GROUP BY 1, 2 HAVING count(*) > 1"

IN_FAILED = "25P02"
# Where Ctrl-C comes just here, Django itself puts an error of its own in its place.
DJANGOS_COMMIT = "COMMIT of an atomic()"


class LostLawError(AssertionError):
    """A fault left more behind than it may."""


# --- faults -----------------------------------------------------------------------------------


def _elsewhere(sql: str, *params: Any) -> Any:
    """Send a statement over a second connection, and return the first value of its answer."""
    with connections["other"].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0]


def _pid() -> int:
    return int(connection.connection.info.backend_pid)


def _is_usable() -> bool:
    driver = connection.connection
    return not driver.closed and driver.info.transaction_status != FAILED


def _await_end(pid: int) -> None:
    while _elsewhere("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid):
        time.sleep(0.005)


def terminate(cursor: CursorWrapper) -> None:
    """Have the administrator end the session before the statement."""
    if not connection.connection.closed:
        pid = _pid()
        _elsewhere("SELECT pg_terminate_backend(%s)", pid)
        _await_end(pid)


def idle_too_long(cursor: CursorWrapper) -> None:
    """Think for longer than idle_in_transaction_session_timeout."""
    if _is_usable() and connection.connection.info.transaction_status == IN_TRANSACTION:
        pid = _pid()
        cursor.cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 1")
        _await_end(pid)


def _instead(cursor: CursorWrapper, setting: str, sql: str) -> None:
    """Send ``sql``, which is to fail under ``setting``, in place of the statement."""
    if not _is_usable():
        return
    inside = transaction_status(connection) != IDLE or not connection.get_autocommit()
    with connection.wrap_database_errors:
        cursor.cursor.execute(f"SET {'LOCAL' if inside else 'SESSION'} {setting} = 1")
        try:
            cursor.cursor.execute(sql)
        finally:
            if not inside:
                cursor.cursor.execute(f"RESET {setting}")


def statement_timeout(cursor: CursorWrapper) -> None:
    _instead(cursor, "statement_timeout", "SELECT pg_sleep(2)")


def lock_timeout(cursor: CursorWrapper) -> None:
    _elsewhere("SELECT pg_advisory_lock(%s) IS NULL", ADVISORY)
    try:
        _instead(cursor, "lock_timeout", f"SELECT pg_advisory_lock({ADVISORY})")
    finally:
        _elsewhere("SELECT pg_advisory_unlock(%s)", ADVISORY)


def raises(state: str) -> Callable[[CursorWrapper], None]:
    def fault(cursor: CursorWrapper) -> None:
        text = f"DO $$ BEGIN RAISE 'injected' USING ERRCODE = '{state}'; END $$"
        if _is_usable():
            with connection.wrap_database_errors:
                cursor.cursor.execute(text)

    return fault


def interrupt(cursor: CursorWrapper) -> None:
    # Not os.kill(): that may reach another thread first, and this one a statement later.
    signal.raise_signal(signal.SIGINT)


def kill(cursor: CursorWrapper) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[CursorWrapper], None]] = {
    "pg_terminate_backend": terminate,
    "idle_in_transaction_session_timeout": idle_too_long,
    "statement_timeout": statement_timeout,
    "lock_timeout": lock_timeout,
    "SIGINT": interrupt,
    "SIGKILL": kill,
    **{state: raises(state) for state in SQLSTATES},
}


@dataclass
class Strike:
    """Hurts the ``at``-th thing that is sent; counts them."""

    fault: Callable[[CursorWrapper], None]
    at: int
    sent: int = 0
    hurt: str = ""

    def step(self, cursor: CursorWrapper, text: str) -> None:
        self.sent += 1
        if self.sent == self.at:
            self.hurt = text
            self.fault(cursor)


class _Cursor(CursorWrapper):
    """Sees every statement of the connection, those of an execute wrapper's own too."""

    def __init__(self, cursor: Any, db: Any, strike: Strike) -> None:
        super().__init__(cursor, db)
        self.__dict__["strike"] = strike

    def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
        self.strike.step(self, str(sql))
        return super()._execute(sql, params, *ignored)  # type: ignore[misc]

    def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any:
        self.strike.step(self, str(sql))
        return super()._executemany(sql, param_list, *ignored)  # type: ignore[misc]


@contextmanager
def striking(strike: Strike) -> Iterator[None]:
    """Let ``strike`` see all that the default connection sends, COMMIT included."""
    commit = connection._commit  # type: ignore[attr-defined]

    def commit_or_not() -> None:
        with connection.wrap_database_errors, connection.connection.cursor() as cursor:
            strike.step(CursorWrapper(cursor, connection), DJANGOS_COMMIT)
        commit()

    hooks = {
        "make_cursor": lambda cursor: _Cursor(cursor, connection, strike),
        "_commit": commit_or_not,
    }
    vars(connections["default"]).update(hooks)
    try:
        yield
    finally:
        for name in hooks:
            del vars(connections["default"])[name]


# --- the run that is hurt ---------------------------------------------------------------------


def history(project: Project) -> None:
    """Write what is there before: two tables, a trigger, rows, and the migrations to come."""
    project.migration(
        migrations.CreateModel("Tag", [_key(), ("label", models.TextField())]),
        migrations.CreateModel(
            "Item",
            [
                _key(),
                ("label", models.TextField()),
                ("tags", models.ManyToManyField("app.Tag")),
            ],
        ),
        migrations.CreateModel("Log", [_key(), ("label", models.TextField())]),
    )
    project.migrate()
    execute(
        """
        CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO app_log (label) VALUES (NEW.label); RETURN NEW; END $$;
        CREATE TRIGGER log AFTER INSERT ON app_tag FOR EACH ROW EXECUTE FUNCTION log();
        INSERT INTO app_tag (label) VALUES ('a'), ('b');
        INSERT INTO app_item (label) VALUES ('c'), ('d');
        INSERT INTO app_item_tags (item_id, tag_id) VALUES (1, 1), (2, 2);
        """
    )
    project.migration(run_python(_link), run_python(_bulk))
    project.migration(
        # A foreign key is deferred SQL: the table is there before the migration is recorded.
        migrations.CreateModel(
            "Part", [_key(), ("item", models.ForeignKey("app.Item", models.CASCADE))]
        ),
    )
    project.migration(run_python(_one_by_one), atomic=False)


def _key() -> tuple[str, models.Field[Any, Any]]:
    return ("id", models.BigAutoField(primary_key=True))


def _link(apps: Any, editor: Any) -> None:
    item = apps.get_model("app", "Item").objects.create(label="e")
    item.tags.add(apps.get_model("app", "Tag").objects.create(label="f"))


def _bulk(apps: Any, editor: Any) -> None:
    model = apps.get_model("app", "Item")
    model.objects.bulk_create([model(label="g"), model(label="h")], ignore_conflicts=True)
    with suppress(ValueError), transaction.atomic():
        model.objects.create(label="taken back")
        raise ValueError
    model.objects.create(label="i")


def _one_by_one(apps: Any, editor: Any) -> None:
    for label in "jk":
        apps.get_model("app", "Tag").objects.create(label=label)
        apps.get_model("app", "Part").objects.create(item_id=1)


@dataclass
class Counts:
    """What was tried."""

    statements: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    endured: int = 0
    recovered: int = 0
    beyond: int = 0

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        return (
            f"{self.faults.total()} faults at {self.statements} statements ({kinds}): after "
            f"{self.endured} the run went on, after {self.recovered} the next run came to the "
            f"end, after {self.beyond} plain migrate couldn't have either"
        )


class Hospital:
    """Knows what plain ``migrate`` leaves after a fault, and holds healing runs against it."""

    def __init__(self, project: Project, databases: Databases) -> None:
        self.project = project
        self.databases = databases
        self.counts = Counts()
        history(project)
        connection.close()
        self.healthy = connection.settings_dict["NAME"]
        self.ill = databases.create(self.healthy)
        with binding("default", self.ill):
            put_behind()
        # Each state that plain migrate may be left in, and what it makes of it the next time.
        self.plain: dict[str, tuple[str, str]] = {}

    def learn(self) -> None:
        """Hurt plain ``migrate`` at each of its statements."""
        at = 0
        while True:
            at += 1
            strike = Strike(raises("40001"), at)
            with self._patient(self.healthy):
                self._run("migrate", strike)
                state = _state()
                if state not in self.plain:
                    error = self._run("migrate")
                    self.plain[state] = (type(error).__name__, _state())
            if not strike.hurt:
                break

    def statements(self) -> int:
        """Count what a healing run sends."""
        strike = Strike(terminate, 0)
        with self._patient(self.ill):
            self._run("safemigrate", strike)
        self.counts.statements = strike.sent
        return strike.sent

    def hurt(self, kind: str, at: int) -> None:
        """Raise LostLawError where a fault at the statement ``at`` breaks the law."""
        strike = Strike(FAULTS[kind], at)
        self.counts.faults[kind] += 1
        with self._patient(self.ill):
            before = positions()
            hurting = self._killed if kind == "SIGKILL" else partial(self._run, "safemigrate")
            error = hurting(strike)
            where = f"{kind} at {at}, {strike.hurt[:200]!r}, which ended in {error!r}"
            is_due = kind == "SIGINT" and strike.hurt not in ("", DJANGOS_COMMIT)
            if is_due and not isinstance(error, KeyboardInterrupt):
                raise LostLawError(f"Ctrl-C was swallowed: {where}")
            if error and sqlstate(error.__cause__) == IN_FAILED:
                raise LostLawError(f"another error hides the fault: {where}")
            self._check(where, before)
            self.counts.endured += error is None and kind != "SIGKILL"
            state = _state()
            if state not in self.plain:
                strange = self._strange(state)
                raise LostLawError(f"plain migrate never leaves this: {where}\n{strange}")
            failure = self._run("safemigrate")
            self._check(where, before)
            if (type(failure).__name__, _state()) != self.plain[state]:
                raise LostLawError(
                    f"{where}: the next run ended in {failure!r}, plain {self.plain[state][0]}\n"
                    f"{self._strange(_state())}"
                )
            self.counts.recovered += failure is None
            self.counts.beyond += failure is not None

    def _strange(self, state: str) -> str:
        mine = set(state.splitlines())
        theirs = min((set(each.splitlines()) for each in self.plain), key=lambda x: len(x ^ mine))
        return "\n".join([*(f"+ {x}" for x in mine - theirs), *(f"- {x}" for x in theirs - mine)])

    def _check(self, where: str, before: dict[int, tuple[str, int]]) -> None:
        after = positions()
        for oid, (name, value) in before.items():
            if oid in after and after[oid][1] < value:
                raise LostLawError(f"{name} was moved back: {where}")
        if twice := rows(RECORDED):
            raise LostLawError(f"recorded twice, {twice}: {where}")

    @contextmanager
    def _patient(self, template: str) -> Iterator[None]:
        name = self.databases.create(template)
        # An advisory lock is a database's own.
        with binding("default", name), binding("other", name):
            yield
        self.databases.drop(name)

    def _run(self, command: str, strike: Strike | None = None) -> BaseException | None:
        with ExitStack() as stack:
            if strike:
                stack.enter_context(striking(strike))
            options: dict[str, Any] = {"no_lock": True} if command == "safemigrate" else {}
            try:
                self.project.migrate(command=command, **options)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - any is looked at
                return error
            finally:
                end_process()
        return None

    def _killed(self, strike: Strike) -> BaseException | None:
        connections.close_all()
        child = os.fork()
        if not child:
            try:
                self._run("safemigrate", strike)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        while rows(others)[0][0] > 1:
            time.sleep(0.005)
        return None


def _state() -> str:
    """Return all that a run may leave, generated keys aside, as lines."""
    schema = [repr(row) for sql in (COLUMNS, CONSTRAINTS, INDEXES) for row in rows(sql)]
    found = [f"{table}: {row}" for table, all_rows in canonical().items() for row in all_rows]
    return "\n".join(schema + found)
