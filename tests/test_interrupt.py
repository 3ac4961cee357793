"""SIGTERM and Ctrl-C, in a statement and in Python, with and without an init above the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from safemigrate.interrupt import Terminated, ending_on_signals
from tests.support.databases import binding, execute, rows, value
from tests.support.locks import HERE, holders
from tests.support.runs import LONG, ROOT, eventually
from tests.support.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.usefixtures("database")

MIGRATION = """
import sys, time
from django.db import migrations
def dawdle(apps, editor):
    editor.execute("CREATE TABLE half_done (id int)")
    print("dawdling", flush=True)
    time.sleep(300)
class Migration(migrations.Migration):
    operations = [{operation}]
"""
OPERATIONS = {
    "sql": "migrations.RunSQL(['CREATE TABLE half_done (id int)', 'SELECT pg_sleep(300)'])",
    "python": "migrations.RunPython(dawdle)",
}
AT_WORK = f"""
SELECT pid FROM pg_stat_activity
 WHERE {HERE} AND query ~ 'pg_sleep|half_done' AND pid <> pg_backend_pid()
"""
AS_PID_1 = ["unshare", "--fork", "--pid"]


def can_be_pid_1() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run([*AS_PID_1, "true"], check=False, capture_output=True).returncode
    )


@contextmanager
def dawdling(
    folder: Path, where: str, *before: str, python: Sequence[str] = ("-m", "django")
) -> Iterator[subprocess.Popen[str]]:
    """Start a run, and wait until its migration is under way."""
    site = Site(folder)
    site.write(
        settings='INSTALLED_APPS += ["slow"]',
        slow__migrations__0001_slow=MIGRATION.format(operation=OPERATIONS[where]),
    )
    database = json.dumps(connection.settings_dict, default=str)
    with subprocess.Popen(
        [*before, sys.executable, *python, "safemigrate", "slow"],
        cwd=folder,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "TEST_DATABASE": database,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if where == "sql":
                eventually(lambda: rows(f"{AT_WORK} AND wait_event = 'PgSleep'"))
            else:
                assert process.stdout is not None
                eventually(lambda: "dawdling" in process.stdout.readline())  # type: ignore[union-attr]
            yield process
        finally:
            process.kill()


def nothing_is_left() -> None:
    eventually(lambda: not rows(AT_WORK))
    eventually(lambda: not holders())
    assert value("SELECT to_regclass('half_done')") is None
    assert rows("SELECT name FROM django_migrations WHERE app = 'slow'") == []


@pytest.mark.parametrize("where", OPERATIONS)
def test_sigterm_ends_a_run_in_one_line(tmp_path: Path, where: str) -> None:
    with dawdling(tmp_path, where) as process:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert error == ("safemigrate: Ended by SIGTERM; what was not committed is rolled back.\n")
    nothing_is_left()


@pytest.mark.skipif(not can_be_pid_1(), reason="no process can be the first one here")
@pytest.mark.parametrize("where", OPERATIONS)
def test_sigterm_ends_the_first_process_of_a_container(tmp_path: Path, where: str) -> None:
    with dawdling(tmp_path, where, *AS_PID_1) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        _, error = process.communicate(timeout=LONG)
    assert process.returncode == 143
    assert "Traceback" not in error
    nothing_is_left()


@pytest.mark.parametrize("where", OPERATIONS)
def test_ctrl_c_cancels_what_runs(tmp_path: Path, where: str) -> None:
    with dawdling(tmp_path, where) as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGINT
    assert error.endswith("KeyboardInterrupt\n")
    assert "During handling" not in error
    nothing_is_left()


PATCHED = """
from gevent.monkey import patch_all
patch_all()
{waiting}
from django.core.management import execute_from_command_line
execute_from_command_line()
"""
WITH_GEVENT = """
from gevent.socket import wait_read, wait_write
from psycopg2 import extensions
def wait(connection):
    while (state := connection.poll()) != extensions.POLL_OK:
        (wait_read if state == extensions.POLL_READ else wait_write)(connection.fileno())
extensions.set_wait_callback(wait)
"""


@pytest.mark.parametrize("waiting", ["", WITH_GEVENT], ids=["alone", "with gevent"])
def test_sigterm_ends_a_run_under_gevent(tmp_path: Path, waiting: str) -> None:
    patched = PATCHED.format(waiting=waiting)
    with dawdling(tmp_path, "sql", python=("-c", patched)) as process:
        process.send_signal(signal.SIGTERM)
        process.wait(LONG)
    is_cancelled = is_psycopg3 or waiting
    assert process.returncode == (143 if is_cancelled else -signal.SIGTERM)
    nothing_is_left()


@pytest.mark.parametrize("waiting", ["", WITH_GEVENT], ids=["alone", "with gevent"])
def test_a_run_under_gevent_ends_without_a_word(tmp_path: Path, waiting: str) -> None:
    Site(tmp_path).write(settings="")
    done = subprocess.run(
        [sys.executable, "-c", PATCHED.format(waiting=waiting), "safemigrate", "-v0"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "TEST_DATABASE": json.dumps(connection.settings_dict, default=str),
        },
    )
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("command", ["safemigrate", "resyncsequences"])
def test_sigterm_ends_a_run_that_waits_for_a_connection(tmp_path: Path, command: str) -> None:
    """psycopg2 waits in C for a server that says nothing."""
    Site(tmp_path).write(settings="")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LONG)
        database = {
            **connection.settings_dict,
            "HOST": "127.0.0.1",
            "PORT": silent.getsockname()[1],
        }
        with subprocess.Popen(
            [sys.executable, "-m", "django", command],
            cwd=tmp_path,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "settings",
                "PYTHONPATH": f"{tmp_path}:{ROOT}",
                "TEST_DATABASE": json.dumps(database, default=str),
            },
        ) as process:
            accepted, _ = silent.accept()
            process.terminate()
            assert process.wait(LONG) == 143
            accepted.close()


# --- Doing nothing


def test_the_handler_is_there_for_the_length_of_the_run() -> None:
    with ending_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1


def test_a_handler_of_the_projects_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(*_: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ending_on_signals():
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_sets_no_handler() -> None:
    found: list[Any] = []

    def work() -> None:
        with ending_on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_handler_that_the_run_sets_stays() -> None:
    def own(*_: Any) -> None: ...

    try:
        with ending_on_signals():
            signal.signal(signal.SIGTERM, own)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_the_run_sets_sees_its_statement_end(which: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.getsignal(which)
    try:
        with ending_on_signals(), connection.cursor() as cursor:
            signal.signal(which, lambda number, frame: heard.append(number))
            process = f"import os, time; time.sleep(0.5); os.kill({os.getpid()}, {which:d})"
            with subprocess.Popen([sys.executable, "-c", process]):
                cursor.execute("SELECT pg_sleep(1.5)")
    finally:
        signal.signal(which, before)
    assert heard == [which]


def test_the_statement_of_another_database_is_cancelled(database: str) -> None:
    with binding("other", database):
        process = f"import os, time; time.sleep(0.5); os.kill({os.getpid()}, {signal.SIGTERM:d})"
        with ending_on_signals(), connections["other"].cursor() as cursor:
            start = time.monotonic()
            with subprocess.Popen([sys.executable, "-c", process]), pytest.raises(Terminated):
                cursor.execute("SELECT pg_sleep(300)")
    assert time.monotonic() - start < LONG


def test_what_listens_for_signals_goes_on_hearing_them() -> None:
    """As an event loop does."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno())
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with ending_on_signals():
            signal.raise_signal(signal.SIGUSR1)
            ours.settimeout(LONG)
            assert ours.recv(1) == bytes([signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, handler)
        signal.set_wakeup_fd(before)
        ours.close()
        pythons.close()


def test_pools_end() -> None:
    """A worker that is told to end before it has begun is not lost."""
    with ending_on_signals():
        for _ in range(400):
            child = os.fork()
            if not child:
                time.sleep(LONG)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_child_that_is_ended_cancels_nothing() -> None:
    has_begun, begin = os.pipe()
    connection.ensure_connection()
    with ending_on_signals():
        child = os.fork()
        if not child:
            os.write(begin, b"!")
            time.sleep(LONG)
            os._exit(0)
        os.read(has_begun, 1)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        assert value("SELECT 1 FROM pg_sleep(0.3)") == 1
    os.close(begin)
    os.close(has_begun)


def test_a_child_that_leaves_the_run_leaves_it_its_signals() -> None:
    execute("CREATE TABLE spoils (id int)")
    run = ending_on_signals()
    run.__enter__()
    try:
        child = os.fork()
        if not child:
            run.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        process = f"import os, time; time.sleep(0.5); os.kill({os.getpid()}, {signal.SIGTERM:d})"
        with subprocess.Popen([sys.executable, "-c", process]), pytest.raises(Terminated):
            execute("INSERT INTO spoils SELECT 1 FROM pg_sleep(4)")
    finally:
        run.__exit__(None, None, None)
    assert rows("SELECT * FROM spoils") == []


def test_a_forked_child_is_ended_as_ever() -> None:
    with ending_on_signals():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_forked_child_that_lives_on_is_not_waited_for() -> None:
    """As the workers of a pool that nobody has closed."""
    with ending_on_signals():
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(0)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
