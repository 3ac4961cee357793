"""The container's entrypoint, run by a real shell on a real server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pytest
from django.db import connection

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parents[2] / "example_project"
SHELL = shutil.which("dash") or "sh"
NAME = f"entrypoint_{os.getpid()}"
LONG = 60

pytestmark = pytest.mark.usefixtures("database")


def drop() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")


def create() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {NAME}")


@pytest.fixture
def no_database() -> Iterator[str]:
    """The URL of a database that is not there yet; what is made of it is dropped."""
    drop()
    yield url_of(NAME)
    drop()


@pytest.fixture
def empty_database(no_database: str) -> str:
    """The URL of a database with nothing in it."""
    create()
    return no_database


def url_of(name: str) -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


def environment(url: str) -> dict[str, str]:
    """Return an environment in which `python` is ours, and the shop's settings are the settings."""
    return {
        **os.environ,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "mysite.settings",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLE.parent),
    }


def start(url: str, *command: str, wait: int = 0) -> subprocess.Popen[str]:
    """Start the entrypoint with a command to become, as a container does."""
    return subprocess.Popen(
        [SHELL, EXAMPLE / "docker-entrypoint.sh", *command],
        env=environment(url) | {"SAFEMIGRATE_WAIT_FOR_DATABASE": str(wait)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, error = process.communicate(timeout=LONG)
    finally:
        process.kill()
    return process.returncode, output, error


def is_waiting(process: subprocess.Popen[str]) -> bool:
    """Read on until the run says that it waits."""
    assert process.stdout
    return any("Waiting up to" in line for line in process.stdout)


def query(url: str, sql: str) -> str:
    """Run one statement on the shop's database, and return the first column of the first row."""
    code = (
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        f"    cursor.execute({sql!r})\n"
        "    print(*cursor.fetchone()[:1] if cursor.description else '')\n"
    )
    return subprocess.run(
        [sys.executable, "manage.py", "shell", "--verbosity=0", "--command", code],
        cwd=EXAMPLE,
        env=environment(url),
        capture_output=True,
        check=True,
        text=True,
        timeout=LONG,
    ).stdout.strip()


def test_migrates_then_runs_the_command(empty_database: str) -> None:
    status, output, error = finish(start(empty_database, "echo", "served"))
    assert (status, error) == (0, "")
    assert "Applying shop.0005_order_shop_order_placed_at... OK" in output
    assert output.endswith("served\n")


def test_runs_the_command_where_there_is_nothing_to_migrate(empty_database: str) -> None:
    finish(start(empty_database, "true"))
    status, output, error = finish(start(empty_database, "echo", "served"))
    assert (status, error) == (0, "")
    assert "No migrations to apply." in output
    assert output.endswith("served\n")


def test_heals_what_is_behind(empty_database: str) -> None:
    finish(start(empty_database, "true"))
    query(
        empty_database,
        "DELETE FROM django_migrations WHERE app = 'shop' AND name ~ '^0005'",
    )
    query(empty_database, "SELECT setval('django_migrations_id_seq', 1, false)")
    query(empty_database, "DROP INDEX shop_order_placed_at")
    status, output, error = finish(start(empty_database, "echo", "served"))
    assert (status, error) == (0, "")
    assert output.endswith("served\n")
    assert query(empty_database, "SELECT max(id) FROM django_migrations") == "23"


def test_becomes_the_command(empty_database: str) -> None:
    process = start(empty_database, "sh", "-c", 'echo $$; printf "%s|" "$@"', "sh", "a b", "*", "")
    status, output, _ = finish(process)
    assert status == 0
    assert output.splitlines()[-2:] == [str(process.pid), "a b|*||"]


def test_hands_on_the_command_s_exit_status(empty_database: str) -> None:
    status, _, _ = finish(start(empty_database, "sh", "-c", "exit 7"))
    assert status == 7


def test_serves_nothing_where_the_migration_fails(empty_database: str) -> None:
    query(empty_database, "CREATE TABLE shop_order ()")
    status, output, error = finish(start(empty_database, "echo", "served"))
    assert status == 1
    assert "served" not in output
    assert 'relation "shop_order" already exists' in error


def test_serves_nothing_without_a_database(no_database: str) -> None:
    status, output, error = finish(start(no_database, "echo", "served"))
    assert status != 0
    assert "served" not in output
    assert f'database "{NAME}" does not exist' in error


def test_waits_for_a_database_that_comes_later(no_database: str) -> None:
    process = start(no_database, "echo", "served", wait=LONG)
    assert is_waiting(process)
    create()
    status, output, _ = finish(process)
    assert status == 0
    assert output.endswith("served\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_passes_a_signal_on(no_database: str, number: signal.Signals) -> None:
    process = start(no_database, "echo", "served", wait=LONG)
    assert is_waiting(process)
    process.send_signal(number)
    status, output, error = finish(process)
    assert status == 128 + signal.SIGTERM
    assert "served" not in output
    assert "Ended by SIGTERM" in error


def test_waits_for_a_server_that_comes_later(empty_database: str, tmp_path: Path) -> None:
    server = connection.get_connection_params()
    if not server.get("host", "").startswith("/"):
        pytest.skip("The server has no socket that could come later.")
    later = tmp_path / "later"
    url = f"postgres://{server['user']}@{quote(str(later), safe='')}/{NAME}"
    process = start(url, "echo", "served", wait=LONG)
    assert is_waiting(process)
    later.symlink_to(server["host"])
    status, output, _ = finish(process)
    assert status == 0
    assert output.endswith("served\n")


def test_replicas_that_start_at_once_take_turns(empty_database: str) -> None:
    replicas = [start(empty_database, "echo", "served") for _ in range(3)]
    answers = [finish(replica) for replica in replicas]
    assert [status for status, _, _ in answers] == [0, 0, 0]
    assert all(output.endswith("served\n") for _, output, _ in answers)
    assert query(empty_database, "SELECT count(*) FROM django_migrations") == "23"
    applied = [line for _, output, _ in answers for line in output.splitlines() if "... OK" in line]
    assert len(applied) == len(set(applied)) == 23


def test_only_the_url_says_which_database(empty_database: str) -> None:
    """Variables that libpq reads, exported for another server, must not lead the example there."""
    astray = {
        "PGHOSTADDR": "127.0.0.1",
        "PGPORT": "1",
        "PGDATABASE": "precious",
        "PGUSER": "nobody",
    }
    for command in (
        ["migrate", "--verbosity", "0"],
        ["fallbehind", "django_migrations", "--this-database"],
    ):
        done = subprocess.run(
            [sys.executable, EXAMPLE / "manage.py", *command],
            env=environment(empty_database) | astray,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert f'Database "{NAME}" on ' in done.stdout
