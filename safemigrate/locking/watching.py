"""Let the server end a migrating session's statement once its client is gone."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from django.db import Error
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_migrate

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# Not behind a pooler, where the backend soon serves another client: its pid is not the one that the
# client was told. Not if the server has it on already.
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
def watching(connection: BaseDatabaseWrapper, *, at_once: bool) -> Iterator[None]:
    """
    Let the server end this session's statement, uncommitted, once its client is gone.

    Otherwise a killed run's statement goes on, and commits. It takes PostgreSQL 14 or later, on a
    platform that supports it. Nothing is sent in a transaction or behind a pooler. Without
    ``at_once``, it starts when ``migrate`` has a plan, so that a run with nothing to do sends
    nothing. Connections that the alias opens in the meantime are watched, too.
    """
    process = os.getpid()
    watched: list[Any] = []

    def watch(connection: BaseDatabaseWrapper, **_: object) -> None:
        if connection.alias == alias and _set(connection, WATCH_THE_CLIENT):
            watched.append(connection.connection)

    def watch_a_plan(using: str, plan: Any, **_: object) -> None:
        if plan and using == alias and not watched:
            watch(connection)

    alias = connection.alias
    connection.ensure_connection()
    if at_once:
        watch(connection)
    pre_migrate.connect(watch_a_plan)
    try:
        with on_connecting(watch) if at_once else nullcontext():
            yield
    finally:
        pre_migrate.disconnect(watch_a_plan)
        if os.getpid() == process and connection.connection in watched:
            _set(connection, STOP_WATCHING)


def _set(connection: BaseDatabaseWrapper, sql: str) -> bool:
    """Send a setting, bypassing Django; return whether the server took it."""
    if connection.in_atomic_block or not connection.autocommit:
        return False
    with suppress(Error), driver.cursor(connection) as ours:
        return bool(ours.rows(sql, [driver.backend_pid(connection.connection)]))
    return False


@contextmanager
def on_connecting(receiver: Callable[..., None]) -> Iterator[None]:
    connection_created.connect(receiver, weak=False)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)
