"""Which sequences are meant: those of schemas, of an app, of models and tables by their names."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.apps import apps

from safemigrate import driver

from .checking import checking, checking_table
from .feeds import Feed, feeds_of_table, list_feeds
from .needs import models_of, place_of_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

    from safemigrate.driver import Cursor

CURRENT_SCHEMAS = """
    SELECT n::pg_catalog.text AS name
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS n
"""
MISSING_SCHEMAS = """
    SELECT n AS name
    FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS n
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_namespace AS s WHERE s.nspname::pg_catalog.text = n)
"""
TABLE = """
    SELECT c.oid, n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = %s AND c.relkind IN ('r', 'p', 'v', 'f')
"""
# With a schema, to_regclass() would need USAGE on it.
TABLES = """
    SELECT CASE WHEN t.schema IS NULL
           THEN pg_catalog.to_regclass(pg_catalog.quote_ident(t.name))::pg_catalog.oid
           ELSE (
               SELECT c.oid
               FROM pg_catalog.pg_namespace AS n
               JOIN pg_catalog.pg_class AS c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
               WHERE n.nspname OPERATOR(pg_catalog.=) t.schema::pg_catalog.name
                 AND c.relname OPERATOR(pg_catalog.=) t.name::pg_catalog.name) END AS oid
    FROM ROWS FROM (
        pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
    ) AS t (schema, name)
"""


def current_schemas(connection: BaseDatabaseWrapper) -> list[str]:
    """List the schemas in which names are looked up now, without the system's."""
    with driver.aside(connection) as cursor:
        return [row.name for row in cursor.rows(CURRENT_SCHEMAS)]


def missing_schemas(connection: BaseDatabaseWrapper, names: list[str]) -> list[str]:
    """List those of the names that no schema has."""
    with checking(connection) as cursor:
        return [row.name for row in cursor.rows(MISSING_SCHEMAS, [names])]


def feeds_in(
    connection: BaseDatabaseWrapper,
    schemas: Iterable[str] | None = (),
    *,
    tables: Iterable[int] = (),
) -> list[list[Feed]]:
    """List all feeds of the sequences that feed a table of ``schemas``, or one of ``tables``.

    None stands for all schemas but other sessions' temporary ones.
    """
    with checking(connection) as cursor:
        return list_feeds(cursor, schemas=schemas, tables=tables)


def tables_of_app(connection: BaseDatabaseWrapper, label: str) -> list[int]:
    """List the oids of those tables of an app's models that are there.

    Raises LookupError for a label that no installed app has.
    """
    return _tables_of(connection, apps.get_app_config(label).get_models(include_auto_created=True))


def feeds_of(
    connection: BaseDatabaseWrapper, what: Rows[type[Model] | str] = ()
) -> list[list[Feed]]:
    """List what the sequences feed that an INSERT into models or tables draws from.

    A table is named exactly as it is called, or as a statement would write it. Nothing means every
    table of the current schemas, and those of models that name another schema. Raises LookupError
    for a table that is not there.
    """
    if not what:
        return feeds_in(
            connection,
            current_schemas(connection),
            tables=_tables_of(connection, models_of(connection)),
        )
    found: dict[int, set[Feed]] = {}
    for name in dict.fromkeys(_names_of(connection, what)):
        with _table(connection, name) as (cursor, table):
            for group in feeds_of_table(cursor, table.oid)[0]:
                found.setdefault(group[0].sequence, set()).update(group)
    return [sorted(group) for group in found.values()]


def _tables_of(connection: BaseDatabaseWrapper, models: Iterable[Any]) -> list[int]:
    """List the oids of those of the models' tables that are there."""
    places = [place_of_model(connection, model) for model in models]
    with driver.aside(connection) as cursor:
        rows = cursor.rows(TABLES, [[schema for schema, _ in places], [name for _, name in places]])
    return [row.oid for row in rows if row.oid is not None]


def place_of_table(connection: BaseDatabaseWrapper, name: str) -> tuple[str, str]:
    """Return the schema and the name of a table that is named as :func:`feeds_of` takes it."""
    with _table(connection, name) as (_, table):
        return table.schema, table.name


def _names_of(connection: BaseDatabaseWrapper, what: Iterable[type[Model] | str]) -> Iterator[str]:
    for each in what:
        if isinstance(each, str):
            yield each
            continue
        throughs = (field.remote_field.through for field in each._meta.many_to_many)
        made = (through for through in throughs if through and through._meta.auto_created)
        for model in (each, *each._meta.get_parent_list(), *made):
            table = model._meta.db_table
            yield connection.ops.quote_name(table) if '"' in table else table


@contextmanager
def _table(connection: BaseDatabaseWrapper, name: str) -> Iterator[tuple[Cursor, Any]]:
    quoted = name.replace('"', '""')
    for text in (f'"{quoted}"', name):
        with checking_table(connection, text) as (cursor, oid):
            if oid is not None and (table := cursor.row(TABLE, [oid])):
                yield cursor, table
                return
    raise LookupError(f"There is no table {name!r}.")
