"""What the server is asked to do for the migrating session, and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, migrations, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models.signals import pre_migrate

from safemigrate.locking.lock import migration_lock
from safemigrate.locking.watching import watching
from safemigrate.plans import receiving
from tests.support.databases import value
from tests.support.locks import INTERVAL, planned, quiet, recorded, unwatched, watched
from tests.support.runs import run
from tests.support.servers import needs

if TYPE_CHECKING:
    from tests.support.project import Project

pytestmark = pytest.mark.usefixtures("database")


def test_the_migrating_session_is_watched_for_the_length_of_the_run() -> None:
    assert value(INTERVAL) == unwatched()
    with migration_lock(connection, patience=0, tell=quiet):
        assert value(INTERVAL) == unwatched()
        planned()
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
        planned()
        assert value(INTERVAL) == "2s"
    assert value(INTERVAL) == "2s"


class Proxy:
    """The driver's connection as a package for tracing has it: no hash, and no weak reference."""

    __slots__ = ("_traced",)

    def __init__(self, traced: Any) -> None:
        object.__setattr__(self, "_traced", traced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._traced, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._traced, name, value)

    def __eq__(self, other: object) -> bool:
        return bool(self._traced == other)

    __hash__ = None  # type: ignore[assignment]


def test_a_connection_of_another_class_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.close()
    connect = DatabaseWrapper.get_new_connection
    monkeypatch.setattr(DatabaseWrapper, "get_new_connection", lambda *args: Proxy(connect(*args)))
    with watching(connection):
        connection.ensure_connection()
        planned()
        assert value(INTERVAL) == watched()
    assert value(INTERVAL) == unwatched()
    connection.close()


def test_in_a_transaction_nothing_is_sent() -> None:
    with transaction.atomic(), watching(connection):
        planned()
        assert value(INTERVAL) == unwatched()
    connection.set_autocommit(False)
    with watching(connection):
        planned()
        assert value(INTERVAL) == unwatched()
    connection.rollback()
    connection.set_autocommit(True)


def test_a_receiver_may_close_the_connection(project: Project) -> None:
    """As django.db.close_old_connections() does."""
    project.migration(migrations.RunSQL("SELECT 1"))
    close = receiving(pre_migrate, lambda **_: connection.close())
    with close:
        project.migrate(command="safemigrate", lock_timeout=1)
    assert recorded() == 1


def test_a_session_that_died_meanwhile_is_no_crash() -> None:
    with watching(connection):
        planned()
        assert value(INTERVAL) == watched()
        pid = value("SELECT pg_backend_pid()")
        run(f"connection.cursor().execute('SELECT pg_terminate_backend({pid})')")
    connection.close()
