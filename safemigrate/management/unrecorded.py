"""Recognise a migration that an earlier run committed and then failed to record.

With deferred SQL (a foreign key, an index) Django commits a migration's tables first and inserts
its row into ``django_migrations`` afterwards. If that INSERT fails, the next run meets its own
tables: ``relation "…" already exists``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, ProgrammingError
from django.db.migrations import AddField, CreateModel
from django.db.migrations.loader import MigrationLoader

from safemigrate import driver
from safemigrate.plans import receiving_plans
from safemigrate.printing import option, printable
from safemigrate.report import attach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.migrations import Migration
    from django.db.migrations.state import StateApps

ALREADY_THERE = {"42P07", "42701"}  # duplicate_table (or index), duplicate_column
NOTE = (
    "The database has every table and column that {migration} adds, but django_migrations has no "
    "row for it, as when an earlier run has committed the migration and failed to record it. If "
    "its other operations are done too, type: python manage.py safemigrate {words}"
)

Plan = Iterable[tuple["Migration", bool]]


@contextmanager
def explaining_unrecorded(
    connection: BaseDatabaseWrapper, tell: Callable[[str], None]
) -> Iterator[None]:
    """Call ``tell`` with what to type if the block fails on such a migration."""
    plans: list[Plan] = []

    def remember(using: str, plan: Plan) -> None:
        if using == connection.alias:
            plans.append(plan)

    try:
        with receiving_plans(remember):
            yield
    except ProgrammingError as error:
        if driver.sqlstate(error) in ALREADY_THERE:
            # What cannot be told (a model that the migration itself renames again) gets no note.
            with suppress(Exception):
                if migration := _unrecorded(connection, chain(*plans)):
                    note = printable(_note(migration, connection))
                    attach(error, note)
                    tell(note)
        raise


def _note(migration: Migration, connection: BaseDatabaseWrapper) -> str:
    alias, tenant = connection.alias, getattr(connection, "schema_name", None)
    words = [migration.app_label, migration.name, "--fake"]
    words += option("--database", alias) if alias != DEFAULT_DB_ALIAS else []
    words += option("--schema", tenant) if tenant else []  # the others may not have it
    return NOTE.format(migration=migration, words=shlex.join(words))


def _unrecorded(connection: BaseDatabaseWrapper, plan: Plan) -> Migration | None:
    """Return the first unapplied migration of the plans, if everything that it adds is there."""
    loader = MigrationLoader(connection)
    for migration, is_backwards in plan:
        if is_backwards or (migration.app_label, migration.name) in loader.applied_migrations:
            continue
        apps = loader.project_state((migration.app_label, migration.name)).apps
        added = list(_added(migration, apps))
        return migration if added and _is_there(connection, added) else None
    return None


def _added(migration: Migration, apps: StateApps) -> Iterator[tuple[str, set[str]]]:
    """Yield the tables of a migration's models, with the columns that it adds to them."""
    for operation in migration.operations:
        if isinstance(operation, CreateModel):
            options = apps.get_model(migration.app_label, operation.name)._meta
            if options.managed and not options.proxy:
                yield options.db_table, {field.column for field in options.local_concrete_fields}
                yield from _between(options.local_many_to_many)
        elif isinstance(operation, AddField):
            options = apps.get_model(migration.app_label, operation.model_name)._meta
            field: Any = options.get_field(operation.name)
            if field.many_to_many:
                yield from _between([field])
            elif field.column:
                yield options.db_table, {field.column}


def _between(fields: Iterable[Any]) -> Iterator[tuple[str, set[str]]]:
    """Yield the tables that many-to-many fields bring along."""
    for field in fields:
        if field.remote_field.through._meta.auto_created:
            yield field.remote_field.through._meta.db_table, set()


def _is_there(connection: BaseDatabaseWrapper, added: list[tuple[str, set[str]]]) -> bool:
    introspection = connection.introspection
    with connection.cursor() as cursor:
        tables = introspection.table_names(cursor)
        return all(
            table in tables
            and columns
            <= {each.name for each in introspection.get_table_description(cursor, table)}
            for table, columns in added
        )
