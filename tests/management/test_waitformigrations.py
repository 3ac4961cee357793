"""Waiting, in a process that must not migrate, for the one that does."""

from __future__ import annotations

import io
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import Error, connection, connections, models
from django.db import migrations as django_migrations
from django.test import override_settings

from tests.support.databases import Databases, binding, execute, locked, value
from tests.support.findings import role
from tests.support.locks import HERE
from tests.support.runs import eventually
from tests.support.servers import moved_to_a_server_of_its_own

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

LONG = 60
STEP = django_migrations.CreateModel("Thing", [("id", models.BigAutoField(primary_key=True))])
OURS = f"""
SELECT pid FROM pg_stat_activity
 WHERE {HERE} AND query = 'SELECT app, name FROM django_migrations'
"""


class Output(io.StringIO):
    """What a command says; tells when it has said something."""

    def __init__(self) -> None:
        super().__init__()
        self.has_said = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.has_said.set()
        return written


@contextmanager
def waiting(interval: float = 0.05) -> Iterator[Output]:
    """Wait in a thread while the block does what is waited for."""
    said = Output()

    def wait() -> None:
        call_command("waitformigrations", stdout=said, interval=interval, timeout=LONG)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(wait)
        assert said.has_said.wait(LONG)
        assert not future.done()
        yield said
        future.result(LONG)


def wait(**options: Any) -> str:
    out = io.StringIO()
    call_command("waitformigrations", stdout=out, **options)
    return out.getvalue()


def test_returns_at_once_where_all_are_applied(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.migration(STEP)
    project.migrate()
    with override_settings(DEBUG=True), caplog.at_level("DEBUG", "django.db.backends"):
        said = wait(timeout=0)
    assert said.endswith('migrations are applied on database "default".\n')
    assert "Waiting" not in said
    sent = [record.sql for record in caplog.records if record.name == "django.db.backends"]  # type: ignore[attr-defined]
    assert sent == ["SELECT app, name FROM django_migrations"]


def test_waits_for_the_table_and_the_last_migration(project: Project) -> None:
    project.migration(STEP)
    with waiting() as said:
        project.migrate("contenttypes")
        project.migrate()
    first, *_, last = said.getvalue().splitlines()
    assert first == (
        'Waiting up to 60 s for migrations on database "default": app.0001_step and 14 more'
    )
    assert last == 'All 15 migrations are applied on database "default".'


def test_without_autocommit_a_missing_table_is_waited_for(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.migration(STEP)
    connection.ensure_connection()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    with waiting():
        project.migrate()


def test_waits_for_a_database_that_comes_later(project: Project, databases: Databases) -> None:
    project.migrate()
    connection.close()
    template = connection.settings_dict["NAME"]
    name = f"{template}_later"
    with binding("default", name):
        with waiting() as said:
            databases._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        assert f'database "{name}" does not exist' in said.getvalue()
    databases._execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_opens_a_broken_connection_again(project: Project) -> None:
    project.migration(STEP)
    project.migrate("contenttypes")
    with waiting():
        assert value(f"SELECT pg_terminate_backend(pid) FROM ({OURS}) AS ours")
        project.migrate()


def test_outlasts_a_crash_of_the_server(project: Project) -> None:
    """Then psycopg2 has a class of error of its own."""
    project.migration(STEP)
    with moved_to_a_server_of_its_own():
        project.migrate("contenttypes")
        with waiting(interval=1):
            crash()
            eventually(is_up)
            project.migrate()


def crash() -> None:
    """Crash the server: it has begun to end every session once one that did nothing is broken."""
    bystander = connection.copy()
    bystander.ensure_connection()
    os.kill(value("SELECT pg_backend_pid()"), signal.SIGKILL)
    connection.close()
    eventually(lambda: not bystander.is_usable())
    bystander.close()


def is_up() -> bool:
    with suppress(Error):
        return bool(value("SELECT true"))
    connection.close()
    return False


def test_asks_over_one_connection_and_closes_it(project: Project) -> None:
    project.migration(STEP)
    with waiting():
        first = value(OURS)
        project.migrate("contenttypes")
        assert value(OURS) == first
        project.migrate()
    execute("SELECT 1")
    assert connection.connection is not None


def test_lists_what_is_missing_when_time_is_over(project: Project) -> None:
    project.migration(STEP)
    project.migration()
    project.migrate("app", "0001")
    project.migrate("auth")
    with pytest.raises(CommandError) as caught:
        wait(timeout=1, interval=0.05)
    assert caught.value.returncode == 1
    assert str(caught.value) == (
        'Gave up after 1 s: 1 of the migrations on database "default" are not applied:\n'
        "  app.0002_step"
    )
    assert value("SELECT count(*) FROM django_migrations WHERE name = '0002_step'") == 0


def test_says_why_when_time_is_over_without_a_database(project: Project) -> None:
    with (
        binding("default", "not_there"),
        pytest.raises(CommandError, match=r'Gave up after 0 s: database "default": .*not_there'),
    ):
        wait(timeout=0)


def test_a_locked_table_does_not_outlast_the_timeout(project: Project) -> None:
    project.migrate()
    with (
        locked("django_migrations"),
        pytest.raises(CommandError, match='database "default": no answer within 2 s'),
    ):
        wait(timeout=1)


def test_is_silent_at_verbosity_0(project: Project) -> None:
    project.migration(STEP)
    project.migrate("contenttypes")
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError):
        call_command(
            "waitformigrations", timeout=1, interval=0.05, verbosity=0, stdout=out, stderr=err
        )
    project.migrate()
    call_command("waitformigrations", timeout=0, verbosity=0, stdout=out, stderr=err)
    assert out.getvalue() == err.getvalue() == ""


def test_a_squashed_migration_is_applied_with_the_last_that_it_replaces(project: Project) -> None:
    first = project.migration(STEP)
    second = project.migration()
    project.migrate()
    project.migration(STEP, dependencies=[], replaces=[("app", first), ("app", second)])
    assert "are applied" in wait(timeout=0)
    execute("DELETE FROM django_migrations WHERE name = %s", [second])
    with pytest.raises(CommandError, match=r"app\.0003_step"):
        wait(timeout=0)
    execute("UPDATE django_migrations SET name = '0003_step' WHERE name = %s", [first])
    assert "are applied" in wait(timeout=0)


def test_what_waiting_cannot_cure_is_raised_at_once(project: Project) -> None:
    execute("CREATE TABLE django_migrations (something text)")
    with pytest.raises(CommandError, match=r"could not be read: column .app. does not exist"):
        wait(timeout=LONG)


def test_a_role_that_may_not_read_them(project: Project) -> None:
    project.migrate()
    said = 'The migrations of database "default" could not be read: permission denied for'
    with role("USAGE ON SCHEMA public"), pytest.raises(CommandError, match=said):
        wait(timeout=LONG)


def test_an_unknown_database() -> None:
    with pytest.raises(CommandError, match="invalid choice: 'nowhere'"):
        call_command("waitformigrations", "--database", "nowhere")


def test_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one schema has every migration says nothing of the others."""
    monkeypatch.setitem(vars(connections["default"]), "schema_name", "public")
    with pytest.raises(CommandError, match="a schema for each tenant"):
        wait()


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_that_is_none(interval: str) -> None:
    with pytest.raises(CommandError, match="not a number of seconds above 0"):
        call_command("waitformigrations", f"--interval={interval}")
