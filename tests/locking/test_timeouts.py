"""Lock timeouts: statements and migrations that give up a lock and try again, on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, migrations, models, transaction
from django.test import override_settings

from safemigrate.driver import sqlstate
from safemigrate.locking.timeouts import _Waits
from safemigrate.signals import lock_waited
from tests.support.databases import execute, rows, value
from tests.support.locks import (
    ALTER,
    HERE,
    SHORT,
    TAKE,
    Blocker,
    letting_go,
    made,
    migrate,
    note_of,
    patient,
    recorded,
    sql,
)
from tests.support.project import Project, run_python
from tests.support.runs import LONG, ROOT, eventually
from tests.support.sites import Site
from tests.support.twins.blocking import blocking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from safemigrate.report import LockWait
    from tests.support.project import Law

pytestmark = pytest.mark.usefixtures("database")


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = 'thing'::regclass AND attnum > 0"


# --- The setting


def test_off_by_default(project: Project) -> None:
    project.migration(
        run_python(lambda apps, editor: seen.append(value("SHOW lock_timeout"))), atomic=False
    )
    seen: list[str] = []
    project.migrate(command="safemigrate")
    assert seen == ["0"]
    assert not connection.execute_wrappers


def test_the_session_has_it_for_the_run_and_when_it_connects_anew() -> None:
    execute("SET lock_timeout = '7s'")
    with patient(seconds=1.5):
        assert value("SHOW lock_timeout") == "1500ms"
        connection.close()
        assert value("SHOW lock_timeout") == "1500ms"
    assert value("SHOW lock_timeout") == "0"
    assert not connection.execute_wrappers


def test_a_session_that_is_closed_by_the_end_is_left_closed() -> None:
    with patient():
        connection.close()
    assert connection.connection is None


def test_a_roles_own_setting_is_restored() -> None:
    execute("SET lock_timeout = '7s'")
    with patient():
        assert value("SHOW lock_timeout") == "100ms"
    assert value("SHOW lock_timeout") == "7s"


@pytest.mark.parametrize("given", [0, -1, "1", True, float("inf"), float("nan"), 3_000_000])
def test_a_setting_that_makes_no_sense(given: Any) -> None:
    with override_settings(SAFEMIGRATE_LOCK_TIMEOUT=given), pytest.raises(CommandError):
        call_command("safemigrate")


# --- A statement in autocommit


@pytest.mark.usefixtures("thing")
def test_a_statement_is_retried(blocker: Blocker, waits: list[LockWait]) -> None:
    blocker.execute(TAKE)
    with letting_go(blocker, waits), patient():
        execute(ALTER)
    assert ("note",) in rows(COLUMNS)
    assert waits[0].relation == "thing"
    assert waits[0].mode == "AccessExclusiveLock"
    assert waits[0].state == "idle in transaction"


@pytest.mark.usefixtures("thing")
@pytest.mark.parametrize("text", [f"{ALTER}; SELECT 1", f"DO $$ BEGIN {ALTER}; END $$"])
def test_what_may_have_committed_a_part_is_not(blocker: Blocker, text: str) -> None:
    blocker.execute(TAKE)
    with patient(), pytest.raises(OperationalError):
        execute(text)


@pytest.mark.usefixtures("thing")
def test_another_error_is_not(waits: list[LockWait]) -> None:
    execute("SET statement_timeout = '10ms'")
    with patient(), pytest.raises(OperationalError):
        execute("SELECT pg_sleep(5)")
    assert not waits


@pytest.mark.usefixtures("thing")
def test_patience_ends_with_the_original_error(blocker: Blocker) -> None:
    blocker.execute(TAKE)
    with patient(patience=0.5), pytest.raises(OperationalError, match="lock timeout") as caught:
        execute(ALTER)
    note = note_of(caught.value)
    assert f"pid {blocker.pid}" in note
    assert f"pg_terminate_backend({blocker.pid})" in note


# --- A migration


def test_a_migration_is_retried_whole(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("ALTER TABLE first ADD a int; INSERT INTO first VALUES (1)", "SELECT 1"))
    shop.migration(
        migrations.SeparateDatabaseAndState([sql("INSERT INTO first VALUES (2)", "SELECT 1")]),
        migrations.CreateModel("Made", [("id", models.BigAutoField(primary_key=True))]),
        migrations.CreateModel(
            "Child",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("made", models.ForeignKey("app.Made", models.CASCADE)),
            ],
        ),
        sql(),
    )
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        out = migrate(shop)
    assert out.count("Applying app.0002_step... OK") == 1 or out.count("Applying app.0002") == 1
    assert recorded() == 2
    assert rows("SELECT id FROM first ORDER BY 1") == [(1,), (2,)]
    constraints = "SELECT contype FROM pg_constraint WHERE conrelid = 'app_child'::regclass"
    assert ("f",) in rows(constraints)
    waits.clear()
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop, "app", "0001")
    assert recorded() == 1
    assert ("note",) not in rows(COLUMNS)


def test_deferred_sql_belongs_to_it(shop: Project, blocker: Blocker, waits: list[LockWait]) -> None:
    shop.migration(migrations.CreateModel("Made", [("id", models.BigAutoField(primary_key=True))]))
    migrate(shop)
    shop.migration(
        migrations.CreateModel(
            "Child",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("made", models.ForeignKey("app.Made", models.CASCADE)),
            ],
        )
    )
    blocker.execute("LOCK TABLE app_made IN ROW EXCLUSIVE MODE")
    with letting_go(blocker, waits):
        migrate(shop)
    assert recorded() == 2


def test_it_holds_nothing_while_it_waits(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql())
    blocker.execute(TAKE)
    held: list[Any] = []

    def ask(**_: object) -> None:
        other = Blocker()
        other.execute(
            f"""SELECT (SELECT count(*) FROM pg_locks WHERE pid = {pid} AND relation >= 16384),
                       (SELECT backend_xmin FROM pg_stat_activity WHERE pid = {pid})"""
        )
        held.append(other.cursor.fetchone())
        other.twin.close()

    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    lock_waited.connect(ask)
    with letting_go(blocker, waits):
        migrate(shop)
    lock_waited.disconnect(ask)
    assert held[0] == (0, None)


def test_python_that_has_run_is_not_run_again(shop: Project, blocker: Blocker) -> None:
    ran: list[int] = []
    shop.migration(run_python(lambda apps, editor: ran.append(1)), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError) as caught:
        migrate(shop)
    assert ran == [1]
    assert "--retry-python" in note_of(caught.value)
    assert recorded() == 0


def test_python_is_run_again_where_that_is_harmless(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    ran: list[int] = []
    shop.migration(run_python(lambda apps, editor: ran.append(1)), sql())
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop, retry_python=True)
    assert len(ran) > 1
    assert recorded() == 1


@pytest.mark.parametrize("is_historical", [True, False])
def test_python_finds_no_content_type_that_was_rolled_back(
    shop: Project, blocker: Blocker, waits: list[LockWait], *, is_historical: bool
) -> None:
    """ContentType's manager remembers what it has made."""
    keys: list[int] = []

    def remember(historical: Any, _: Any) -> None:
        registry = historical if is_historical else apps
        types = registry.get_model("contenttypes", "ContentType").objects
        keys.append(types.get_for_model(historical.get_model("app", "New")).pk)

    shop.migration(
        made("New"),
        run_python(remember),
        sql(),
        dependencies=[("contenttypes", "0002_remove_content_type_name")],
    )
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop, retry_python=True)
    assert len(keys) > 1
    assert rows("SELECT id FROM django_content_type WHERE model = 'new'") == [(keys[-1],)]


def test_a_cache_of_the_transaction_forgets_what_was_rolled_back(
    shop: Project, blocker: Blocker, waits: list[LockWait], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of cachalot, which ends it with the block that it began in."""
    caches: list[dict[str, int]] = [{}]
    enter, leave = transaction.Atomic.__enter__, transaction.Atomic.__exit__

    def begin(block: Any) -> None:
        enter(block)
        caches.append(dict(caches[-1]))

    def end(block: Any, kind: Any, *raised: Any) -> None:
        cache = caches.pop()
        if kind is None:
            caches[-1] = cache
        leave(block, kind, *raised)

    def insert_once(*_: Any) -> None:
        if not caches[-1].setdefault("count", value("SELECT count(*) FROM first")):
            execute("INSERT INTO first VALUES (1)")
            caches[-1]["count"] = 1

    monkeypatch.setattr(transaction.Atomic, "__enter__", begin)
    monkeypatch.setattr(transaction.Atomic, "__exit__", end)
    shop.migration(run_python(insert_once), sql())
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop, retry_python=True)
    assert rows("SELECT id FROM first") == [(1,)]


def test_python_that_comes_later_runs_once(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    ran: list[int] = []
    shop.migration(sql(), run_python(lambda apps, editor: ran.append(1)))
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop)
    assert ran == [1]


def test_without_a_transaction_statements_are_retried(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql(), atomic=False)
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop)
    assert rows("SELECT id FROM first") == [(1,)]


def test_fake_asks_for_no_lock(shop: Project, blocker: Blocker, waits: list[LockWait]) -> None:
    shop.migration(sql())
    blocker.execute(TAKE)
    migrate(shop, fake=True)
    assert recorded() == 1
    assert not waits


def test_a_squashed_migration(shop: Project, blocker: Blocker, waits: list[LockWait]) -> None:
    shop.migration(sql(), replaces=[("app", "a"), ("app", "b")])
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop)
    assert recorded() == 3


def test_statement_timeout_is_another_error(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("SET LOCAL statement_timeout = '50ms'"), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="statement timeout"):
        migrate(shop)
    assert not waits


def test_a_lock_timeout_of_the_migrations_own_applies(shop: Project, blocker: Blocker) -> None:
    shop.migration(sql("SET LOCAL lock_timeout = '50ms'"), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="lock timeout") as caught:
        migrate(shop, lock_timeout=30, lock_patience=1)
    assert "Gave up waiting after 1 s" in note_of(caught.value)


def test_an_apply_of_the_migrations_own_is_python(shop: Project, blocker: Blocker) -> None:
    ran: list[int] = []

    class Own(migrations.Migration):
        def apply(self, *args: Any, **kwargs: Any) -> Any:
            ran.append(1)
            return super().apply(*args, **kwargs)

    shop.migration(sql(), bases=(Own,))
    blocker.execute(TAKE)
    with pytest.raises(OperationalError) as caught:
        migrate(shop)
    assert "--retry-python" in note_of(caught.value)
    assert ran == [1]


def test_a_nested_run_leaves_it_to_the_outer(shop: Project, blocker: Blocker) -> None:
    def nested(apps: Any, editor: Any) -> None:
        call_command("migrate", "auth", "0011", verbosity=0)

    shop.migration(run_python(nested))
    blocker.execute("LOCK TABLE auth_user IN ACCESS SHARE MODE")
    with pytest.raises(OperationalError) as caught:
        migrate(shop)
    assert "--retry-python" in note_of(caught.value)
    assert not connection.in_atomic_block
    assert recorded() == 0


def test_a_nested_run_outside_of_a_transaction_waits_itself(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    ran: list[int] = []

    def nested(apps: Any, editor: Any) -> None:
        ran.append(1)
        call_command("migrate", "auth", "0011", verbosity=0)

    shop.migration(run_python(nested, atomic=False), atomic=False)
    blocker.execute("LOCK TABLE auth_user IN ACCESS SHARE MODE")
    with letting_go(blocker, waits):
        migrate(shop, "app")
    assert ran == [1]
    assert recorded() == 1


def test_a_deadlock(shop: Project, blocker: Blocker, observer: Blocker) -> None:
    """An application writes the migration's two tables in the other order."""
    execute("SET deadlock_timeout = '100ms'")
    blocker.execute("SET deadlock_timeout = '60s'")
    blocker.twin.connection.commit()
    codes: list[str | None] = []

    def application() -> None:
        blocker.execute("INSERT INTO first VALUES (9)")
        blocker.twin.connection.commit()

    thread = Thread(target=application)

    def meet(run: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        try:
            result = run(sql, params, many, context)
        except OperationalError as error:
            codes.append(sqlstate(error))
            raise
        if sql == "LOCK TABLE first" and not codes:
            blocker.execute("INSERT INTO thing VALUES (1)")
            thread.start()
            eventually(lambda: observer.sees_waiting(blocker.pid))
        return result

    shop.migration(sql("INSERT INTO first VALUES (1)"))
    shop.migration(sql("INSERT INTO first VALUES (2)"), sql("LOCK TABLE first"), sql())
    with connection.execute_wrapper(meet):
        migrate(shop, lock_timeout=30)
    thread.join()
    assert codes == ["40P01"]
    assert recorded() == 2
    assert rows("SELECT id FROM first ORDER BY 1") == [(1,), (2,), (9,)]


# --- Twins


# Django fills these in post_migrate, in a transaction that is no migration's and is not retried.
POST_MIGRATE = ("auth_permission", "django_content_type")


@pytest.mark.parametrize("seed", range(3))
def test_a_blocker_at_random_changes_nothing(
    project: Project, law: Law, waits: list[LockWait], seed: int
) -> None:
    """The same end as on a twin that nobody blocks, but for keys: a retry draws new ones."""
    project.migrate()
    execute("CREATE TABLE thing (id int)")
    execute("CREATE TABLE app_drawn (id serial PRIMARY KEY, n int)")
    insert = "INSERT INTO thing VALUES (1); INSERT INTO app_drawn (n) VALUES (1)"
    project.migration(sql(insert), sql())
    project.migration(sql("ALTER TABLE thing DROP note"), made("Parent"))
    project.migration(made("Child", models.ForeignKey("app.Parent", models.CASCADE)))
    project.migration(run_python(lambda apps, editor: execute(insert)), sql())
    project.migration(
        sql("CREATE INDEX CONCURRENTLY thing_id ON thing (id)"),
        *map(sql, insert.split("; ")),
        atomic=False,
    )
    project.migration(migrations.AddField("Child", "note", models.TextField(default="x")))
    with ExitStack() as stack:

        def block() -> None:
            connection.ensure_connection()
            blocker = Blocker()
            stack.callback(blocker.twin.connection.close)
            blocker.execute(TAKE)
            stack.enter_context(letting_go(blocker, waits))
            stack.enter_context(blocking(seed, spared=POST_MIGRATE))

        options = {"lock_timeout": SHORT, "lock_patience": 60, "retry_python": True}
        law.holds(spoil=block, ours=options, up_to_keys=True)


# --- Signals


@contextmanager
def waiting(folder: Path, timeout: float) -> Iterator[subprocess.Popen[str]]:
    """Start a run, and wait until it has told whom it waits for."""
    Site(folder).write(
        settings='INSTALLED_APPS += ["slow"]',
        slow__migrations__0001_slow=f"""
from django.db import migrations
class Migration(migrations.Migration):
    operations = [migrations.RunSQL(["INSERT INTO first VALUES (1)", {ALTER!r}])]
""",
    )
    database = json.dumps(connection.settings_dict, default=str)
    environment = {"DJANGO_SETTINGS_MODULE": "settings", "TEST_DATABASE": database}
    command = ["-m", "django", "safemigrate", "slow", f"--lock-timeout={timeout:g}"]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": f"{folder}:{ROOT}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            assert "blocked by pid" in process.stderr.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("timeout", [0.05, 60])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_ends_the_run(
    shop: Project, blocker: Blocker, tmp_path: Path, number: signal.Signals, timeout: float
) -> None:
    """In the server, which waits for the lock, or in the pause after it was given up."""
    blocker.execute(TAKE)
    with waiting(tmp_path, timeout) as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=LONG)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT), error
    others = "pid <> pg_backend_pid() AND application_name <> ''"
    eventually(lambda: not rows(f"SELECT 1 FROM pg_stat_activity WHERE {HERE} AND {others}"))
    assert rows("SELECT name FROM django_migrations WHERE app = 'slow'") == []
    assert rows("SELECT id FROM first") == []


def test_ctrl_c_leaves_nothing_behind(shop: Project, blocker: Blocker) -> None:
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql())
    blocker.execute(TAKE)

    def interrupt(**_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    lock_waited.connect(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            migrate(shop)
    finally:
        lock_waited.disconnect(interrupt)
    assert recorded() == 0
    assert not connection.in_atomic_block
    assert not connection.execute_wrappers
    assert value("SHOW lock_timeout") == "0"


def test_the_setting_is_given_back_though_a_cancel_comes_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C cancels the statement that is under way, which may be this one by then."""
    send = _Waits._send
    cancels = ["SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)"]

    def send_after_a_cancel(self: _Waits, *args: Any) -> Any:
        if cancels:
            execute(cancels.pop())
        return send(self, *args)

    with patient():
        monkeypatch.setattr(_Waits, "_send", send_after_a_cancel)
    assert (value("SHOW lock_timeout"), cancels) == ("0", [])


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["a cancel", "Ctrl-C"])
def test_the_longer_setting_is_given_back_though_one_comes_late(
    thing: None, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """What hinders the first attempt to give it back comes after an index that was interrupted."""
    execute("SET lock_timeout = '7s'")
    send = _Waits._send
    sent: list[Any] = []

    def send_late(self: _Waits, *args: Any) -> Any:
        sent.append(args)
        if len(sent) == 2 and is_cancelled:
            execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(1)")
        elif len(sent) == 2:
            raise KeyboardInterrupt
        return send(self, *args)

    def interrupt(run: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if "CONCURRENTLY" in sql:
            raise KeyboardInterrupt
        return run(sql, params, many, context)

    with patient(patience=30), connection.execute_wrapper(interrupt):
        monkeypatch.setattr(_Waits, "_send", send_late)
        with pytest.raises(KeyboardInterrupt):
            execute("CREATE INDEX CONCURRENTLY thing_id ON thing (id)")
    assert value("SHOW lock_timeout") == "7s"
    assert len(sent) > 2


def test_a_migration_that_removes_all_wrappers(shop: Project) -> None:
    shop.migration(run_python(lambda apps, editor: connection.execute_wrappers.clear()))
    migrate(shop)
    assert recorded() == 1


def test_a_long_patience_is_within_what_the_server_takes(shop: Project) -> None:
    shop.migration(sql("CREATE INDEX CONCURRENTLY thing_id ON thing (id)"), atomic=False)
    migrate(shop, lock_patience=10_000_000)
    assert recorded() == 1
