"""Databases that tests make, clone, break and look into."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.db import connection, connections
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

EMPTY = "template0"
EVERY_KEY = """
    SELECT n.nspname, c.relname, a.attname, s.oid::regclass::text
    FROM pg_class AS s
    JOIN pg_depend AS d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass
        AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
    JOIN pg_class AS c ON c.oid = d.refobjid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE s.relkind = 'S'
    ORDER BY 1, 2, 3
"""


class Databases:
    """Makes databases, and drops those it made."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._made: list[str] = []
        self._states: dict[str, str] = {}
        self._empty: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._made):
            self.drop(name)

    def create(self, template: str = EMPTY, name: str | None = None) -> str:
        if template == EMPTY and not name and self._empty:
            return self._empty.pop()
        name = name or self._name()
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {self._strategy}')
        self._made.append(name)
        return name

    def drop(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._made.remove(name)

    @contextmanager
    def bound(self, alias: str, template: str = EMPTY) -> Iterator[str]:
        """Create a database and let ``alias`` mean it."""
        name = self.create(template)
        with binding(alias, name):
            yield name
        self.drop(name)

    def restore(self, state: str, make: Callable[[], None]) -> None:
        """Bring the default, empty database to a state that is made only once."""
        name = connection.settings_dict["NAME"]
        if state in self._states:
            connection.close()
            self._put_aside(name)
            self.create(self._states[state], name)
        else:
            make()
            connection.close()
            self._states[state] = self.create(name)
        connection.ensure_connection()

    def _put_aside(self, empty: str) -> None:
        spare = self._name()
        self._execute(f'ALTER DATABASE "{empty}" RENAME TO "{spare}"')
        self._made[self._made.index(empty)] = spare
        self._empty.append(spare)

    def _name(self) -> str:
        return f"safemigrate_{os.getpid()}_{next(self._numbers)}"

    @cached_property
    def _strategy(self) -> str:
        """Copy files, which takes half the time where nothing waits for the disk."""
        with connections["default"]._nodb_cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('server_version_num')::int >= 150000"
                " AND NOT current_setting('fsync')::bool"
            )
            return "STRATEGY file_copy" if cursor.fetchone()[0] else ""

    def _execute(self, sql: str) -> None:
        with connections["default"]._nodb_cursor() as cursor:
            cursor.execute(sql)


@contextmanager
def sqlite() -> Iterator[SQLite]:
    """Bind the alias ``other`` to a database of another vendor."""
    connection_to_sqlite = SQLite({**connection.settings_dict, "NAME": ":memory:"}, "other")
    postgresql, connections["other"] = connections["other"], connection_to_sqlite
    try:
        yield connection_to_sqlite
    finally:
        connections["other"] = postgresql
        # Django's own close() keeps a database in memory.
        if connection_to_sqlite.connection is not None:
            connection_to_sqlite.connection.close()


@contextmanager
def binding(alias: str, name: str) -> Iterator[None]:
    """Let ``alias`` mean the database ``name`` for a while."""
    bound = connections[alias]
    bound.close()
    before, bound.settings_dict["NAME"] = bound.settings_dict["NAME"], name
    try:
        yield
    finally:
        bound.close()
        bound.settings_dict["NAME"] = before


@contextmanager
def locked(*tables: str) -> Iterator[None]:
    """Let another session hold tables of the current database for the block."""
    with binding("other", connection.settings_dict["NAME"]):
        with connections["other"].cursor() as cursor:
            cursor.execute(f"BEGIN; LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
        yield


def elsewhere(sql: str) -> None:
    """Send a statement in another session of the same database."""
    other = connections["other"]
    with binding("other", connection.settings_dict["NAME"]), other.cursor() as cursor:
        cursor.execute(sql)


def execute(sql: str, params: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def rows(sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())


def value(sql: str, params: Any = None) -> Any:
    return rows(sql, params)[0][0]


def keys() -> list[tuple[str, str, str, str]]:
    """List schema, table, column and sequence of every serial and identity column."""
    return rows(EVERY_KEY)


def put_behind(*tables: str, to: int = 1) -> None:
    """Make the sequences of ``tables`` (all, where none is named) give ``to`` next."""
    for _, table, _, sequence in keys():
        if not tables or table in tables:
            execute("SELECT setval(%s::regclass, %s, false)", [sequence, to])


def next_value(sequence: str) -> int:
    """Say what ``sequence`` (as the server quotes it) would give next, without drawing."""
    step = value("SELECT seqincrement FROM pg_sequence WHERE seqrelid = %s::regclass", [sequence])
    return int(
        value(f"SELECT last_value + CASE WHEN is_called THEN {step} ELSE 0 END FROM {sequence}")
    )


def largest_key(schema: str, table: str, column: str) -> int | None:
    found = value(f'SELECT max("{column}") FROM "{schema}"."{table}"')
    return None if found is None else int(found)


def set_right() -> None:
    """Move every sequence past its table, as on a database where nothing ever went wrong."""
    for schema, table, column, sequence in keys():
        largest = largest_key(schema, table, column)
        if largest is not None and next_value(sequence) <= largest:
            execute("SELECT setval(%s::regclass, %s)", [sequence, largest])


def behind() -> list[str]:
    """List the tables whose sequences are behind."""
    return [
        table
        for schema, table, column, sequence in keys()
        if (largest_key(schema, table, column) or 0) >= next_value(sequence)
    ]
