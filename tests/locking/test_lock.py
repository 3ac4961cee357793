"""The migration lock, among real threads and processes on a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from threading import Barrier, Timer
from threading import Lock as ThreadLock
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite

from safemigrate import driver
from safemigrate.locking.errors import LockLostError, LockUnavailableError
from safemigrate.locking.lock import KEY, migration_lock
from safemigrate.locking.twin import dial, twin
from tests.support.databases import execute, rows, value
from tests.support.locks import (
    HERE,
    INTERVAL,
    holders,
    is_free,
    logged_in_as,
    planned,
    quiet,
    terminate,
    unwatched,
    watched,
)
from tests.support.runs import LONG, eventually, finish, in_threads, running
from tests.support.servers import moved_to_a_server_of_its_own, needs
from tests.support.sites import Site

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("database")


AT_WORK = f"SELECT pid FROM pg_stat_activity WHERE {HERE} AND query LIKE 'INSERT INTO spoils%'"


# --- One at a time


def test_the_lock_is_taken_given_back_and_leaves_no_connection() -> None:
    with migration_lock(connection, patience=0, tell=pytest.fail) as held:
        assert held.taken
        assert not is_free()
        [(pid, name)] = holders()
        locks = "SELECT classid::bigint FROM pg_locks WHERE pid = %s AND locktype = 'advisory'"
        assert rows(locks, [pid]) == [(KEY,)]
        assert len(name) < 64
    assert not held.lost
    assert is_free()
    assert eventually(lambda: not holders())


def test_threads_wait_for_each_other() -> None:
    inside = 0
    most = 0
    mutex = ThreadLock()

    barrier = Barrier(4)

    def work() -> None:
        nonlocal inside, most
        barrier.wait()  # a thread that is started later could be a migration's own
        with migration_lock(connection, patience=LONG, tell=quiet) as held:
            with mutex:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with mutex:
                inside -= 1
            assert held.taken

    in_threads(4, work)
    assert most == 1


def test_processes_wait_for_each_other() -> None:
    execute("CREATE TABLE visits (at timestamptz DEFAULT clock_timestamp(), entered boolean)")
    code = """
with migration_lock(connection, patience=60, tell=tell), connection.cursor() as cursor:
    cursor.execute("INSERT INTO visits (entered) VALUES (true)")
    time.sleep(0.1)
    cursor.execute("INSERT INTO visits (entered) VALUES (false)")
"""
    with ExitStack() as stack:
        for process in [stack.enter_context(running(code)) for _ in range(4)]:
            finish(process)
    visits = [entered for (entered,) in rows("SELECT entered FROM visits ORDER BY at")]
    assert visits == [True, False] * 4


def test_each_database_has_a_lock_of_its_own() -> None:
    with migration_lock(connection, patience=0, tell=pytest.fail):
        other = running(
            "with migration_lock(connection, patience=0, tell=tell) as held: say(held.taken)",
            NAME="postgres",
        )
        with other as process:
            assert finish(process) == "True\n"


def test_an_error_gives_the_lock_back() -> None:
    with pytest.raises(KeyboardInterrupt), migration_lock(connection, patience=0, tell=quiet):
        raise KeyboardInterrupt
    assert is_free()
    assert eventually(lambda: not holders())


def test_another_vendor_has_no_lock() -> None:
    sqlite = SQLite({"NAME": ":memory:", "OPTIONS": {}}, "lite")
    with migration_lock(sqlite, patience=0, tell=pytest.fail) as asked:
        assert not asked.taken
    assert sqlite.connection is None


def test_the_lock_can_be_taken_within_a_transaction() -> None:
    with transaction.atomic(), migration_lock(connection, patience=0, tell=quiet) as held:
        assert held.taken
        planned()
        assert value(INTERVAL) == unwatched()
    assert not held.lost


# --- The migrating connection


def test_the_name_follows_a_connection_opened_anew() -> None:
    with migration_lock(connection, patience=0, tell=quiet):
        connection.close()
        [(_, name)] = holders()
        assert name.split()[2] == str(value("SELECT pg_backend_pid()"))


def test_while_waiting_the_migrating_connection_is_given_back() -> None:
    code = f"""
with migration_lock(connection, patience=60, tell=say), connection.cursor() as cursor:
    planned()
    cursor.execute("SELECT pg_backend_pid()")
    (pid,) = cursor.fetchone()
    cursor.execute("{INTERVAL}")
    say(f"{{pid}} {{cursor.fetchone()[0]}}")
    sys.stdin.readline()
"""
    with ExitStack() as stack:
        with migration_lock(connection, patience=LONG, tell=quiet):
            waiter = stack.enter_context(running(code))
            assert waiter.stdout is not None
            assert waiter.stdin is not None
            assert waiter.stdout.readline().startswith("Waiting")
            connections_here = f"SELECT count(*) FROM pg_stat_activity WHERE {HERE}"
            # Ours, the one that holds our lock, and the one that asks for it.
            eventually(lambda: value(connections_here) == 3)
        pid, interval = waiter.stdout.readline().rstrip("\n").split(" ")
        [(_, name)] = holders()
        assert (pid, interval) == (name.split()[2], watched())
        waiter.stdin.write("\n")
        finish(waiter)


# --- Two projects


def test_projects_in_schemas_of_their_own_do_not_wait(options: dict[str, Any]) -> None:
    execute("CREATE SCHEMA shop")
    execute("CREATE SCHEMA blog")
    code = "with migration_lock(connection, patience=0, tell=tell) as held: say(held.taken)"
    connection.close()
    options["options"] = "-c search_path=shop,public"
    with migration_lock(connection, patience=0, tell=quiet):
        blog = {**options, "options": "-c search_path=blog,public"}
        with running(code, OPTIONS=blog) as process:
            assert finish(process) == "True\n"
        with running(code, OPTIONS=options) as process:
            assert "LockTimeoutError" in process.communicate(timeout=LONG)[1]


def test_one_project_waits_for_itself_whatever_its_search_path(options: dict[str, Any]) -> None:
    execute("CREATE TABLE django_migrations (id int)")
    execute("CREATE SCHEMA shop")
    with migration_lock(connection, patience=0, tell=quiet):
        code = "with migration_lock(connection, patience=0, tell=tell): pass"
        with running(code, OPTIONS={**options, "options": "-c search_path=shop,public"}) as process:
            assert "LockTimeoutError" in process.communicate(timeout=LONG)[1]


def test_without_a_pooler_nothing_is_asked_of_the_migrating_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    execute = driver.Cursor.execute

    def record(cursor: driver.Cursor, sql: str, params: Any = None) -> None:
        sent.append(sql)
        execute(cursor, sql, params)

    monkeypatch.setattr(driver.Cursor, "execute", record)
    with migration_lock(connection, patience=0, tell=quiet) as held:
        assert sent == []
        assert held.check()
        assert sent == ["SELECT 1"]  # on the lock's own connection


# --- Holders that die


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_makes_way_and_its_statement_does_not_commit(by: signal.Signals) -> None:
    needs(14, "client_connection_check_interval")
    execute("CREATE TABLE spoils (id int)")
    code = """
with migration_lock(connection, patience=0, tell=tell), connection.cursor() as cursor:
    planned()
    cursor.execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(6)")
"""
    with running(code) as holder:
        [(pid,)] = eventually(lambda: rows(AT_WORK))

        def kill(_: str) -> None:
            holder.send_signal(by)
            holder.wait(LONG)

        with migration_lock(connection, patience=LONG, tell=kill) as held:
            assert held.taken
            alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
            assert value(alive, [pid]) == 0
    assert value("SELECT count(*) FROM spoils") == 0


def test_what_was_forked_from_a_dead_holder_finishes_its_work() -> None:
    execute("CREATE TABLE spoils (id int)")
    code = """
from django.db import connections
with migration_lock(connection, patience=0, tell=tell):
    connection.close()
    if not os.fork():
        with connections["default"].cursor() as cursor:
            cursor.execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(2)")
        os._exit(0)
    time.sleep(60)
"""
    with running(code) as holder:
        eventually(lambda: rows(AT_WORK))

        def kill(_: str) -> None:
            holder.kill()

        with migration_lock(connection, patience=LONG, tell=kill) as held:
            assert held.taken
            assert value("SELECT count(*) FROM spoils") == 1


def test_a_lost_lock_is_reported_and_no_crash() -> None:
    with migration_lock(connection, patience=0, tell=quiet) as held:
        [(pid, _)] = holders()
        value("SELECT pg_terminate_backend(%s)", [pid])
        eventually(lambda: not holders())
        connection.close()  # what reconnects finds the lock gone, and goes on
        assert value("SELECT 1") == 1
        assert is_free()
    assert held.lost


def test_ctrl_c_while_a_lost_lock_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def lose() -> None:
        with migration_lock(connection, patience=0, tell=quiet) as held:
            terminate(f"pid = {holders()[0][0]}")
            monkeypatch.setattr("safemigrate.locking.lock.dial", interrupt)
            held.check()

    with pytest.raises(KeyboardInterrupt):
        lose()


def test_a_lock_whose_backend_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemigrate.locking.lock.LONGEST_ANSWER", 0.5)
    with moved_to_a_server_of_its_own():
        for is_checked in (True, False):
            with migration_lock(connection, patience=0, tell=quiet) as held:
                [(pid, _)] = holders()
                os.kill(pid, signal.SIGSTOP)
                if is_checked:
                    with pytest.raises(LockLostError, match="is held by"):
                        held.check()
            os.kill(pid, signal.SIGCONT)
            assert held.lost is not is_checked  # of the one it has been told
            eventually(is_free)


def test_a_lost_lock_is_taken_again() -> None:
    with migration_lock(connection, patience=0, tell=quiet) as held:
        assert held.check()
        [(pid, _)] = holders()
        terminate(f"pid = {pid}")
        assert not held.check()
        assert held.check()
        [(_, name)] = holders()
        assert name.split()[2] == str(value("SELECT pg_backend_pid()"))
        assert not is_free()
    assert not held.lost
    assert is_free()


def test_a_lost_lock_is_waited_for_where_connections_are_used_up(role: str) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 2")
    with logged_in_as(role), migration_lock(connection, patience=0, tell=quiet) as held:
        [(pid, _)] = holders()
        terminate(f"pid = {pid}")
        Timer(1.0, dial(twin(connection)).close).start()
        assert not held.check()
        assert [each for each, _ in holders()] != [pid]
    assert not held.lost


@pytest.mark.parametrize("role", [None, "pg_monitor"])
def test_a_session_that_is_cut_off_does_not_keep_the_lock_from_us(
    monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    """As by a load balancer that has forgotten the connection: the server hears nothing of it."""
    monkeypatch.setattr("safemigrate.locking.lock.LONGEST_ANSWER", 0.5)
    options = connection.settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "options", f"-c role={role}" if role else "")
    silent, end = socket.socketpair()
    with silent, end, migration_lock(connection, patience=0, tell=quiet) as held:
        [(pid, _)] = holders()
        line = held.twin.connection.fileno()
        open_still = os.dup(line)
        os.dup2(silent.fileno(), line)
        assert not held.check()
        assert held.check()
        assert [pid] != [each for each, _ in holders()]
        assert not is_free()
    assert not held.lost
    os.close(open_still)


def test_nothing_waits_for_the_session_that_holds_the_lock() -> None:
    """VACUUM FULL in a migration takes every catalogue's lock."""
    execute("CREATE TABLE django_migrations (app text, name text)")
    with migration_lock(connection, patience=0, tell=quiet) as held:
        assert held.is_recorded("app", "0001") is False
        [(pid, _)] = holders()
        locks = "SELECT relation::regclass FROM pg_locks WHERE pid = %s AND relation IS NOT NULL"
        assert rows(locks, [pid]) == []


def test_a_lost_lock_that_somebody_has_taken_ends_the_run() -> None:
    code = """
with migration_lock(connection, patience=60, tell=tell):
    say('mine')
    sys.stdin.readline()
"""
    with ExitStack() as stack:
        held = stack.enter_context(migration_lock(connection, patience=0, tell=quiet))
        [(pid, _)] = holders()
        terminate(f"pid = {pid}")
        other = stack.enter_context(running(code))
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(LockLostError, match=f"held by process {other.pid} on "):
            held.check()
        held.close()
        connection.close()
        assert value("SELECT 1") == 1  # there is no lock to name the new connection on
    assert not held.lost  # it has been told


def test_a_run_that_goes_on_without_the_lock_is_waited_for() -> None:
    """A waiter that saw it at work waits until its transaction is over."""
    execute("CREATE TABLE spoils (id int)")
    code = """
with migration_lock(connection, patience=0, tell=tell), connection.cursor() as cursor:
    cursor.execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(8)")
"""
    with running(code) as holder:
        eventually(lambda: rows(AT_WORK))

        def free(_: str) -> None:
            for pid, _name in holders():
                value("SELECT pg_terminate_backend(%s)", [pid])

        with migration_lock(connection, patience=LONG, tell=free) as held:
            assert held.taken
            assert value("SELECT count(*) FROM spoils") == 1
        holder.communicate(timeout=LONG)


def test_a_waiter_whose_migrating_connection_has_died_opens_it_anew() -> None:
    with running("with migration_lock(connection, patience=0, tell=tell): time.sleep(2)") as holder:
        eventually(holders)
        before = value("SELECT pg_backend_pid()")

        def kill(_: str) -> None:
            terminate(f"pid = {before}", "other")

        with migration_lock(connection, patience=LONG, tell=kill) as held:
            assert held.taken
            assert value("SELECT pg_backend_pid()") != before
        finish(holder)


def test_a_waiting_connection_that_is_terminated_asks_again() -> None:
    asking = f"SELECT pid FROM pg_stat_activity WHERE {HERE} AND state = 'idle'"
    told: list[str] = []

    def waiting() -> bool:
        with migration_lock(connection, patience=LONG, tell=told.append) as held:
            return held.taken

    def terminate() -> None:
        eventually(lambda: told)
        for (pid,) in rows(asking):
            value("SELECT pg_terminate_backend(%s)", [pid])

    with running("with migration_lock(connection, patience=0, tell=tell): time.sleep(3)") as holder:
        eventually(holders)
        work = iter([waiting, terminate])
        done = in_threads(2, lambda: next(work)())  # noqa: PLW0108 - to each thread the next
        assert True in done
        finish(holder)


# --- What would end the lock, or hang on it


def test_short_timeouts_do_not_end_the_lock(options: dict[str, Any]) -> None:
    timeouts = ["idle_in_transaction_session_timeout", "lock_timeout"]
    timeouts += ["idle_session_timeout"] * (value("SHOW server_version_num") >= "140000")
    timeouts += ["transaction_timeout"] * (value("SHOW server_version_num") >= "170000")
    connection.close()
    options["options"] = " ".join(f"-c {name}=500" for name in timeouts)
    with migration_lock(connection, patience=0, tell=quiet) as held:
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
    code = "with migration_lock(connection, patience=60, tell=say) as held: say(held.taken)"
    with ExitStack() as stack:
        with migration_lock(connection, patience=0, tell=quiet) as held:
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


# --- Where there is no lock to be had

POOLED = """
from django.db.backends.postgresql.base import DatabaseWrapper as Wrapper
lent = []
class DatabaseWrapper(Wrapper):
    def get_new_connection(self, parameters):
        if lent:
            raise RuntimeError("no connection left")
        lent.append(super().get_new_connection(parameters))
        return lent[0]
"""


def test_no_spare_connection_names_the_way_out(role: str) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    with (
        logged_in_as(role),
        pytest.raises(LockUnavailableError, match="--no-lock") as raised,
        migration_lock(connection, patience=1, tell=quiet),
    ):
        pytest.fail("it was taken")
    assert isinstance(raised.value.__cause__, OperationalError)
    assert role in str(raised.value)
    assert "CONNECTION LIMIT" in str(raised.value)


def test_a_connection_that_comes_free_is_waited_for(role: str) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
    raised: list[str] = []

    def raise_the_limit(text: str) -> None:
        raised.append(text)
        with connections["other"].cursor() as cursor:
            cursor.execute(f"ALTER ROLE {role} CONNECTION LIMIT 2")

    with (
        logged_in_as(role),
        migration_lock(connection, patience=LONG, tell=raise_the_limit) as held,
    ):
        assert value("SELECT current_user") == role
        assert held.taken
    assert role in raised[0]


def test_a_pool_of_the_projects_own_raises_what_it_likes(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write(settings='DATABASES["default"]["ENGINE"] = "pooled"', pooled__base=POOLED)
    done = site.manage("safemigrate")
    assert done.returncode == 1
    assert "no connection left" in done.stderr
    assert "use --no-lock" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.manage("safemigrate", "--no-lock").returncode == 0


REVOKE = "REVOKE EXECUTE ON FUNCTION pg_try_advisory_xact_lock(int, int) FROM PUBLIC"


def test_no_privilege_names_the_way_out(role: str) -> None:
    execute(REVOKE)
    with (
        logged_in_as(role),
        pytest.raises(LockUnavailableError, match=r"permission denied(.*\n)+.*--no-lock"),
        migration_lock(connection, patience=LONG, tell=pytest.fail),
    ):
        pytest.fail("it was taken")


def test_a_privilege_of_the_assumed_role_is_enough(role: str, options: dict[str, Any]) -> None:
    execute(REVOKE)
    execute(f"GRANT EXECUTE ON FUNCTION pg_try_advisory_xact_lock(int, int) TO {role}_assumed")
    options["assume_role"] = f"{role}_assumed"
    with logged_in_as(role), migration_lock(connection, patience=0, tell=quiet) as held:
        assert value("SELECT current_user") == f"{role}_assumed"
        assert held.taken


def test_a_missing_database_is_the_connections_own_error() -> None:
    missing = connection.copy()
    missing.settings_dict["NAME"] = "safemigrate_is_not_here"
    with (
        pytest.raises(OperationalError, match="safemigrate_is_not_here"),
        migration_lock(missing, patience=LONG, tell=pytest.fail),
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
    with migration_lock(connection, patience=0, tell=quiet) as held:
        assert not is_free()
    assert held.taken


def test_a_pool_lends_nothing_to_the_lock(options: dict[str, Any]) -> None:
    pytest.importorskip("psycopg_pool")
    if not is_psycopg3:
        pytest.skip("the pool is psycopg 3's")
    if django.VERSION < (5, 1):
        pytest.skip("Django's pool came with 5.1")
    options["pool"] = {"min_size": 1, "max_size": 1, "timeout": 5}
    try:
        with migration_lock(connection, patience=0, tell=quiet) as held:
            assert value("SELECT 1") == 1
        assert held.taken
    finally:
        connection.close()
        connections["default"].close_pool()  # type: ignore[attr-defined]


def test_the_children_can_be_left_to_the_shell() -> None:
    """What a spawned child is told is an environment variable, gone with the lock."""
    names = [
        sys.executable,
        "-c",
        "import os; print([n for n in os.environ if 'SAFEMIGRATE_LOCK_' in n])",
    ]
    with migration_lock(connection, patience=0, tell=quiet):
        assert f"SAFEMIGRATE_LOCK_{os.getpid()}_" in subprocess.check_output(names, text=True)
    assert subprocess.check_output(names, text=True) == "[]\n"
