"""Check the sequences of a whole database, and resync those that are behind."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from django.apps import apps
from django.db import DataError, Error

from safemigrate import driver

from .catalogue import (
    CODE_OF_OTHERS,
    LISTING,
    Feed,
    Hinders,
    Sequence,
    feeds_of_table,
    list_feeds,
    nameless,
    sequences_of,
)
from .resync import checking_table, move_past
from .state import LOCK_NOT_AVAILABLE, USUAL, Finding, Terms, check, checking, obstacle_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models import Model

    from safemigrate.driver import Cursor

# This many checks share a transaction: more would save few round trips, and take more of the
# server's shared lock table, whose default size is 6,400.
CHUNK = 500
# A second is waited only once, not for each of many locked tables.
SHORT_WAIT = "50ms"

CURRENT_SCHEMAS = """
    SELECT n::pg_catalog.text AS name
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS n
"""
SCHEMAS = """
    SELECT {what}
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname <> 'information_schema'
      AND (n.nspname !~ '^pg_' OR n.oid = pg_catalog.pg_my_temp_schema())
    ORDER BY n.nspname
"""
NAME_OF_SCHEMA = "n.nspname::pg_catalog.text AS name"
ONE_SCHEMA = f"SELECT {NAME_OF_SCHEMA} FROM pg_catalog.pg_namespace AS n WHERE n.oid = %s"
PLACE = """
    SELECT n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = %s
"""
TABLES = """
    SELECT DISTINCT pg_catalog.to_regclass(t)::pg_catalog.oid AS oid
    FROM pg_catalog.unnest(%s::pg_catalog.text[]) AS t
    WHERE pg_catalog.to_regclass(t) IS NOT NULL
"""

# One statement finds everything that is clearly in sync, at the cost of a max() by index for each.
# Whatever cannot be read like that, or is not in sync, is left to the exact check: those sequences'
# oids go into a setting that ends with the transaction. An exception raised on purpose releases a
# table's locks at once, so that no number of tables can fill the server's lock table.
SWEEP = """
DO $sweep$
DECLARE
    feed pg_catalog.record;
    largest pg_catalog.numeric;
    is_in_sync pg_catalog.bool;
    suspects pg_catalog.oid[] := '{}';
BEGIN
    FOR feed IN
        WITH RECURSIVE feed AS MATERIALIZED (LISTING),
        leaf (sequence, relation, attribute, name) AS (
            SELECT f.sequence, f.relation, f.attribute, a.attname
            FROM feed AS f
            JOIN pg_catalog.pg_attribute AS a
              ON a.attrelid = f.relation AND a.attnum = f.attribute
            UNION
            SELECT l.sequence, a.attrelid, a.attnum::pg_catalog.int4, a.attname
            FROM leaf AS l
            JOIN pg_catalog.pg_class AS c ON c.oid = l.relation AND c.relkind = 'p'
            JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.inhrelid AND a.attname = l.name
        )
        SELECT l.sequence, pg_catalog.quote_ident(l.name) AS column_name,
               pg_catalog.format('%I.%I', n.nspname, c.relname) AS table_name,
               q.seqincrement AS increment,
               CASE WHEN q.seqincrement > 0 THEN 'max' ELSE 'min' END AS farthest,
               pg_catalog.sign(q.seqincrement::pg_catalog.numeric) AS sign,
               c.relkind = 'r' AND x.is_indexed
               AND (NOT x.has_code OR CODE_OF_OTHERS IS NULL)
               AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               AND pg_catalog.has_schema_privilege(sn.oid, 'USAGE')
               AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT')
               AND pg_catalog.has_column_privilege(c.oid, l.attribute::pg_catalog.int2, 'SELECT')
                   AS is_plain
        FROM leaf AS l
        JOIN pg_catalog.pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'f')
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_class AS s ON s.oid = l.sequence
        JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
        JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = s.oid
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or(
                       i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = l.attribute
                       AND am.amname = 'btree'), false) AS is_indexed,
                   COALESCE(pg_catalog.bool_or(
                       i.indexprs IS NOT NULL OR i.indpred IS NOT NULL), false)
                   OR c.relispartition
                   OR EXISTS (
                       SELECT FROM pg_catalog.pg_statistic_ext AS e
                       WHERE e.stxrelid = c.oid) AS has_code
            FROM pg_catalog.pg_index AS i
            JOIN pg_catalog.pg_class AS ic ON ic.oid = i.indexrelid
            JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
            WHERE i.indrelid = c.oid
        ) AS x
    LOOP
        is_in_sync := false;
        IF feed.is_plain THEN
            BEGIN
                EXECUTE pg_catalog.format(
                    'SELECT pg_catalog.%s(%s)::pg_catalog.numeric FROM ONLY %s',
                    feed.farthest, feed.column_name, feed.table_name
                ) INTO largest;
                -- The last value is null where the sequence was never drawn from.
                is_in_sync := COALESCE(
                    feed.sign * (largest - feed.increment
                                 - pg_catalog.pg_sequence_last_value(feed.sequence)) < 0,
                    largest IS NULL);
                RAISE EXCEPTION USING ERRCODE = 'SM000';
            EXCEPTION
                WHEN SQLSTATE 'SM000' THEN NULL;
                WHEN lock_not_available THEN
                    PERFORM pg_catalog.set_config('lock_timeout', 'SHORT_WAIT', true);
                    is_in_sync := false;
                WHEN OTHERS THEN
                    is_in_sync := false;
            END;
        END IF;
        IF NOT is_in_sync AND feed.sequence <> ALL (suspects) THEN
            suspects := suspects || feed.sequence;
        END IF;
    END LOOP;
    PERFORM pg_catalog.set_config('safemigrate.suspects', suspects::pg_catalog.text, true);
END $sweep$
"""
for _part, _text in {
    "SHORT_WAIT": SHORT_WAIT,
    "CODE_OF_OTHERS": CODE_OF_OTHERS.replace("l.members", "ARRAY[c.oid]"),
    "LISTING": LISTING.replace("%(tables)s", "'{}'").replace(
        "%(schemas)s", "pg_catalog.current_setting('safemigrate.schemas')"
    ),
}.items():
    SWEEP = SWEEP.replace(_part, _text)
# Names are never put into the block's text, which they might end.
SCHEMAS_TO_SWEEP = """
    SELECT pg_catalog.set_config(
               'safemigrate.schemas', %s::pg_catalog.text[]::pg_catalog.text, true),
           EXISTS (SELECT FROM pg_catalog.pg_sequence) AS has_sequences
"""
SUSPECTS = """
    SELECT pg_catalog.current_setting('safemigrate.suspects')::pg_catalog.oid[] AS suspects
"""


def current_schemas(connection: BaseDatabaseWrapper) -> list[str]:
    """List the schemas in which names are looked up now, without the system's."""
    connection.ensure_connection()
    with driver.cursor(connection) as cursor:
        return [row.name for row in cursor.rows(CURRENT_SCHEMAS)]


def all_schemas(connection: BaseDatabaseWrapper) -> list[str]:
    """List every schema but the system's and other sessions' temporary ones.

    One whose name the session's encoding cannot express is left out.
    """
    return [name for name in schemas_with_names(connection) if name is not None]


def schemas_with_names(connection: BaseDatabaseWrapper) -> list[str | None]:
    """List the schemas of :func:`all_schemas`; None stands for one that is left out there."""
    with suppress(DataError, UnicodeDecodeError), checking(connection) as cursor:
        return [row.name for row in cursor.rows(SCHEMAS.format(what=NAME_OF_SCHEMA))]
    with checking(connection) as cursor:
        oids = [row.oid for row in cursor.rows(SCHEMAS.format(what="n.oid"))]
    return [_name_of_schema(connection, oid) for oid in oids]


def _name_of_schema(connection: BaseDatabaseWrapper, oid: int) -> str | None:
    with suppress(DataError, UnicodeDecodeError), checking(connection) as cursor:
        row = cursor.row(ONE_SCHEMA, [oid])
        return str(row.name) if row else None
    return None


def feeds_in(connection: BaseDatabaseWrapper, schemas: Iterable[str]) -> list[list[Feed]]:
    """List what the sequences feed that feed a table of ``schemas``, sequence by sequence."""
    with checking(connection) as cursor:
        return list_feeds(cursor, schemas=schemas)


def tables_of_app(connection: BaseDatabaseWrapper, label: str) -> list[int]:
    """List the oids of those tables of an app's models that are there.

    Raises LookupError for a label that no installed app has.
    """
    models = apps.get_app_config(label).get_models(include_auto_created=True)
    names = [connection.ops.quote_name(model._meta.db_table) for model in models]
    connection.ensure_connection()
    with driver.cursor(connection) as cursor:
        return [row.oid for row in cursor.rows(TABLES, [names])]


def feeds_of_tables(connection: BaseDatabaseWrapper, tables: Iterable[int]) -> list[list[Feed]]:
    """List what the sequences feed that feed one of ``tables``, which are oids."""
    with checking(connection) as cursor:
        return list_feeds(cursor, tables=tables)


def feeds_of(connection: BaseDatabaseWrapper, what: Rows[type[Model] | str]) -> list[list[Feed]]:
    """List what the sequences feed that an INSERT into models or tables draws from.

    A table is named exactly as it is called, or as a statement would write it. Nothing means every
    table of the current schemas. Raises LookupError for a table that is not there.
    """
    connection.ensure_connection()
    if not what:
        return feeds_in(connection, current_schemas(connection))
    found: dict[int, set[Feed]] = {}
    for name in dict.fromkeys(_names_of(connection, what)):
        with _table(connection, name) as (cursor, oid):
            for group in feeds_of_table(cursor, oid)[0]:
                found.setdefault(group[0].sequence, set()).update(group)
    return [sorted(group) for group in found.values()]


def place_of(connection: BaseDatabaseWrapper, name: str) -> tuple[str, str]:
    """Return the schema and the name of a table that is named as :func:`feeds_of` takes it."""
    connection.ensure_connection()
    with _table(connection, name) as (cursor, oid):
        row = cursor.row(PLACE, [oid])
        return row.schema, row.name


def _names_of(connection: BaseDatabaseWrapper, what: Iterable[type[Model] | str]) -> Iterator[str]:
    for each in what:
        if isinstance(each, str):
            yield each
            continue
        throughs = (field.remote_field.through for field in each._meta.many_to_many)
        made = (through for through in throughs if through and through._meta.auto_created)
        for model in (each, *each._meta.get_parent_list(), *made):
            table = model._meta.db_table
            # It may hold a schema and quotes of its own: 'shop"."order'.
            yield connection.ops.quote_name(table) if '"' in table else table


@contextmanager
def _table(connection: BaseDatabaseWrapper, name: str) -> Iterator[tuple[Cursor, int]]:
    quoted = name.replace('"', '""')
    for text in (f'"{quoted}"', name):
        with checking_table(connection, text) as (cursor, oid):
            if oid is not None:
                yield cursor, oid
                return
    raise LookupError(f"There is no table {name!r}.")


def sweep(
    connection: BaseDatabaseWrapper,
    *,
    schemas: Iterable[str] | None = None,
    terms: Terms = USUAL,
    move: bool = True,
) -> Iterator[list[Finding]]:
    """Check every sequence of ``schemas`` (None: of all) once; yield what is not in sync.

    With ``move`` those that are behind are resynced. Raises only what the connection itself dies
    of.
    """
    suspects = _suspects(connection, schemas)
    for chunk in survey(connection, suspects, terms, move=move) if suspects else ():
        if found := [each for each in chunk if each.status != "in sync"]:
            yield found


def _suspects(connection: BaseDatabaseWrapper, schemas: Iterable[str] | None) -> list[list[Feed]]:
    names = list(all_schemas(connection) if schemas is None else schemas)
    try:
        with checking(connection) as cursor:
            if not cursor.row(SCHEMAS_TO_SWEEP, [names]).has_sequences:
                return []  # a new database: to plan the block takes longer than to run it
            cursor.execute(SWEEP)
            suspects = set(cursor.row(SUSPECTS).suspects)
            if not suspects:
                return []
            feeds = list_feeds(cursor, schemas=names)
    except Error:
        if driver.is_closed(connection):
            raise
        return feeds_in(connection, names)  # no PL/pgSQL, or too little time for all at once
    return [each for each in feeds if each[0].sequence in suspects]


def survey(
    connection: BaseDatabaseWrapper,
    feeds: Rows[list[Feed]],
    terms: Terms = USUAL,
    *,
    move: bool = False,
) -> Iterator[list[Finding]]:
    """Check sequences, a chunk at a time; with ``move`` resync those that are behind, one by one.

    What can't be checked does not stop the rest: it is a finding with an obstacle. Raises only
    what the connection itself dies of.
    """
    of_sequence = {group[0].sequence: group for group in feeds}
    for start in range(0, len(feeds), CHUNK):
        findings = _checked(connection, feeds[start : start + CHUNK], terms)
        if not move:
            yield findings
            continue
        for each in findings:  # one by one, so that each can be told before the next is moved
            is_movable = each.is_behind and not each.obstacle
            group = of_sequence[each.sequence.oid]
            yield _moved(connection, each, group, terms) if is_movable else [each]


def _checked(
    connection: BaseDatabaseWrapper,
    feeds: Rows[list[Feed]],
    terms: Terms,
    lock_timeout: str = "1s",
) -> list[Finding]:
    """Check sequences together, or by halves if that fails."""
    sequences: list[Sequence] = []
    try:
        with checking(connection, lock_timeout=lock_timeout) as cursor:
            sequences = sequences_of(cursor, feeds)
            return check(cursor, sequences, terms)
    except (Error, UnicodeDecodeError) as error:
        if driver.is_closed(connection):
            raise
        if len(feeds) == 1:
            sequence = sequences[0] if sequences else nameless(feeds[0][0].sequence)
            return [Finding(sequence, obstacle=obstacle_of(error))]
        if driver.sqlstate(error) == LOCK_NOT_AVAILABLE:
            lock_timeout = SHORT_WAIT
    half = len(feeds) // 2
    return [
        *_checked(connection, feeds[:half], terms, lock_timeout),
        *_checked(connection, feeds[half:], terms, lock_timeout),
    ]


def _moved(
    connection: BaseDatabaseWrapper, finding: Finding, feeds: list[Feed], terms: Terms
) -> list[Finding]:
    """Move one sequence; nothing is found where it or its table has been dropped meanwhile."""
    try:
        with checking(connection) as cursor:
            return [move_past(cursor, finding.sequence, terms)]
    except Error as error:
        if driver.is_closed(connection):
            raise
        if not _checked(connection, [feeds], terms, SHORT_WAIT):
            return []
        obstacle = replace(obstacle_of(error), hinders=Hinders.MOVING)
        return [replace(finding, obstacle=obstacle)]
