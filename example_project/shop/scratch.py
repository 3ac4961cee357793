"""Databases that the demo makes for itself, and the only ones it ever drops."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db import OperationalError, ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

MARK = "made by manage.py demo, which drops it without asking"

COMMENT_ON = """
SELECT pg_catalog.shobj_description(d.oid, 'pg_database')
FROM pg_catalog.pg_database AS d
WHERE d.datname = %s
"""


class ScratchError(Exception):
    """A database of the demo's own can't be had; the message says why."""


@contextmanager
def scratch_databases(connection: BaseDatabaseWrapper, *names: str) -> Iterator[None]:
    """Make sure that none of the databases exists before the block, nor after it."""
    if connection.settings_dict["NAME"] in names:
        raise ScratchError(f"This is the demo's own database: {connection.settings_dict['NAME']}.")
    with _only_demo(connection):
        _drop(connection, names)
        try:
            yield
        finally:
            _drop(connection, names)


def create(connection: BaseDatabaseWrapper, name: str, *, template: str | None = None) -> None:
    """Create the database anew, as a copy of the template if there is one."""
    _drop(connection, [name])
    copy = f" TEMPLATE {template}" if template else ""
    with connection.cursor() as cursor, _refusals_explained():
        cursor.execute(f"CREATE DATABASE {name}{copy}")
        cursor.execute(f"COMMENT ON DATABASE {name} IS '{MARK}'")


@contextmanager
def inside(connection: BaseDatabaseWrapper, name: str) -> Iterator[None]:
    """Point the connection at another database of its server."""
    usual = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = name
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = usual


@contextmanager
def _only_demo(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Refuse where another demo is under way."""
    guard = connection.copy()  # `inside` closes the original, and a lock goes with its session
    try:
        with guard.cursor() as cursor:
            cursor.execute(
                "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtext(%s))", [MARK]
            )
            if cursor.fetchone() != (True,):
                raise ScratchError("Another demo is running on this server.")
        yield
    finally:
        guard.close()


@contextmanager
def _refusals_explained() -> Iterator[None]:
    try:
        yield
    except (
        OperationalError,
        ProgrammingError,
    ) as exc:  # no right to create, in use by another demo
        raise ScratchError(f"The demo needs a database of its own: {exc}".rstrip()) from exc


def _drop(connection: BaseDatabaseWrapper, names: Iterable[str]) -> None:
    with connection.cursor() as cursor, _refusals_explained():
        for name in names:
            cursor.execute(COMMENT_ON, [name])
            found = cursor.fetchone()
            if found and found[0] != MARK:
                raise ScratchError(
                    f"There is a database {name} already, and the demo did not make it."
                )
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
