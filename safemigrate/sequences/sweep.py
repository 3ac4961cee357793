"""Check the sequences of a whole database, and resync those that are behind."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from django.db import Error

from safemigrate import driver

from .catalogue import LEADS, code_of_others, nameless, sequences_of
from .checking import LONG_WAIT, SHORT_WAIT, checking, obstacle_of
from .feeds import LISTING, Feed, list_feeds
from .finding import Finding
from .resync import move_past
from .scope import feeds_in
from .sequence import Hinders, Sequence
from .state import USUAL, Terms, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Sequence as Rows

    from django.db.backends.base.base import BaseDatabaseWrapper

# This many checks share a transaction: more would save few round trips, and take more of the
# server's shared lock table, whose default size is 6,400.
CHUNK = 500

LISTING_OF_SETTING = LISTING % {
    "tables": "'{}'",
    "schemas": "NULLIF(pg_catalog.current_setting('safemigrate.schemas'), '')",
}
# One statement finds everything that is clearly in sync, at the cost of a max() by index for each.
# Whatever cannot be read like that, or is not in sync, is left to the exact check: those sequences'
# oids go into a setting that ends with the transaction. An exception raised on purpose releases a
# table's locks at once, so that no number of tables can fill the server's lock table.
SWEEP = f"""
DO $sweep$
DECLARE
    feed pg_catalog.record;
    largest pg_catalog.numeric;
    last_value pg_catalog.int8;
    is_in_sync pg_catalog.bool;
    suspects pg_catalog.oid[] := '{{}}';
BEGIN
    FOR feed IN
        WITH RECURSIVE feed AS MATERIALIZED ({LISTING_OF_SETTING}),
        leaf (sequence, relation, attribute, name, type) AS (
            SELECT f.sequence, f.relation, f.attribute, a.attname, a.atttypid
            FROM feed AS f
            JOIN pg_catalog.pg_attribute AS a
              ON a.attrelid = f.relation AND a.attnum = f.attribute
            UNION
            SELECT l.sequence, a.attrelid, a.attnum::pg_catalog.int4, a.attname, a.atttypid
            FROM leaf AS l
            JOIN pg_catalog.pg_class AS c ON c.oid = l.relation AND c.relkind = 'p'
            JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.inhrelid AND a.attname = l.name
        )
        SELECT l.sequence, pg_catalog.quote_ident(l.name) AS column_name,
               pg_catalog.format('%I.%I', n.nspname, c.relname) AS table_name,
               pg_catalog.format('%I.%I', sn.nspname, s.relname) AS sequence_name,
               q.seqincrement AS increment,
               CASE WHEN q.seqincrement > 0 THEN 'max' ELSE 'min' END AS farthest,
               pg_catalog.sign(q.seqincrement::pg_catalog.numeric) AS sign,
               c.relkind = 'r' AND x.is_indexed
               -- A number of the server's own: a cast from another type may be anybody's function.
               AND t.typoutput = ANY ('{{int2out,int4out,int8out,numeric_out}}'
                                      ::pg_catalog.regproc[])
               AND (NOT x.has_code OR {code_of_others("ARRAY[c.oid]")} IS NULL)
               AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               AND pg_catalog.has_schema_privilege(sn.oid, 'USAGE')
               AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT')
               AND pg_catalog.has_column_privilege(c.oid, l.attribute::pg_catalog.int2, 'SELECT')
                   AS is_plain
        FROM leaf AS l
        JOIN pg_catalog.pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'f')
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_type AS t ON t.oid = l.type
        JOIN pg_catalog.pg_class AS s ON s.oid = l.sequence
        JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
        JOIN pg_catalog.pg_sequence AS q ON q.seqrelid = s.oid
        CROSS JOIN LATERAL (
            SELECT COALESCE(pg_catalog.bool_or({LEADS.format(attribute="l.attribute")}), false)
                       AS is_indexed,
                   COALESCE(pg_catalog.bool_or(
                       i.indexprs IS NOT NULL OR i.indpred IS NOT NULL), false)
                   OR EXISTS (
                       SELECT FROM pg_catalog.pg_statistic_ext AS e
                       WHERE e.stxrelid = c.oid) AS has_code
            FROM pg_catalog.pg_index AS i
            WHERE i.indrelid = c.oid
        ) AS x
    LOOP
        is_in_sync := false;
        IF feed.is_plain THEN
            BEGIN
                EXECUTE pg_catalog.format(
                    'SELECT (SELECT pg_catalog.%s(%s) FROM ONLY %s)::pg_catalog.numeric,
                            CASE WHEN v.is_called THEN v.last_value END
                     FROM %s AS v',
                    feed.farthest, feed.column_name, feed.table_name, feed.sequence_name
                ) INTO largest, last_value;
                -- The last value is null where the sequence was never drawn from.
                is_in_sync := COALESCE(
                    feed.sign * (largest - feed.increment - last_value) < 0, largest IS NULL);
                RAISE EXCEPTION USING ERRCODE = 'SM000';
            EXCEPTION
                WHEN SQLSTATE 'SM000' THEN NULL;
                WHEN lock_not_available THEN
                    PERFORM pg_catalog.set_config('lock_timeout', '{SHORT_WAIT}', true);
                    is_in_sync := false;
                WHEN OTHERS THEN
                    is_in_sync := false;
            END;
        END IF;
        IF NOT is_in_sync THEN
            suspects := suspects || feed.sequence;
        END IF;
    END LOOP;
    PERFORM pg_catalog.set_config('safemigrate.suspects', suspects::pg_catalog.text, true);
END $sweep$
"""
# Names are never put into the block's text, which they might end.
SCHEMAS_TO_SWEEP = """
    SELECT pg_catalog.set_config(
               'safemigrate.schemas', %s::pg_catalog.text[]::pg_catalog.text, true),
           EXISTS (SELECT FROM pg_catalog.pg_sequence) AS has_sequences
"""
SUSPECTS = """
    SELECT pg_catalog.current_setting('safemigrate.suspects')::pg_catalog.oid[] AS suspects
"""


def sweep(
    connection: BaseDatabaseWrapper,
    *,
    schemas: Iterable[str] | None = None,
    move: bool = True,
    leaves_alone: Callable[[Finding], bool] | None = None,
) -> Iterator[Finding]:
    """Check every sequence of ``schemas`` (None: of all) once; yield what is not in sync.

    With ``move`` those that are behind are resynced, but for what it ``leaves_alone``. Raises only
    what the connection itself dies of.
    """
    suspects = _suspects(connection, schemas)
    for finding in survey(connection, suspects, move=move, leaves_alone=leaves_alone):
        if finding.status != "in sync":
            yield finding


def _suspects(connection: BaseDatabaseWrapper, schemas: Iterable[str] | None) -> list[list[Feed]]:
    names = None if schemas is None else list(schemas)
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
    leaves_alone: Callable[[Finding], bool] | None = None,
) -> Iterator[Finding]:
    """Check sequences, a chunk at a time; with ``move`` resync those that are behind, one by one.

    What it ``leaves_alone`` is not moved. What can't be checked does not stop the rest: it is a
    finding with an obstacle. Raises only what the connection itself dies of.
    """
    of_sequence = {group[0].sequence: group for group in feeds}
    for start in range(0, len(feeds), CHUNK):
        for each in _checked(connection, feeds[start : start + CHUNK], terms):
            is_left = leaves_alone is not None and leaves_alone(each)
            if move and each.is_behind and not (each.obstacle or is_left):
                group = of_sequence[each.sequence.oid]
                yield from _moved(connection, each, group, terms)
            else:
                yield each


def _checked(
    connection: BaseDatabaseWrapper,
    feeds: Rows[list[Feed]],
    terms: Terms,
    lock_timeout: str = LONG_WAIT,
) -> list[Finding]:
    """Check sequences together, or by halves if that fails."""
    sequences: list[Sequence] = []
    try:
        with checking(connection, lock_timeout=lock_timeout) as cursor:
            sequences = sequences_of(cursor, feeds)
            return check(cursor, sequences, terms)
    except Exception as error:  # what can't be checked does not stop the rest
        if driver.is_closed(connection):
            raise
        if len(feeds) == 1:
            sequence = sequences[0] if sequences else nameless(feeds[0][0].sequence)
            return [Finding(sequence, obstacle=obstacle_of(error))]
        if driver.sqlstate(error) == driver.LOCK_NOT_AVAILABLE:
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
        obstacle = obstacle_of(error)._replace(hinders=Hinders.MOVING)
        return [replace(finding, obstacle=obstacle)]
