"""Look at the sequences of a whole database, and set right those that are behind."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from django.apps import apps
from django.db import Error

from .catalogue import Hinders, Sequence, sequences_feeding, sequences_of
from .state import USUAL, Finding, Terms, look, looking, obstacle_of, resync, settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

# So many looks share a transaction: more would spare few round trips and take more of the server's
# shared lock table, whose default size is 6,400.
CHUNK = 500

CURRENT_SCHEMAS = """
    SELECT n::pg_catalog.text
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS n
"""
SCHEMAS = """
    SELECT n.nspname::pg_catalog.text
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname <> 'information_schema'
      AND (n.nspname !~ '^pg_' OR n.oid = pg_catalog.pg_my_temp_schema())
    ORDER BY n.nspname
"""
TABLES = """
    SELECT DISTINCT pg_catalog.to_regclass(t)::pg_catalog.oid
    FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS t
    WHERE pg_catalog.to_regclass(t) IS NOT NULL
"""


@contextmanager
def room(connection: BaseDatabaseWrapper) -> Iterator[CursorWrapper]:
    """Give a cursor with the settings of a look, in a transaction of its own."""
    connection.ensure_connection()
    with looking(connection) as cursor:
        settle(cursor)
        yield cursor


def current_schemas(connection: BaseDatabaseWrapper) -> list[str]:
    """List the schemas in which names are looked up now, without the system's."""
    with connection.cursor() as cursor:
        cursor.execute(CURRENT_SCHEMAS)
        return [name for (name,) in cursor.fetchall()]


def all_schemas(connection: BaseDatabaseWrapper) -> list[str]:
    """List every schema but the system's and other sessions' temporary ones."""
    with room(connection) as cursor:
        cursor.execute(SCHEMAS)
        return [name for (name,) in cursor.fetchall()]


def sequences_in(connection: BaseDatabaseWrapper, schemas: Iterable[str]) -> list[int]:
    """List the oids of the sequences in the defaults of the tables of ``schemas``."""
    with room(connection) as cursor:
        return sequences_feeding(cursor, schemas=schemas)


def sequences_of_apps(connection: BaseDatabaseWrapper, labels: Iterable[str]) -> list[int]:
    """List the oids of the sequences in the defaults of the tables of apps.

    Raises LookupError for a label that no installed app has.
    """
    models = [
        model
        for label in labels
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
    ]
    names = [connection.ops.quote_name(model._meta.db_table) for model in models]
    with connection.cursor() as cursor:
        cursor.execute(TABLES, [names])
        tables = [oid for (oid,) in cursor.fetchall()]
    with room(connection) as cursor:
        return sequences_feeding(cursor, tables=tables)


def survey(
    connection: BaseDatabaseWrapper, oids: Rows[int], terms: Terms = USUAL, *, move: bool = False
) -> Iterator[list[Finding]]:
    """Look at sequences, a chunk at a time; with ``move`` set right those that are behind.

    What can't be looked at does not stop the rest: it is a finding with an obstacle. Raises only
    what the connection itself dies of.
    """
    for start in range(0, len(oids), CHUNK):
        findings = _looked_at(connection, oids[start : start + CHUNK], terms)
        if move:
            findings = [
                _moved(connection, each, terms) if each.is_behind and not each.obstacle else each
                for each in findings
            ]
        yield findings


def _looked_at(connection: BaseDatabaseWrapper, oids: Rows[int], terms: Terms) -> list[Finding]:
    sequences: list[Sequence] = []
    try:
        with room(connection) as cursor:
            sequences = sequences_of(cursor, oids)
            return look(cursor, sequences, terms)
    except Error as error:
        if _is_lost(connection):
            raise
        if len(sequences) == 1:
            return [Finding(sequences[0], obstacle=obstacle_of(error))]
        if len(oids) == 1:
            raise
    return [finding for oid in oids for finding in _looked_at(connection, [oid], terms)]


def _moved(connection: BaseDatabaseWrapper, finding: Finding, terms: Terms) -> Finding:
    try:
        with room(connection) as cursor:
            return resync(cursor, finding.sequence, terms)
    except Error as error:
        if _is_lost(connection):
            raise
        return replace(finding, obstacle=replace(obstacle_of(error), hinders=Hinders.MOVING))


def _is_lost(connection: BaseDatabaseWrapper) -> bool:
    return connection.connection is None or bool(connection.connection.closed)


def sweep(
    connection: BaseDatabaseWrapper,
    *,
    schemas: Iterable[str] | None = None,
    terms: Terms = USUAL,
    move: bool = True,
) -> Iterator[list[Finding]]:
    oids = sequences_in(connection, all_schemas(connection) if schemas is None else schemas)
    for chunk in survey(connection, oids, terms, move=move):
        if found := [each for each in chunk if each.status != "right"]:
            yield found
