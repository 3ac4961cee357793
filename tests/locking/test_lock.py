"""Taking turns, among real threads and processes on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from threading import Lock as ThreadLock
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite

from safemigrate.locking.lock import KEY, LockTimeoutError, LockUnavailableError, turn, watching
from tests.support.databases import execute, rows, value
from tests.support.runs import LONG, eventually, finish, in_threads, run, running
from tests.support.servers import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("database")

HERE = "datname = current_database()"
HOLDERS = f"""
SELECT pid, application_name
  FROM pg_stat_activity
 WHERE {HERE} AND application_name LIKE 'safemigrate %'
"""
# Empty before PostgreSQL 14, which has no such setting.
INTERVAL = "SELECT coalesce(current_setting('client_connection_check_interval', true), '')"


def quiet(text: str) -> None:
    """Tell nobody."""


def unwatched() -> str:
    """Return the interval of a session that nobody watches: none, where there is no such thing."""
    return "0" if value("SHOW server_version_num") >= "140000" else ""


def watched() -> str:
    return unwatched() and "500ms"


def try_in_a_thread() -> Any:
    def attempt() -> bool:
        with turn(connection, patience=0, tell=quiet) as asked:
            return asked.taken

    return in_threads(1, attempt)[0]


def is_free() -> bool:
    try:
        return bool(try_in_a_thread())
    except LockTimeoutError:
        return False


def holders() -> list[tuple[Any, ...]]:
    return rows(HOLDERS)


@pytest.fixture
def options() -> Iterator[dict[str, Any]]:
    """The alias's OPTIONS, to be changed; what was is restored."""
    settings = connection.settings_dict
    before = settings["OPTIONS"]
    settings["OPTIONS"] = dict(before)
    connection.close()
    yield settings["OPTIONS"]
    connection.close()
    settings["OPTIONS"] = before


@pytest.fixture
def role() -> Iterator[str]:
    """A role that may log in, and what a role of this name with _assumed behind may."""
    name = f"safemigrate_test_{os.getpid()}"
    execute(f"CREATE ROLE {name} LOGIN NOINHERIT PASSWORD 'x'")
    execute(f"CREATE ROLE {name}_assumed ROLE {name}")
    yield name
    execute(f"DROP OWNED BY {name}, {name}_assumed")
    execute(f"DROP ROLE {name}, {name}_assumed")


@contextmanager
def logged_in_as(role: str) -> Iterator[None]:
    """Let the alias connect as that role for a while."""
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("USER", "PASSWORD")}
    connection.close()
    settings |= {"USER": role, "PASSWORD": "x"}
    try:
        yield
    finally:
        connection.close()
        settings |= before


# --- One at a time


def test_a_turn_is_taken_given_back_and_leaves_no_connection() -> None:
    with turn(connection, patience=0, tell=pytest.fail) as held:
        assert held.taken
        assert not is_free()
        [(pid, name)] = holders()
        locks = "SELECT objid::bigint FROM pg_locks WHERE pid = %s AND locktype = 'advisory'"
        assert rows(locks, [pid]) == [(KEY % 2**32,)]
        assert len(name) < 64
    assert not held.lost
    assert is_free()
    assert eventually(lambda: not holders())


def test_threads_take_turns() -> None:
    inside = 0
    most = 0
    mutex = ThreadLock()

    def work() -> None:
        nonlocal inside, most
        with turn(connection, patience=LONG, tell=quiet) as held:
            with mutex:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with mutex:
                inside -= 1
            assert held.taken

    in_threads(4, work)
    assert most == 1


def test_processes_take_turns() -> None:
    execute("CREATE TABLE visits (at timestamptz DEFAULT clock_timestamp(), entered boolean)")
    code = """
with turn(connection, patience=60, tell=tell), connection.cursor() as cursor:
    cursor.execute("INSERT INTO visits (entered) VALUES (true)")
    time.sleep(0.1)
    cursor.execute("INSERT INTO visits (entered) VALUES (false)")
"""
    with ExitStack() as stack:
        for process in [stack.enter_context(running(code)) for _ in range(4)]:
            finish(process)
    visits = [entered for (entered,) in rows("SELECT entered FROM visits ORDER BY at")]
    assert visits == [True, False] * 4


def test_each_database_has_turns_of_its_own() -> None:
    with turn(connection, patience=0, tell=pytest.fail):
        other = running(
            "with turn(connection, patience=0, tell=tell) as held: say(held.taken)",
            NAME="postgres",
        )
        with other as process:
            assert finish(process) == "True\n"


def test_an_error_gives_the_turn_back() -> None:
    with pytest.raises(KeyboardInterrupt), turn(connection, patience=0, tell=quiet):
        raise KeyboardInterrupt
    assert is_free()
    assert eventually(lambda: not holders())


def test_another_vendor_has_no_turns() -> None:
    sqlite = SQLite({"NAME": ":memory:", "OPTIONS": {}}, "lite")
    with turn(sqlite, patience=0, tell=pytest.fail) as asked:
        assert not asked.taken
    assert sqlite.connection is None


def test_a_turn_can_be_taken_within_a_transaction() -> None:
    with transaction.atomic(), turn(connection, patience=0, tell=quiet) as held:
        assert held.taken
        assert value(INTERVAL) == unwatched()
    assert not held.lost


# --- Who has it


def test_the_holder_is_told_of() -> None:
    code = """
with turn(connection, patience=0, tell=tell), connection.cursor() as cursor:
    cursor.execute("SELECT pg_sleep(120), 'a secret, it''s said', 1")
"""
    asleep = f"SELECT pid FROM pg_stat_activity WHERE {HERE} AND wait_event = 'PgSleep'"
    with running(code) as holder:
        eventually(lambda: rows(asleep))
        told: list[str] = []
        with (
            pytest.raises(LockTimeoutError) as raised,
            turn(connection, patience=1, tell=told.append),
        ):
            pytest.fail("it was taken")
    assert len(told) == 1
    for text in (told[0], str(raised.value)):
        assert f"process {holder.pid} on " in text
        assert " UTC, now running for " in text
        assert "SELECT pg_sleep(120), '…', 1" in text
    assert "--lock-wait" in str(raised.value)
    assert f"pg_terminate_backend({raised.value.holder.backend})" in str(raised.value)


def test_without_patience_nothing_is_told() -> None:
    with turn(connection, patience=0, tell=quiet), pytest.raises(LockTimeoutError) as raised:
        try_in_a_thread()
    assert raised.value.holder.process == str(os.getpid())


def test_a_holder_that_says_nothing_of_itself_is_respected() -> None:
    with transaction.atomic():
        execute("SELECT pg_advisory_xact_lock(%s)", [KEY])
        with pytest.raises(LockTimeoutError, match="process unknown on "):
            try_in_a_thread()


def test_the_name_follows_a_connection_opened_anew() -> None:
    with turn(connection, patience=0, tell=quiet):
        connection.close()
        [(_, name)] = holders()
        assert name.split()[2] == str(value("SELECT pg_backend_pid()"))


def test_while_waiting_the_migrating_connection_is_given_back() -> None:
    code = f"""
with turn(connection, patience=60, tell=say), connection.cursor() as cursor:
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    cursor.execute("{INTERVAL}")
    say(f"{{pid}} {{cursor.fetchone()[0]}}")
    sys.stdin.readline()
"""
    with ExitStack() as stack:
        with turn(connection, patience=LONG, tell=quiet):
            waiter = stack.enter_context(running(code))
            assert waiter.stdout is not None
            assert waiter.stdin is not None
            assert waiter.stdout.readline().startswith("Waiting")
            connections_here = f"SELECT count(*) FROM pg_stat_activity WHERE {HERE}"
            # Ours, the one that holds our turn, and the one that asks for it.
            eventually(lambda: value(connections_here) == 3)
        pid, interval = waiter.stdout.readline().rstrip("\n").split(" ")
        [(_, name)] = holders()
        assert (pid, interval) == (name.split()[2], watched())
        waiter.stdin.write("\n")
        finish(waiter)


# --- Nested runs


def test_a_nested_run_does_not_wait() -> None:
    with turn(connection, patience=0, tell=quiet):
        with turn(connection, patience=LONG, tell=pytest.fail) as nested:
            assert not nested.taken
        assert not is_free()
    assert is_free()


def test_a_nested_run_by_another_name_does_not_wait() -> None:
    twin = connection.copy()
    twin.settings_dict["OPTIONS"]["application_name"] = "twin"
    twin.settings_dict["HOST"] = f"{twin.settings_dict['HOST']},{twin.settings_dict['HOST']}"
    twin.settings_dict["PORT"] = ",".join([str(twin.settings_dict["PORT"] or 5432)] * 2)
    with turn(connection, patience=0, tell=quiet):
        with turn(twin, patience=LONG, tell=pytest.fail) as nested:
            assert not nested.taken
        twin.close()
        assert not is_free()


def test_a_spawned_child_does_not_wait() -> None:
    code = "with turn(connection, patience=60, tell=tell) as nested: say(nested.taken)"
    with turn(connection, patience=0, tell=quiet):
        assert run(code, kin=True) == "False\n"
        assert not is_free()
    assert run(code) == "True\n"


@pytest.mark.parametrize(
    "leaving",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "raise KeyboardInterrupt",
        "gc.collect(); del held; gc.collect()",
    ],
)
def test_a_forked_child_neither_waits_nor_ends_the_turn(leaving: str) -> None:
    code = f"""
import gc
from django.db import connections
def child():
    connections["default"].connection = None  # as the forking executors do
    with turn(connection, patience=60, tell=tell) as nested, connection.cursor() as cursor:
        cursor.execute("{INTERVAL}")
        say((nested.taken, *cursor.fetchone()))
    connection.close()
with turn(connection, patience=0, tell=tell) as held:
    connection.close()
    if not os.fork():
        sys.stderr = open(os.devnull, "w")
        child()
        {leaving}
        os._exit(0)
    os.wait()
    with connection.cursor() as cursor:
        cursor.execute({HOLDERS!r})
        say(cursor.rowcount)
say(held)
"""
    assert run(code).splitlines() == [
        f"(False, '{watched()}')",
        "1",
        "Turn(taken=True, lost=False)",
    ]


def test_a_forked_child_that_fails_leaves_the_parents_connections_alone() -> None:
    code = f"""
with turn(connection, patience=0, tell=tell) as held:
    if not os.fork():
        sys.exit()
    os.wait()
    with connection.cursor() as cursor:
        cursor.execute("{INTERVAL}")
        say(cursor.fetchone())
say(held)
"""
    assert run(code).splitlines() == [f"('{watched()}',)", "Turn(taken=True, lost=False)"]


# --- Holders that die


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_makes_way_and_its_statement_does_not_commit(by: signal.Signals) -> None:
    needs(14, "client_connection_check_interval")
    execute("CREATE TABLE spoils (id int)")
    code = """
with turn(connection, patience=0, tell=tell), connection.cursor() as cursor:
    cursor.execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(6)")
"""
    at_work = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'INSERT INTO spoils%'"
    with running(code) as holder:
        [(pid,)] = eventually(lambda: rows(at_work))

        def kill(_: str) -> None:
            holder.send_signal(by)
            holder.wait(LONG)

        with turn(connection, patience=LONG, tell=kill) as held:
            assert held.taken
            alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            assert value(alive, [pid]) == 0
    assert value("SELECT count(*) FROM spoils") == 0


def test_what_was_forked_from_a_dead_holder_finishes_its_turn() -> None:
    execute("CREATE TABLE spoils (id int)")
    code = """
from django.db import connections
with turn(connection, patience=0, tell=tell):
    connection.close()
    if not os.fork():
        with connections["default"].cursor() as cursor:
            cursor.execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(2)")
        os._exit(0)
    time.sleep(60)
"""
    at_work = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'INSERT INTO spoils%'"
    with running(code) as holder:
        eventually(lambda: rows(at_work))

        def kill(_: str) -> None:
            holder.kill()

        with turn(connection, patience=LONG, tell=kill) as held:
            assert held.taken
            assert value("SELECT count(*) FROM spoils") == 1


def test_a_lost_lock_is_reported_and_no_crash() -> None:
    with turn(connection, patience=0, tell=quiet) as held:
        [(pid, _)] = holders()
        value("SELECT pg_terminate_backend(%s)", [pid])
        eventually(lambda: not holders())
        connection.close()  # what reconnects finds the lock gone, and goes on
        assert value("SELECT 1") == 1
        assert is_free()
    assert held.lost


def test_a_waiting_connection_that_is_terminated_asks_again() -> None:
    asking = f"SELECT pid FROM pg_stat_activity WHERE {HERE} AND state = 'idle'"
    told: list[str] = []

    def waiting() -> bool:
        with turn(connection, patience=LONG, tell=told.append) as held:
            return held.taken

    def terminate() -> None:
        eventually(lambda: told)
        for (pid,) in rows(asking):
            value("SELECT pg_terminate_backend(%s)", [pid])

    with running("with turn(connection, patience=0, tell=tell): time.sleep(3)") as holder:
        eventually(holders)
        work = iter([waiting, terminate])
        done = in_threads(2, lambda: next(work)())  # noqa: PLW0108 - to each thread the next
        assert True in done
        finish(holder)


# --- What would end the lock, or hang on it


def test_short_timeouts_do_not_end_the_turn(options: dict[str, Any]) -> None:
    timeouts = ["idle_in_transaction_session_timeout", "lock_timeout"]
    timeouts += ["idle_session_timeout"] * (value("SHOW server_version_num") >= "140000")
    timeouts += ["transaction_timeout"] * (value("SHOW server_version_num") >= "170000")
    connection.close()
    options["options"] = " ".join(f"-c {name}=500" for name in timeouts)
    with turn(connection, patience=0, tell=quiet) as held:
        time.sleep(1.5)
        connection.close()
        assert not is_free()
    assert not held.lost


def test_an_index_is_built_concurrently_while_others_wait(options: dict[str, Any]) -> None:
    execute("CREATE TABLE big AS SELECT generate_series(1, 1000) AS id")
    connection.close()
    options["options"] = (
        "-c idle_in_transaction_session_timeout=1000"
        " -c default_transaction_isolation=repeatable\\ read"
    )
    if is_psycopg3:
        from psycopg import IsolationLevel
    else:
        from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ
    options["isolation_level"] = (
        IsolationLevel.REPEATABLE_READ if is_psycopg3 else ISOLATION_LEVEL_REPEATABLE_READ
    )
    code = "with turn(connection, patience=60, tell=say) as held: say(held.taken)"
    with ExitStack() as stack:
        with turn(connection, patience=0, tell=quiet) as held:
            options.pop("isolation_level")  # it is no JSON; the server's own default says the same
            waiters = [stack.enter_context(running(code)) for _ in range(7)]
            for waiter in waiters:
                assert waiter.stdout is not None
                assert waiter.stdout.readline().startswith("Waiting up to 60 s")
            time.sleep(1.5)
            execute("SET statement_timeout = '30s'")
            execute("CREATE INDEX CONCURRENTLY big_id ON big (id)")
            assert value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'big_id'::regclass")
        assert not held.lost
        assert [finish(waiter) for waiter in waiters] == ["True\n"] * 7


# --- Where no turns can be taken


def test_no_spare_connection_names_the_way_out(role: str) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    with (
        logged_in_as(role),
        pytest.raises(LockUnavailableError, match="--no-lock") as raised,
        turn(connection, patience=LONG, tell=pytest.fail),
    ):
        pytest.fail("it was taken")
    assert isinstance(raised.value.__cause__, OperationalError)
    assert role in str(raised.value)


REVOKE = "REVOKE EXECUTE ON FUNCTION pg_try_advisory_xact_lock(bigint) FROM PUBLIC"


def test_no_privilege_names_the_way_out(role: str) -> None:
    execute(REVOKE)
    with (
        logged_in_as(role),
        pytest.raises(LockUnavailableError, match=r"permission denied.*\n.*--no-lock"),
        turn(connection, patience=LONG, tell=pytest.fail),
    ):
        pytest.fail("it was taken")


def test_a_privilege_of_the_assumed_role_is_enough(role: str, options: dict[str, Any]) -> None:
    execute(REVOKE)
    execute(f"GRANT EXECUTE ON FUNCTION pg_try_advisory_xact_lock(bigint) TO {role}_assumed")
    options["assume_role"] = f"{role}_assumed"
    with logged_in_as(role), turn(connection, patience=0, tell=quiet) as held:
        assert value("SELECT current_user") == f"{role}_assumed"
        assert held.taken


def test_a_missing_database_is_the_connections_own_error() -> None:
    missing = connection.copy()
    missing.settings_dict["NAME"] = "safemigrate_is_not_here"
    with (
        pytest.raises(OperationalError, match="safemigrate_is_not_here"),
        turn(missing, patience=LONG, tell=pytest.fail),
    ):
        pytest.fail("it was taken")


# --- The alias's own manners


def test_python_side_options_do_not_matter(options: dict[str, Any]) -> None:
    if is_psycopg3:
        from psycopg.rows import dict_row

        options |= {"row_factory": dict_row, "server_side_binding": True}
    else:
        from psycopg2.extras import RealDictCursor

        options["cursor_factory"] = RealDictCursor
    with turn(connection, patience=0, tell=quiet) as held:
        assert not is_free()
    assert held.taken


def test_a_pool_lends_nothing_to_the_lock(options: dict[str, Any]) -> None:
    pytest.importorskip("psycopg_pool")
    if not is_psycopg3:
        pytest.skip("the pool is psycopg 3's")
    options["pool"] = {"min_size": 1, "max_size": 1, "timeout": 5}
    try:
        with turn(connection, patience=0, tell=quiet) as held:
            assert value("SELECT 1") == 1
        assert held.taken
    finally:
        connection.close()
        connections["default"].close_pool()  # type: ignore[attr-defined]


# --- The migrating session


def test_the_migrating_session_is_watched_for_the_length_of_the_run() -> None:
    assert value(INTERVAL) == unwatched()
    with turn(connection, patience=0, tell=quiet):
        assert value(INTERVAL) == watched()
        connection.close()
        assert value(INTERVAL) == watched()
    assert value(INTERVAL) == unwatched()
    connection.close()
    assert value(INTERVAL) == unwatched()


def test_a_server_that_watches_already_is_left_alone(options: dict[str, Any]) -> None:
    needs(14, "client_connection_check_interval")
    connection.close()
    options["options"] = "-c client_connection_check_interval=2000"
    with watching(connection):
        assert value(INTERVAL) == "2s"
    assert value(INTERVAL) == "2s"


def test_a_session_that_died_meanwhile_is_no_crash() -> None:
    with watching(connection):
        pid = value("SELECT pg_backend_pid()")
        run(f"connection.cursor().execute('SELECT pg_terminate_backend({pid})')")
    connection.close()


def test_the_children_can_be_left_to_the_shell() -> None:
    """What a spawned child is told is an environment variable, gone with the turn."""
    names = [sys.executable, "-c", "import os; print([n for n in os.environ if 'TURN_' in n])"]
    with turn(connection, patience=0, tell=quiet):
        assert f"SAFEMIGRATE_TURN_{os.getpid()}_" in subprocess.check_output(names, text=True)
    assert subprocess.check_output(names, text=True) == "[]\n"
