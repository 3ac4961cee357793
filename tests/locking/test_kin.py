"""Runs that the holder of the lock has started: nested, in threads, forked and spawned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from django.db import connection

from safemigrate.locking.errors import LockHeldByParentError
from safemigrate.locking.lock import migration_lock
from tests.support.locks import HOLDERS, INTERVAL, is_free, quiet, watched
from tests.support.runs import LONG, finish, in_threads, run, running

pytestmark = pytest.mark.usefixtures("database")


def test_a_nested_run_does_not_wait() -> None:
    with migration_lock(connection, patience=0, tell=quiet):
        with migration_lock(connection, patience=LONG, tell=pytest.fail) as nested:
            assert not nested.taken
        assert not is_free()
    assert is_free()


def test_a_nested_run_by_another_name_does_not_wait() -> None:
    twin = connection.copy()
    twin.settings_dict["OPTIONS"]["application_name"] = "twin"
    twin.settings_dict["HOST"] = f"{twin.settings_dict['HOST']},{twin.settings_dict['HOST']}"
    twin.settings_dict["PORT"] = ",".join([str(twin.settings_dict["PORT"] or 5432)] * 2)
    with migration_lock(connection, patience=0, tell=quiet):
        with migration_lock(twin, patience=LONG, tell=pytest.fail) as nested:
            assert not nested.taken
        twin.close()
        assert not is_free()


def test_a_spawned_child_does_not_wait() -> None:
    code = "with migration_lock(connection, patience=60, tell=tell) as nested: say(nested.taken)"
    with migration_lock(connection, patience=0, tell=quiet):
        assert run(code, kin=True) == "False\n"
        assert not is_free()
    assert run(code) == "True\n"


def test_a_child_that_knows_nothing_of_its_parent_fails_at_once() -> None:
    code = "with migration_lock(connection, patience=60, tell=say): say('taken')"
    with (
        migration_lock(connection, patience=0, tell=quiet),
        running(code, child=True) as process,
    ):
        said, error = process.communicate(timeout=LONG)
    assert said == ""
    assert "LockHeldByParentError" in error
    assert f"process {os.getpid()} on " in error


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_the_processes_above_a_run_are_known_but_for_the_first() -> None:
    code = "from safemigrate.locking.kin import _ancestors; say(json.dumps(list(_ancestors())))"
    with running(code, child=True) as process:
        above = json.loads(finish(process))
    expected = [pid for pid in (os.getpid(), os.getppid()) if pid > 1]
    assert above[: len(expected)] == expected
    assert 1 not in above


def test_a_thread_of_the_run_fails_at_once() -> None:
    def waiting() -> None:
        with migration_lock(connection, patience=LONG, tell=pytest.fail):
            pytest.fail("it was taken")

    with (
        migration_lock(connection, patience=0, tell=quiet),
        pytest.raises(LockHeldByParentError, match="--no-lock"),
    ):
        in_threads(1, waiting)


@pytest.mark.parametrize(
    "leaving",
    [
        "os._exit(0)",
        "sys.exit(0)",
        "raise KeyboardInterrupt",
        "gc.collect(); del held; gc.collect()",
    ],
)
def test_a_forked_child_neither_waits_nor_ends_the_lock(leaving: str) -> None:
    code = f"""
import gc
from django.db import connections
def child():
    connections["default"].connection = None  # as the forking executors do
    with migration_lock(connection, patience=60, tell=tell) as nested:
        cursor = connection.cursor()
        cursor.execute("{INTERVAL}")
        say((nested.taken, *cursor.fetchone()))
    connection.close()
with migration_lock(connection, patience=0, tell=tell) as held:
    planned()
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
say((held.taken, held.lost))
"""
    assert run(code).splitlines() == [
        f"(False, '{watched()}')",
        "1",
        "(True, False)",
    ]


def test_a_forked_child_takes_the_lock_for_held() -> None:
    code = """
with migration_lock(connection, patience=0, tell=tell) as held:
    if not os.fork():
        say(held.check())
        os._exit(0)
    os.wait()
"""
    assert run(code) == "True\n"


def test_a_forked_child_that_fails_leaves_the_parents_connections_alone() -> None:
    code = f"""
with migration_lock(connection, patience=0, tell=tell) as held:
    planned()
    if not os.fork():
        sys.exit()
    os.wait()
    with connection.cursor() as cursor:
        cursor.execute("{INTERVAL}")
        say(cursor.fetchone())
say((held.taken, held.lost))
"""
    assert run(code).splitlines() == [f"('{watched()}',)", "(True, False)"]
