"""Let the server end what a migrating session runs once its client is gone."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from django.db import Error
from django.db.backends.signals import connection_created

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# Not behind a pooler, where the backend is another client's in a moment: its pid is not the one
# that the client was told. Not where the server has it on already.
WATCH_THE_CLIENT = """
SELECT pg_catalog.set_config('client_connection_check_interval', '500', false)
 WHERE pg_catalog.current_setting('client_connection_check_interval', true) = '0'
   AND pg_catalog.pg_backend_pid() = %s
"""

STOP_WATCHING = """
SELECT pg_catalog.set_config('client_connection_check_interval', '0', false)
 WHERE pg_catalog.pg_backend_pid() = %s
"""


@contextmanager
def watching(connection: BaseDatabaseWrapper, *, patience: float | None = None) -> Iterator[None]:
    """
    Let the server end this session's statement, uncommitted, once its client is gone.

    Without it a killed run's statement goes on and commits. PostgreSQL 14 and later, where the
    platform has it; of a connection in a transaction, or behind a pooler, the server is not asked.
    Connections that the alias opens in the meantime are watched too. Raises the connection's error
    if its first statement isn't answered within ``patience`` seconds.
    """
    process = os.getpid()
    watched: list[Any] = []

    def watch(connection: BaseDatabaseWrapper, **_: object) -> None:
        with suppress(Error):
            _watch(connection)

    def _watch(connection: BaseDatabaseWrapper) -> None:
        if connection.alias == alias and _set(connection, WATCH_THE_CLIENT):
            watched.append(connection.connection)

    alias = connection.alias
    connection.ensure_connection()
    with driver.deadline(connection, patience):
        _watch(connection)
    try:
        with on_connecting(watch):
            yield
    finally:
        if os.getpid() == process and connection.connection in watched:
            with suppress(Error):
                _set(connection, STOP_WATCHING)


def _set(connection: BaseDatabaseWrapper, sql: str) -> bool:
    """Send a setting past Django, wrappers and query log; return whether the server took it."""
    if connection.in_atomic_block or not connection.autocommit:
        return False
    with driver.cursor(connection) as ours:
        return bool(ours.rows(sql, [driver.backend_pid(connection.connection)]))


@contextmanager
def on_connecting(receiver: Callable[..., None]) -> Iterator[None]:
    connection_created.connect(receiver, weak=False)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)
