"""The settings of a check, which end with it, and what may keep a check from being done.

They pin ``search_path`` to ``pg_catalog``: no operator, function or relation of anybody else's can
stand in for the server's own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db import Error, NotSupportedError, ProgrammingError

from safemigrate import driver
from safemigrate.printing import first_line, one_line, printable

from .feeds import PATH
from .sequence import Hinders, Obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.driver import Cursor

INSUFFICIENT_PRIVILEGE = "42501"
# For a lock. The long one is waited only once in a sweep, not for each of many locked tables.
LONG_WAIT, SHORT_WAIT = "1s", "50ms"

RESOLVE = "SELECT pg_catalog.to_regclass(%s)::pg_catalog.oid AS oid"
# With constraint exclusion the planner would evaluate CHECK constraints, which anybody may write.
SETTINGS = f"""
    SELECT pg_catalog.set_config(own.name, own.value, true)
    FROM (VALUES ('{PATH}', pg_catalog.current_schemas(true)::pg_catalog.text),
                 ('search_path', 'pg_catalog'),
                 ('lock_timeout', %s::pg_catalog.text),
                 ('row_security', 'off'),
                 ('quote_all_identifiers', 'off'),
                 ('constraint_exclusion', 'off'),
                 ('exit_on_error', 'off'),
                 ('jit', 'off')) AS own (name, value)
    WHERE own.value IS NOT NULL
"""


@contextmanager
def checking(connection: BaseDatabaseWrapper, *, lock_timeout: str = LONG_WAIT) -> Iterator[Cursor]:
    """Give a cursor with the settings for a check, which end with the block."""
    with driver.aside(connection) as cursor:
        cursor.execute(SETTINGS, [lock_timeout])
        yield cursor


@contextmanager
def checking_table(
    connection: BaseDatabaseWrapper, table: str, *, lock_timeout: str | None = None
) -> Iterator[tuple[Cursor, int | None]]:
    """Give a cursor for checks and the oid of ``table``, looked up as a statement would.

    Without ``lock_timeout`` it waits for a lock as long as the session would.
    """
    with driver.aside(connection) as cursor:
        try:
            oid = cursor.row(RESOLVE, [table]).oid
        except (NotSupportedError, ProgrammingError):  # what was misread is no name at all
            yield cursor, None
            return
        cursor.execute(SETTINGS, [lock_timeout])
        yield cursor, oid


def obstacle_of(error: Exception) -> Obstacle:
    """Say what kept a check from being done, from the error that the server gave it."""
    state = driver.sqlstate(error) if isinstance(error, Error) else None
    if state == driver.LOCK_NOT_AVAILABLE:
        cure = "try again when it is not"
        return Obstacle("the table was locked", cure, hinders=Hinders.CHECKING)
    if state == INSUFFICIENT_PRIVILEGE:
        return Obstacle(
            f"not everything can be read ({printable(first_line(error))})",
            "run as a role that may, such as the table's owner",
            hinders=Hinders.CHECKING,
        )
    return Obstacle(
        f"the check failed ({type(error).__name__}: {one_line(str(error))})",
        hinders=Hinders.CHECKING,
    )
