"""The migration lock through PgBouncer in transaction pooling, where a session is nobody's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, migrations

from tests.support.databases import execute, rows, value
from tests.support.project import run_python
from tests.support.runs import eventually, finish, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
PORT = "6432"

pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed"),
]

# As many server connections as a run needs: of one pool, one holds the lock and one migrates.
CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
pool_mode = {mode}
server_login_retry = 1
client_login_timeout = 120
default_pool_size = {pool_size}
{user}
"""
ADVISORY_LOCKS = """
SELECT count(*)
  FROM pg_locks
 WHERE locktype = 'advisory'
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture(scope="module")
def bouncer() -> Iterator[dict[str, str]]:
    """What to change in the settings of an alias, so that it goes through PgBouncer."""
    with bouncing() as settings:
        yield settings


@contextmanager
def bouncing(
    pool_size: int = 2, server: str = "", mode: str = "transaction"
) -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="safemigrate-"))  # a socket's path has to be short
    user = _system_user()
    (folder / "ini").write_text(
        CONFIGURATION.format(
            server=server or _server(),
            port=PORT,
            folder=folder,
            pool_size=pool_size,
            mode=mode,
            user=f"user = {user}" if user else "",
        )
    )
    if user:
        shutil.chown(folder, user)
    folder.chmod(0o755)
    with subprocess.Popen([str(PGBOUNCER), "-q", str(folder / "ini")]) as process:
        eventually((folder / f".s.PGSQL.{PORT}").exists)
        yield {"HOST": str(folder), "PORT": PORT}
        process.terminate()
    shutil.rmtree(folder)


def _system_user() -> str | None:
    """PgBouncer does not run as root: whom it becomes must get to the server's socket."""
    if os.geteuid() != 0:
        return None
    host = Path(connection.settings_dict["HOST"] or "/nowhere")
    owner = host.owner() if host.is_dir() else "root"
    return "nobody" if owner == "root" else owner


def _server() -> str:
    settings = connection.settings_dict
    names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    return " ".join(f"{name}='{settings[key]}'" for name, key in names.items() if settings[key])


def test_runs_wait_for_each_other_and_strand_nothing(bouncer: dict[str, Any]) -> None:
    execute("CREATE TABLE visits (at timestamptz DEFAULT clock_timestamp(), entered boolean)")
    code = """
from django.db import transaction
with migration_lock(connection, patience=60, tell=tell) as held, transaction.atomic():
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO visits (entered) VALUES (true)")
        time.sleep(0.5)
        cursor.execute("INSERT INTO visits (entered) VALUES (false)")
assert held.taken and not held.lost
"""
    with ExitStack() as stack:
        for process in [stack.enter_context(running(code, **bouncer)) for _ in range(4)]:
            finish(process)
    visits = [entered for (entered,) in rows("SELECT entered FROM visits ORDER BY at")]
    assert visits == [True, False] * 4
    assert value(ADVISORY_LOCKS) == 0


def test_nothing_of_ours_stays_in_a_shared_session(bouncer: dict[str, Any]) -> None:
    names = ["application_name", "client_connection_check_interval", "idle_session_timeout"]
    names += ["search_path", "statement_timeout", "tcp_keepalives_idle", "transaction_isolation"]
    code = f"""
from django.db import transaction
def settings():
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", [{names}])
        return cursor.fetchall()
before = settings()
with migration_lock(connection, patience=0, tell=tell), transaction.atomic():
    assert settings() == before
for _ in range(2):
    assert settings() == before, settings()
say("same")
"""
    with running(code, **bouncer) as process:
        assert finish(process) == "same\n"


def test_a_killed_holder_makes_way(bouncer: dict[str, Any]) -> None:
    holding = "with migration_lock(connection, patience=0, tell=tell): say('mine'); time.sleep(60)"
    code = "with migration_lock(connection, patience=60, tell=say) as held: say(held.taken)"
    with ExitStack() as stack:
        holder = stack.enter_context(running(holding, **bouncer))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        waiter = stack.enter_context(running(code, **bouncer))
        assert waiter.stdout is not None
        assert f"process {holder.pid} on " in waiter.stdout.readline()
        holder.kill()
        assert finish(waiter) == "True\n"
    eventually(lambda: value(ADVISORY_LOCKS) == 0)


@contextmanager
def going_through(bouncer: dict[str, Any]) -> Iterator[None]:
    settings = connection.settings_dict
    before = {name: settings[name] for name in bouncer}
    connection.close()
    settings |= bouncer
    try:
        yield
    finally:
        connection.close()
        settings |= before


def test_a_migration_gives_up_its_locks_for_others(
    bouncer: dict[str, Any], project: Project
) -> None:
    project.migrate()
    execute("CREATE TABLE thing (id int)")
    timeouts: list[str] = []
    alter = "ALTER TABLE thing ADD note text"
    project.migration(migrations.RunSQL(["INSERT INTO thing VALUES (1)", alter]))
    project.migration(
        run_python(
            lambda apps, editor: timeouts.append(value("SELECT current_setting('lock_timeout')"))
        )
    )

    def count_attempts(run: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        attempts.append(sql)
        return run(sql, params, many, context)

    attempts: list[str] = []
    code = """
cursor = connection.cursor()
cursor.execute("BEGIN; LOCK TABLE thing IN ACCESS SHARE MODE")
say("taken")
sys.stdin.readline()
"""
    with running(code) as blocker:
        assert blocker.stdout is not None
        assert blocker.stdout.readline() == "taken\n"
        timer = Timer(1.0, blocker.kill)
        timer.start()
        with going_through(bouncer), connection.execute_wrapper(count_attempts):
            project.migrate(command="safemigrate", lock_timeout=0.1)
        with going_through(bouncer):
            assert value("SHOW lock_timeout") == "0"
        timer.join()
    assert attempts.count(alter) > 1
    assert timeouts == ["100ms"]
    assert rows("SELECT id, note FROM thing") == [(1, None)]


def test_a_pool_of_one_is_told_apart_within_the_patience() -> None:
    code = """
from safemigrate.locking.errors import LockUnavailableError
try:
    with migration_lock(connection, patience=1, tell=tell): say("taken")
except LockUnavailableError as error:
    say(error)
"""
    with bouncing(pool_size=1) as one, running(code, **one) as process:
        said = finish(process)
    assert "pool size" in said
    assert "CONNECTION LIMIT" in said
    assert "--no-lock" in said
    eventually(lambda: value(ADVISORY_LOCKS) == 0)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pool_of_two_is_enough(mode: str) -> None:
    code = "with migration_lock(connection, patience=1, tell=tell): say('taken')"
    with bouncing(pool_size=2, mode=mode) as two, running(code, **two) as process:
        assert finish(process) == "taken\n"


def test_a_pool_of_one_is_told_apart_after_waiting() -> None:
    """The run waits for one that goes to the server directly, and has the lock only then."""
    holding = """
with migration_lock(connection, patience=0, tell=tell):
    say("mine")
    sys.stdin.readline()
"""
    code = """
from safemigrate.locking.errors import LockUnavailableError
try:
    with migration_lock(connection, patience=6, tell=say): say("taken")
except LockUnavailableError as error:
    say(error)
"""
    with ExitStack() as stack:
        holder = stack.enter_context(running(holding))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        one = stack.enter_context(bouncing(pool_size=1))
        waiter = stack.enter_context(running(code, **one))
        assert waiter.stdout is not None
        assert f"process {holder.pid} on " in waiter.stdout.readline()
        holder.kill()
        assert "pool size" in finish(waiter)
    eventually(lambda: value(ADVISORY_LOCKS) == 0)


def test_behind_a_pooler_the_advice_is_to_end_the_process(bouncer: dict[str, Any]) -> None:
    holding = "with migration_lock(connection, patience=0, tell=tell): say('mine'); time.sleep(60)"
    code = """
try:
    with migration_lock(connection, patience=0, tell=tell): pass
except LockTimeoutError as error:
    say(error)
"""
    with ExitStack() as stack:
        holder = stack.enter_context(running(holding, **bouncer))
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        said = finish(stack.enter_context(running(code, **bouncer)))
    assert f"end process {holder.pid} on " in said
    assert "pg_terminate_backend" not in said
    eventually(lambda: value(ADVISORY_LOCKS) == 0)


def test_a_pooler_whose_server_is_down_is_waited_for_in_vain() -> None:
    code = """
from django.db import OperationalError
from safemigrate.locking.wait import wait_for_database
try:
    wait_for_database(connection, patience=1, tell=tell)
except OperationalError:
    say("not there")
"""
    with (
        bouncing(server="host=/nowhere") as cold,
        running(code, **cold) as process,
    ):
        assert finish(process) == "not there\n"
