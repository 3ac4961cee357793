"""One table in the middle of a run: before an INSERT, and after a collision."""

from __future__ import annotations

import pytest
from django.db import connection

from safemigrate.sequences.recheck import Recheck, recheck, resync_constraint
from tests.sequences.test_feeds import EXCLUSION, EXPRESSION
from tests.support.databases import execute, next_value, value


def test_a_free_value_is_left(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (20)")
    found = recheck(connection, "t")
    assert (found.free, next_value("t_id_seq")) == (19, 1)


def test_a_taken_value_is_passed(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (1), (20)")
    found = recheck(connection, '"t"')
    assert [each.status for each in found.findings] == ["resynced"]
    assert next_value("t_id_seq") == 21


@pytest.mark.parametrize("given", ["NaN", "Infinity"])
def test_a_key_that_is_no_number(database: str, given: str) -> None:
    if given != "NaN" and connection.pg_version < 140000:  # type: ignore[attr-defined]
        pytest.skip("A numeric is finite before PostgreSQL 14")
    execute(
        "CREATE SEQUENCE s; CREATE TABLE t (id numeric PRIMARY KEY DEFAULT nextval('s'));"
        f"INSERT INTO t VALUES ('{given}')"
    )
    found = recheck(connection, "t")
    assert (found.findings, found.free) == ([], None)
    execute("INSERT INTO t VALUES (1)")
    found = recheck(connection, "t")
    assert next_value("s") == 2
    execute("INSERT INTO t VALUES (9)")
    found = recheck(connection, "t")
    assert (found.free, next_value("s")) == (7, 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_two_columns_that_one_sequence_feeds(database: str, sign: int) -> None:
    execute(
        f"CREATE SEQUENCE s INCREMENT {sign}; CREATE TABLE t (a int UNIQUE DEFAULT nextval('s'),"
        f" b int UNIQUE DEFAULT nextval('s')); INSERT INTO t VALUES ({9 * sign}, {5 * sign})"
    )
    found = recheck(connection, "t")
    assert (found.columns, found.free) == (frozenset("ab"), 4)


def test_what_the_insert_gives_itself_is_not_moved(database: str) -> None:
    execute(
        "CREATE TABLE t (id serial PRIMARY KEY, number serial UNIQUE); INSERT INTO t VALUES (1, 1)"
    )
    found = recheck(connection, "t", listed=frozenset({"id"}))
    assert (found.columns, found.free) == (frozenset({"id", "number"}), 0)
    assert (next_value("t_id_seq"), next_value("t_number_seq")) == (1, 2)


def test_through_a_view(database: str) -> None:
    execute(
        "CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1);"
        "CREATE VIEW v AS SELECT * FROM t"
    )
    recheck(connection, "v")
    assert next_value("t_id_seq") == 2


def test_what_is_moved_beside_the_table_is_told(database: str) -> None:
    """Of one sequence's two columns the other one is unique."""
    execute(
        "CREATE SEQUENCE s; CREATE TABLE t (id int DEFAULT nextval('s'));"
        "CREATE TABLE u (id int PRIMARY KEY DEFAULT nextval('s')); INSERT INTO u VALUES (50)"
    )
    found = recheck(connection, "t", is_unchecked=True)
    assert [each.moved_to for each in found.findings] == [50]
    assert next_value("s") == 51


@pytest.mark.parametrize("table", ["nowhere", '"no where"', "a.b", "plain"])
def test_nothing_to_recheck(database: str, table: str) -> None:
    execute("CREATE TABLE plain (id int PRIMARY KEY)")
    assert recheck(connection, table) == Recheck(frozenset(), [], None)


@pytest.mark.parametrize("table", ["a.b.c.d", "x.y.z", '"unclosed', "", "#", "a b"])
def test_a_name_that_is_none(database: str, table: str) -> None:
    """As text of a statement that was misread: no error that the run would see as ours."""
    execute("BEGIN")
    try:
        assert recheck(connection, table) == Recheck(frozenset(), [], None)
        assert value("SELECT 1") == 1
    finally:
        execute("ROLLBACK")


def test_a_key_that_a_trigger_fills(database: str) -> None:
    execute(
        "CREATE SEQUENCE s; CREATE TABLE t (id int PRIMARY KEY, note text);"
        "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN NEW.id := nextval(''s''); RETURN NEW; END';"
        "CREATE TRIGGER fill BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION fill();"
    )
    feeding = resync_constraint(connection, "public", "t", "t_pkey", move=True)
    assert "trigger" in feeding.why_not
    assert feeding.findings == []


@pytest.mark.parametrize("sql", [EXCLUSION, EXPRESSION], ids=["exclusion", "expression"])
def test_the_constraint_that_was_hit(database: str, sql: str) -> None:
    execute(f"CREATE SEQUENCE s; {sql} INSERT INTO t VALUES (1), (7)")
    name = value(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 't'::regclass"
        " AND (indisunique OR indisexclusion)"
    )
    feeding = resync_constraint(connection, "public", "t", name, move=True)
    assert [each.status for each in feeding.findings] == ["resynced"]


def test_only_what_feeds_the_constraint_is_moved(database: str) -> None:
    execute(
        "CREATE TABLE t (id serial PRIMARY KEY, number serial UNIQUE); INSERT INTO t VALUES (7, 7)"
    )
    feeding = resync_constraint(connection, "public", "t", "t_number_key", move=True)
    assert [each.sequence.name for each in feeding.findings] == ["t_number_seq"]
    assert (next_value("t_id_seq"), next_value("t_number_seq")) == (1, 8)


@pytest.mark.parametrize(("schema", "moved"), [(None, "public"), ("public", "public"), ("b", "b")])
def test_a_table_whose_name_others_have_too(database: str, schema: str | None, moved: str) -> None:
    execute("CREATE SCHEMA b")
    for each in ("public", "b"):
        execute(f"CREATE TABLE {each}.t (id serial PRIMARY KEY); INSERT INTO {each}.t VALUES (7)")
    feeding = resync_constraint(connection, schema, "t", "t_pkey", move=True)
    assert [each.sequence.schema for each in feeding.findings] == [moved]
    assert {each: next_value(f"{each}.t_id_seq") for each in ("public", "b")} == {
        each: 8 if each == moved else 1 for each in ("public", "b")
    }


@pytest.mark.parametrize("expression", ["true", "whole(one.*)"])
def test_an_index_that_names_no_column(ill: None, expression: str) -> None:
    """The idiom for a table of one row; and an index on the row as a whole."""
    execute("CREATE TABLE one (id serial PRIMARY KEY)")
    execute("CREATE FUNCTION whole(one) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1::text'")
    execute(f"CREATE UNIQUE INDEX one_row ON one (({expression}))")
    feeding = resync_constraint(connection, "public", "one", "one_row", move=True)
    assert feeding.findings == []
    assert feeding.why_not == (
        "The index one_row of one names no column, so it can't be known whether a sequence is "
        "involved."
    )


def test_a_constraint_that_is_gone(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (7)")
    feeding = resync_constraint(connection, "public", "t", "gone", move=True)
    assert feeding.findings == []
    assert feeding.why_not.startswith("t has no constraint gone now: the transaction that failed ")


def test_what_can_not_be_moved_is_not_tried(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (7)")
    execute("SET default_transaction_read_only = on")
    feeding = resync_constraint(connection, "public", "t", "t_pkey", move=True)
    execute("SET default_transaction_read_only = off")
    (finding,) = feeding.findings
    assert finding.status == "behind"
    assert "read-only" in str(finding.obstacle)


def test_a_constraint_of_a_partition(database: str) -> None:
    execute(
        "CREATE TABLE p (id bigserial, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);"
        "CREATE TABLE leaf PARTITION OF p FOR VALUES IN (1);"
        "INSERT INTO p VALUES (1, 1), (7, 1)"
    )
    feeding = resync_constraint(connection, "public", "leaf", "leaf_pkey", move=True)
    assert [each.status for each in feeding.findings] == ["resynced"]


def test_a_number_that_restarts_is_not_moved_for_a_collision(database: str) -> None:
    execute(
        "CREATE TABLE t (year int, number serial, UNIQUE (year, number));"
        "INSERT INTO t VALUES (2024, 1), (2024, 4000), (2025, 1), (2025, 3)"
    )
    feeding = resync_constraint(connection, "public", "t", "t_year_number_key", move=True)
    assert [each.status for each in feeding.findings] == ["not judged"]
    assert next_value("t_number_seq") == 1
