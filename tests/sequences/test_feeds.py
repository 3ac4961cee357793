"""What feeds a key, and what is a key at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connection

from safemigrate.sequences.sweep import sweep
from tests.support.databases import execute, next_value, value

if TYPE_CHECKING:
    from safemigrate.sequences.finding import Finding


def swept(*, move: bool = True) -> dict[str, Finding]:
    return {str(found.sequence): found for found in sweep(connection, move=move)}


def statuses() -> dict[str, str]:
    return {name: finding.status for name, finding in swept().items()}


DOMAIN = "CREATE DOMAIN d AS integer DEFAULT nextval('s'); CREATE TABLE t (id d PRIMARY KEY);"
EXCLUSION = "CREATE TABLE t (id int DEFAULT nextval('s'), EXCLUDE USING btree (id WITH =));"
EXPRESSION = (
    "CREATE TABLE t (id int DEFAULT nextval('s')); CREATE UNIQUE INDEX ON t ((id + 0));"
    "CREATE INDEX ON t (id);"
)


@pytest.mark.parametrize(
    "sql",
    [
        DOMAIN,
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval(('s'::text)::regclass));",
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('s'::text));",
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('public.s'::text));",
        EXCLUSION,
        EXPRESSION,
        "CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval('s')::bigint::int);",
        "CREATE DOMAIN e AS bigint; CREATE TABLE t (id e PRIMARY KEY DEFAULT nextval('s')::e);",
        "CREATE TABLE t (id oid PRIMARY KEY DEFAULT nextval('s')::oid);",
    ],
    ids="domain late text late_qualified exclusion expression casts to_domain oid".split(),
)
def test_recognised(database: str, sql: str) -> None:
    execute(f"CREATE SEQUENCE s; {sql} INSERT INTO t VALUES (1), (7)")
    assert statuses() == {"public.s": "resynced"}
    assert next_value("s") == 8
    assert statuses() == {}


def test_a_late_bound_name_is_looked_up_as_the_session_does(database: str) -> None:
    execute(
        "CREATE SCHEMA a; CREATE SEQUENCE s;"
        "CREATE TABLE a.t (id bigint PRIMARY KEY DEFAULT nextval(('s'::text)::regclass));"
        "INSERT INTO a.t VALUES (7)"
    )
    assert statuses() == {"public.s": "resynced"}


def test_a_late_bound_name_is_not_taken_from_a_schema_that_is_not_current(database: str) -> None:
    execute(
        "CREATE SCHEMA a; CREATE SEQUENCE s; CREATE SEQUENCE a.s;"
        "CREATE TABLE a.t (id bigint PRIMARY KEY DEFAULT nextval(('s'::text)::regclass));"
        "INSERT INTO a.t VALUES (7)"
    )
    assert statuses() == {"public.s": "resynced"}
    assert value("INSERT INTO a.t DEFAULT VALUES RETURNING id") == 8


# What must not be resynced.


def test_a_number_that_restarts_is_not_judged(database: str) -> None:
    execute(
        "CREATE TABLE t (year int, number serial, PRIMARY KEY (year, number));"
        "INSERT INTO t (year, number) SELECT 2024 + n / 1000, 1 + n % 1000"
        " FROM generate_series(0, 1999) AS n"
    )
    assert statuses() == {"public.t_number_seq": "not judged"}
    assert next_value("t_number_seq") == 1


def test_a_number_that_restarts_in_a_large_table_is_not_judged(database: str) -> None:
    """Its repeats are far apart: in a sample of pages few of them meet."""
    execute(
        "CREATE TABLE t (year int, number serial, note text, PRIMARY KEY (number, year));"
        "INSERT INTO t (year, number, note) SELECT 2024 + n / 20000, 1 + n % 20000,"
        " repeat('x', 200) FROM generate_series(0, 39999) AS n"
    )
    assert statuses() == {"public.t_number_seq": "not judged"}


@pytest.mark.parametrize("years", [1, 2], ids=["one-year", "two-years"])
def test_a_number_that_no_primary_key_holds_is_not_judged(database: str, years: int) -> None:
    """Its numbers don't repeat yet: whether they are to restart can't be told."""
    execute(
        "CREATE TABLE t (year int, number serial, UNIQUE (year, number));"
        f"INSERT INTO t (year, number) SELECT 2024 + n % {years}, n FROM generate_series(1, 40) n"
    )
    assert statuses() == {"public.t_number_seq": "not judged"}
    assert next_value("t_number_seq") == 1


def test_a_tenant_s_key_is_healed(database: str) -> None:
    execute(
        "CREATE TABLE t (tenant int, id serial, PRIMARY KEY (tenant, id));"
        "INSERT INTO t SELECT n % 5, n FROM generate_series(1, 500) AS n"
    )
    assert statuses() == {"public.t_id_seq": "resynced"}
    assert next_value("t_id_seq") == 501


def test_what_is_unique_among_some_rows_is_not_judged(database: str) -> None:
    execute(
        "CREATE TABLE t (id serial, is_gone bool DEFAULT false);"
        "CREATE UNIQUE INDEX ON t (id) WHERE NOT is_gone; INSERT INTO t (id) VALUES (7)"
    )
    assert statuses() == {"public.t_id_seq": "not judged"}
