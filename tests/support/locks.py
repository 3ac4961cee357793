"""Who holds the migration lock, and whom the server watches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connection, connections

from tests.support.databases import rows, value
from tests.support.runs import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def holders() -> list[tuple[Any, ...]]:
    return rows(HOLDERS)


def terminate(sessions: str, alias: str = "default") -> None:
    """End the sessions of which ``sessions`` is true, and wait until they are gone."""
    which = f"FROM pg_stat_activity WHERE {sessions}"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT pg_terminate_backend(pid) {which}")

        def are_gone() -> bool:
            # Within a transaction the view is a snapshot.
            cursor.execute(f"SELECT pg_stat_clear_snapshot(), (SELECT count(*) {which})")
            return bool(cursor.fetchone()[1] == 0)

        eventually(are_gone)


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
