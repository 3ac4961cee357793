"""Is a sequence behind, and what stands in the way of moving it?"""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from safemigrate import healing
from safemigrate.driver import Cursor
from safemigrate.sequences.catalogue import sequences_of
from safemigrate.sequences.checking import checking
from safemigrate.sequences.scope import feeds_in
from safemigrate.sequences.state import Terms, check
from tests.support.databases import execute, next_value, rows, value
from tests.support.findings import POOR, collide, found, role, typed


def test_what_is_in_sync_takes_one_statement(
    shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id serial PRIMARY KEY, number serial UNIQUE)")
    feeds = feeds_in(connection, ["public"])
    sent: list[str] = []
    rows_of = Cursor.rows

    def record(cursor: Cursor, sql: str, params: Any = None) -> list[Any]:
        sent.append(sql)
        return rows_of(cursor, sql, params)

    with checking(connection) as cursor:
        sequences = sequences_of(cursor, feeds)
        monkeypatch.setattr(Cursor, "rows", record)
        assert [each.status for each in check(cursor, sequences)] == ["in sync", "in sync"]
    assert len(sent) == 1


def test_a_partitioned_table_whose_numbers_may_repeat(ill: None) -> None:
    execute(
        """
        CREATE TABLE one (tenant int, id serial, made int, PRIMARY KEY (tenant, id, made))
            PARTITION BY RANGE (made);
        CREATE TABLE one_1 PARTITION OF one DEFAULT;
        INSERT INTO one VALUES (1, 7, 1), (1, 8, 1)
        """
    )
    assert {each.sequence.name: each.moved_to for each in found(move=True)} == {
        "one_id_seq": 8,
        "t_id_seq": 7,
    }


@pytest.mark.parametrize("rest", ["INCLUDE (id)", "WHERE id > 0"])
def test_what_an_index_on_an_expression_says_besides(ill: None, rest: str) -> None:
    """The column is no part of its key."""
    execute(f"ALTER TABLE t DROP CONSTRAINT t_pkey; CREATE UNIQUE INDEX ON t (lower(note)) {rest}")
    (finding,) = found(move=True)
    assert finding.moved_to == 7


def test_no_privilege_to_move(ill: None) -> None:
    with role("SELECT, INSERT ON t", "SELECT ON t_id_seq"):
        (finding,) = found()
        assert (finding.status, finding.next_value, finding.largest) == ("behind", 1, 7)
        assert finding.obstacle is not None
        assert f"role {POOR} may not move the sequence" in finding.obstacle.reason


def test_no_privilege_to_read_the_table(ill: None) -> None:
    with role("INSERT ON t", "ALL ON t_id_seq"):
        notes, _ = collide()
    assert f"role {POOR} may not read public.t.id" in notes[-1].text
    execute(f"CREATE ROLE {POOR}; GRANT INSERT ON t TO {POOR}; GRANT ALL ON t_id_seq TO {POOR}")
    try:
        execute(typed(notes[-1], "GRANT USAGE"))
        execute(typed(notes[-1], "GRANT SELECT"))
        execute(f"SET ROLE {POOR}")
        with healing():
            execute("INSERT INTO t (note) VALUES ('new')")
    finally:
        execute(f"RESET ROLE; DROP OWNED BY {POOR}; DROP ROLE {POOR}")
    assert value("SELECT max(id) FROM t") == 8


def test_no_privilege_at_all(ill: None) -> None:
    """As a role that may not even draw, the server's own error comes first."""
    with role("SELECT ON t"):
        (finding,) = found(move=True)
        assert finding.status == "unknown"
        assert finding.obstacle is not None
        assert finding.obstacle.advice == (
            f"GRANT SELECT, UPDATE ON SEQUENCE public.t_id_seq TO {POOR};"
        )


def test_row_level_security(ill: None) -> None:
    """Under a policy max() sees nothing and a broken table looks right."""
    execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    execute("CREATE POLICY p ON t FOR INSERT WITH CHECK (true)")
    with role("ALL ON t", "ALL ON t_id_seq"):
        assert rows("SELECT max(id) FROM t") == [(None,)]
        (finding,) = found(move=True)
        assert finding.status == "unknown"
        assert finding.obstacle is not None
        assert "row-level security" in finding.obstacle.reason
        assert finding.obstacle.advice == "run as a role that may, such as the table's owner"
        notes, _ = collide()
    assert f"could not be checked: {finding.obstacle}" in notes[-1].text


def test_cramped(ill: None) -> None:
    execute("INSERT INTO t VALUES (1950000000)")
    notes, _ = collide()
    assert "would use up 90 % of the sequence's range" in notes[-1].text
    assert notes[-1].text.count("setval(") == 1
    assert next_value("t_id_seq") == 2  # the failed draw's doing
    execute(typed(notes[-1], "SELECT pg_catalog.setval("))
    assert next_value("t_id_seq") == 1950000001


def test_a_jump_over_most_of_the_range(ill: None) -> None:
    """It leaves more than a tenth, but is as likely to be one stray key's doing."""
    execute("INSERT INTO t VALUES (1900000000)")
    (finding,) = found(move=True)
    assert finding.status == "behind"
    assert "would use up 88 % of the sequence's range, and there is no way back" in str(
        finding.obstacle
    )
    (finding,) = found(move=True, terms=Terms(force=True))
    assert finding.moved_to == 1900000000


def test_a_step_within_the_last_part_of_the_range(ill: None) -> None:
    execute("INSERT INTO t VALUES (1900000000); SELECT setval('t_id_seq', 1899000000)")
    assert [each.status for each in found(move=True)] == ["resynced"]


def test_exhausted(ill: None) -> None:
    execute("INSERT INTO t VALUES (2147483647)")
    notes, _ = collide()
    assert "the range ends at 2147483647" in notes[-1].text
    assert "setval" not in notes[-1].text
    assert next_value("t_id_seq") == 2


@pytest.mark.parametrize(
    ("kind", "increment", "last"),
    [
        ("smallint", 1, 2**15 - 1),
        ("integer", 1, 2**31 - 1),
        ("oid", 1, 2**32 - 1),
        ("bigint", 1, 2**63 - 1),
        ("smallint", -1, -(2**15)),
        ("integer", -1, -(2**31)),
        ("bigint", -1, -(2**63)),
    ],
)
def test_a_column_s_range_may_end_first(
    database: str, kind: str, increment: int, last: int
) -> None:
    execute(
        f"CREATE SEQUENCE s INCREMENT {increment};"
        f"CREATE TABLE t (id {kind} PRIMARY KEY DEFAULT nextval('s'));"
        f"INSERT INTO t VALUES ({last})"
    )
    (finding,) = found(move=True)
    assert (finding.status, finding.largest) == ("behind", last)
    assert f"the range ends at {last}:" in str(finding.obstacle)
    assert next_value("s") == increment


@pytest.mark.parametrize(
    ("key", "status"), [("PRIMARY KEY (tenant, id)", "unknown"), ("CHECK (true)", "not judged")]
)
def test_a_large_table_without_an_index(database: str, key: str, status: str) -> None:
    """What is unique should have been checked; of what is not yet, nobody can tell."""
    execute(f"CREATE TABLE t (tenant int, id serial, note text, {key})")
    execute("INSERT INTO t SELECT 1, n, repeat('x', 90) FROM generate_series(1, 20000) AS n")
    assert [each.status for each in found()] == [status]


def test_a_number_that_may_repeat_is_moved_if_told_to(database: str) -> None:
    execute("CREATE TABLE t (id serial, note text); CREATE UNIQUE INDEX ON t (id) WHERE note = ''")
    execute("CREATE INDEX ON t (id); INSERT INTO t VALUES (7)")
    (finding,) = found(move=True)
    assert (finding.status, next_value("t_id_seq")) == ("not judged", 1)
    (finding,) = found(move=True, terms=Terms(force=True))
    assert (finding.status, next_value("t_id_seq")) == ("resynced", 8)


@pytest.mark.parametrize("harm", ["NaN", "Infinity"])
def test_a_value_that_is_no_number_stops_nothing(ill: None, harm: str) -> None:
    if harm == "Infinity" and connection.pg_version < 140000:  # type: ignore[attr-defined]
        pytest.skip("PostgreSQL has infinite numerics from 14 on")
    execute(
        "CREATE SEQUENCE s; CREATE TABLE n (id numeric PRIMARY KEY DEFAULT nextval('s'));"
        f"INSERT INTO n VALUES (3), ('{harm}')"
    )
    statuses = {finding.sequence.name: finding for finding in found(move=True)}
    assert {name: finding.moved_to for name, finding in statuses.items()} == {"t_id_seq": 7, "s": 3}
