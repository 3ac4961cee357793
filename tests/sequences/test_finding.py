"""What a finding says of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connection

import safemigrate
from safemigrate.sequences.scope import feeds_in
from safemigrate.sequences.sweep import survey
from tests.support.databases import execute

if TYPE_CHECKING:
    from safemigrate.sequences.finding import Finding


def first_finding() -> Finding:
    (finding,) = survey(connection, feeds_in(connection, ["public"]))
    return finding


@pytest.mark.parametrize(
    ("column", "sequence", "last", "percent"),
    [
        ("serial", "", 1, 0),
        ("smallserial", "", 26214, 80),
        ("smallserial", "", 32767, 100),
        ("bigserial", "", 2**31, 0),
        ("serial", "AS bigint", 2**31 - 1, 100),
        ("serial", "INCREMENT -1 MINVALUE -100 MAXVALUE -1 START -1 RESTART", -90, 90),
    ],
)
def test_percent_used(database: str, column: str, sequence: str, last: int, percent: int) -> None:
    execute(f"CREATE TABLE t (id {column} PRIMARY KEY)")
    if sequence:
        execute(f"ALTER SEQUENCE t_id_seq {sequence}")
    assert first_finding().percent_used == 0
    execute(f"SELECT setval('t_id_seq', {last})")
    assert first_finding().percent_used == percent
    execute("ALTER SEQUENCE t_id_seq RESTART")
    execute(f"INSERT INTO t VALUES ({last})")
    assert first_finding().percent_used == percent


def test_percent_used_of_what_could_not_be_read(database: str) -> None:
    execute("CREATE SEQUENCE s; CREATE TABLE t (id text DEFAULT nextval('s') PRIMARY KEY)")
    assert first_finding().percent_used is None


def test_a_finding_says_what_it_found(ill: None) -> None:
    where = "public.t.id (next value 1, largest key 7)"
    assert str(*safemigrate.resync()) == f"Sequence public.t_id_seq was behind {where}"
    assert str(*safemigrate.resync()) == (
        "Sequence public.t_id_seq is in sync with public.t.id (next value 8, largest key 7)"
    )
    execute("ALTER SEQUENCE t_id_seq CYCLE")
    assert str(*safemigrate.resync()) == "Sequence public.t_id_seq is not judged"
