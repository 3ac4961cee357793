"""Let the server end a migrating session's statement once its client is gone."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from django.db import Error
from django.db.backends.signals import connection_created

from safemigrate import driver
from safemigrate.plans import receiving, receiving_plans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# Not behind a pooler, where the backend soon serves another client: its pid is not the one that the
# client was told. Not if the server has it on already.
REPLACE = """
SELECT pg_catalog.set_config('client_connection_check_interval', %s, false)
 WHERE pg_catalog.current_setting('client_connection_check_interval', true)
       OPERATOR(pg_catalog.=) %s
   AND pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) %s
"""
OFF, ON = "0", "500ms"


@contextmanager
def watching(migrating: BaseDatabaseWrapper) -> Iterator[None]:
    """Let the server end this session's statement, uncommitted, once its client is gone.

    Otherwise a killed run's statement goes on, and commits. It takes PostgreSQL 14 or later, on a
    platform that supports it. Nothing is sent in a transaction or behind a pooler, and nothing
    until ``migrate`` has a plan. Connections that the alias opens after that are watched, too.
    """
    process = os.getpid()
    alias = migrating.alias
    ours: Any = None  # not those of the project's threads, which end with them

    def watch(connection: BaseDatabaseWrapper, **_: object) -> None:
        nonlocal ours
        is_watched = connection.alias == alias and _replace(connection, OFF, ON)
        if is_watched and connection.connection is migrating.connection:
            ours = connection.connection

    def watch_a_plan(using: str, plan: Any) -> None:
        if using == alias and ours is None:
            watch(migrating)
            stack.enter_context(receiving(connection_created, watch))

    with ExitStack() as stack, receiving_plans(watch_a_plan):
        try:
            yield
        finally:
            if os.getpid() == process and ours is not None and migrating.connection is ours:
                _replace(migrating, ON, OFF)


def _replace(connection: BaseDatabaseWrapper, before: str, after: str) -> bool:
    """Change the setting, bypassing Django; return whether the server took it."""
    if driver.is_closed(connection) or connection.in_atomic_block or not connection.autocommit:
        return False
    with suppress(Error), driver.cursor(connection) as ours:
        return bool(ours.rows(REPLACE, [after, before, driver.backend_pid(connection.connection)]))
    return False
