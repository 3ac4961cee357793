"""The sweep: every sequence once, in few statements, and only what is not in sync is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections

from safemigrate.sequences import sweep as module
from safemigrate.sequences.checking import checking
from safemigrate.sequences.sweep import sweep
from tests.support.databases import binding, execute, locked, next_value, rows, value
from tests.support.runs import counted

if TYPE_CHECKING:
    from safemigrate.sequences.finding import Finding


STATEMENTS = 6  # as the README says


def swept(*, move: bool = True, schemas: list[str] | None = None) -> dict[str, Finding]:
    return {str(each.sequence): each for each in sweep(connection, schemas=schemas, move=move)}


def statuses(**options: Any) -> dict[str, str]:
    return {name: finding.status for name, finding in swept(**options).items()}


def tables(count: int, then: str = "INSERT INTO t{n} (note) VALUES ('x');") -> None:
    execute(
        "".join(
            f"CREATE TABLE t{n} (id serial PRIMARY KEY, note text);{then.format(n=n)}"
            for n in range(count)
        )
    )


def test_what_is_behind_is_told_and_moved_and_the_rest_is_not(database: str) -> None:
    tables(3)
    execute("SELECT setval('t1_id_seq', 1, false)")
    assert statuses(move=False) == {"public.t1_id_seq": "behind"}
    assert next_value("t1_id_seq") == 1
    assert statuses() == {"public.t1_id_seq": "resynced"}
    assert statuses() == {}
    assert [next_value(f"t{n}_id_seq") for n in range(3)] == [2, 2, 2]


def test_in_a_transaction_nothing_of_it_is_left(database: str) -> None:
    tables(2, "INSERT INTO t{n} VALUES (7);")
    execute("BEGIN")
    assert statuses() == {"public.t0_id_seq": "resynced", "public.t1_id_seq": "resynced"}
    assert value("SHOW search_path") == '"$user", public'
    assert value("SHOW lock_timeout") == "0"
    locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = %s::regclass"
    assert value(locks, ["t0"]) == 0
    execute("ROLLBACK")
    assert next_value("t0_id_seq") == 8


def test_in_a_transaction_no_sequence_in_sync_stays_locked(database: str) -> None:
    tables(2)
    execute("BEGIN")
    assert statuses() == {}
    locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation >= 16384"
    assert value(locks) == 0
    execute("ROLLBACK")


def test_it_keeps_no_lock_until_its_end(database: str) -> None:
    """Thousands of sequences would fill the server's lock table, for everybody."""
    tables(3)
    with checking(connection) as cursor:
        cursor.row(module.SCHEMAS_TO_SWEEP, [["public"]])
        cursor.execute(module.SWEEP)
        locked = cursor.rows(
            "SELECT relation FROM pg_catalog.pg_locks"
            " WHERE pid = pg_catalog.pg_backend_pid() AND relation >= 16384"
        )
    assert locked == []


def test_few_statements(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(150)
    with counted(monkeypatch) as sent:
        assert statuses() == {}
    assert len(sent) == STATEMENTS


def test_a_copy_without_its_key_may_hold_any_number(database: str) -> None:
    tables(1)
    execute("CREATE TABLE old (LIKE t0 INCLUDING DEFAULTS)")
    execute("INSERT INTO old (id) VALUES (90000)")
    assert statuses() == {}


def test_only_the_schemas_asked_for(database: str) -> None:
    execute(
        "CREATE SCHEMA a; CREATE TABLE a.t (id serial PRIMARY KEY); INSERT INTO a.t VALUES (7);"
        "CREATE SCHEMA b; CREATE TABLE b.t (id serial PRIMARY KEY); INSERT INTO b.t VALUES (7)"
    )
    assert statuses(schemas=["a"]) == {"a.t_id_seq": "resynced"}
    assert statuses() == {"b.t_id_seq": "resynced"}


@pytest.mark.parametrize(
    "name",
    [
        "$sweep$; CREATE TABLE public.intruder (); --",
        "$sweep$; DO $do$ BEGIN CREATE TABLE public.intruder (); END $do$; --",
        "'; CREATE TABLE public.intruder (); --",
        "per%%cent %s {0}",
        "back\\slash",
    ],
)
@pytest.mark.parametrize("kind", ["schema", "table"])
def test_a_name_is_never_code(database: str, name: str, kind: str) -> None:
    schema, table = (name, "t") if kind == "schema" else ("s", name)
    schema, table = (each.replace('"', '""').replace("%", "%%") for each in (schema, table))
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{schema}"', ())
        cursor.execute(f'CREATE TABLE "{schema}"."{table}" (id serial PRIMARY KEY)', ())
        cursor.execute(f'INSERT INTO "{schema}"."{table}" VALUES (7)', ())
    assert list(statuses().values()) == ["resynced"]
    assert value("SELECT to_regclass('public.intruder')") is None


def test_without_a_procedural_language(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(3)
    execute("SELECT setval('t1_id_seq', 1, false); DROP EXTENSION plpgsql")
    assert statuses() == {"public.t1_id_seq": "resynced"}
    assert statuses() == {}


def test_settings_of_the_session_change_nothing(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (7)")
    execute("SET quote_all_identifiers = on; SET standard_conforming_strings = on")
    assert statuses() == {"public.t_id_seq": "resynced"}


# What can't be read.


def test_one_locked_table_is_one_unknown_finding(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(40)
    execute("SELECT setval('t1_id_seq', 1, false)")
    with locked("t7"), counted(monkeypatch) as sent:
        found = swept()
    assert {name: each.status for name, each in found.items()} == {
        "public.t1_id_seq": "resynced",
        "public.t7_id_seq": "unknown",
    }
    assert "locked" in str(found["public.t7_id_seq"].obstacle)
    assert len(sent) < 40


def test_one_locked_partition_is_one_unknown_finding(database: str) -> None:
    tables(3)
    execute(
        "SELECT setval('t1_id_seq', 1, false);"
        "CREATE TABLE p (id bigserial, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2)"
    )
    with locked("p2"):
        assert statuses() == {"public.t1_id_seq": "resynced", "public.p_id_seq": "unknown"}


def test_a_table_that_is_dropped_between_check_and_move_is_no_finding(database: str) -> None:
    for name in "abc":
        execute(f"CREATE TABLE {name} (id serial PRIMARY KEY); INSERT INTO {name} VALUES (7)")
    found = sweep(connection)
    assert str(next(found).sequence) == "public.a_id_seq"
    execute("DROP TABLE b")
    assert [(str(each.sequence), each.status) for each in found] == [
        ("public.c_id_seq", "resynced")
    ]


def test_many_locked_tables_are_not_waited_for_one_by_one(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(20)
    with locked(*(f"t{n}" for n in range(20))), counted(monkeypatch) as sent:
        found = statuses()
    assert set(found.values()) == {"unknown"}
    assert len(found) == 20
    # The listing of schemas, the sweep and the first check; those by halves wait a moment each.
    assert len([sql for sql in sent if sql.endswith("['1s']")]) <= 3


def test_a_value_that_is_no_number_ends_nothing(database: str) -> None:
    tables(2)
    execute("SELECT setval('t1_id_seq', 1, false)")
    for number, given in enumerate(["NaN", "Infinity", "-Infinity"]):
        if given != "NaN" and connection.pg_version < 140000:  # type: ignore[attr-defined]
            continue
        execute(
            f"CREATE SEQUENCE s{number};"
            f"CREATE TABLE n{number} (id numeric PRIMARY KEY DEFAULT nextval('s{number}'));"
            f"INSERT INTO n{number} VALUES (7), ('{given}')"
        )
    found = statuses()
    assert found.pop("public.t1_id_seq") == "resynced"
    assert set(found.values()) == {"resynced"}
    assert next_value("s0") == 8


def test_a_name_that_is_not_utf8_is_one_unknown_finding(database: str) -> None:
    name = f"{database}_ascii"
    execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'"
        " LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    try:
        with binding("default", name):
            tables(3)
            execute("SELECT setval('t1_id_seq', 1, false)")
            for sql in (
                b'CREATE TABLE "\xff" (id serial PRIMARY KEY)',
                b'INSERT INTO "\xff" VALUES (7)',
            ):
                execute(f"DO $$ BEGIN EXECUTE convert_from('\\x{sql.hex()}', 'SQL_ASCII'); END $$")
            found = statuses()
            assert found.pop("public.t1_id_seq") == "resynced"
            assert list(found.values()) in (["unknown"], ["resynced"])
            connection.close()
    finally:
        connections["default"].close()
        execute(f"DROP DATABASE {name}")


def test_a_schema_that_cannot_be_named_does_not_stop_the_rest(database: str) -> None:
    tables(2)
    execute("SELECT setval('t1_id_seq', 1, false)")
    execute('CREATE SCHEMA "日"; CREATE TABLE "日".t (id serial PRIMARY KEY)')
    execute("SET client_encoding = 'LATIN1'")
    assert statuses() == {"public.t1_id_seq": "resynced"}


def test_what_the_catalogue_forbids_is_not_tried(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(20)
    execute("SELECT setval('t1_id_seq', 1, false); SELECT setval('t2_id_seq', 1, false)")
    role = f"{database}_poor"
    execute(f"CREATE ROLE {role}; GRANT ALL ON t1, t1_id_seq TO {role}; SET ROLE {role}")
    try:
        with counted(monkeypatch) as sent:
            found = statuses()
        assert found.pop("public.t1_id_seq") == "resynced"
        assert set(found.values()) == {"unknown"}

        tried = "".join(sql for sql in sent if "FROM ONLY public.t" in sql)
        assert "public.t1" in tried
        assert "public.t2" not in tried
    finally:
        execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


# Partitions.


def partitions(count: int) -> None:
    execute(
        "CREATE TABLE p (id bigserial, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);"
        + "".join(f"CREATE TABLE p{n} PARTITION OF p FOR VALUES IN ({n});" for n in range(count))
    )


def test_partitions(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions(60)
    execute("INSERT INTO p (d) SELECT n FROM generate_series(0, 59) AS n")
    with counted(monkeypatch) as sent:
        assert statuses() == {}
    assert len(sent) == STATEMENTS
    execute("INSERT INTO p VALUES (70, 33)")
    assert statuses() == {"public.p_id_seq": "resynced"}
    assert next_value("p_id_seq") == 71


def test_an_index_that_has_nulls_last_is_not_sorted(database: str) -> None:
    execute(
        "CREATE SEQUENCE s; CREATE TABLE t (id bigint DEFAULT nextval('s'));"
        "CREATE UNIQUE INDEX ON t (id DESC NULLS LAST);"
        "INSERT INTO t SELECT n FROM generate_series(1, 20000) AS n; ANALYZE t"
    )
    before = value("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 't'")
    assert statuses() == {"public.s": "resynced"}
    execute("SELECT pg_stat_force_next_flush()" if _can_flush() else "SELECT pg_sleep(1)")
    assert value("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 't'") == before


def _can_flush() -> bool:
    return bool(rows("SELECT 1 FROM pg_proc WHERE proname = 'pg_stat_force_next_flush'"))


def test_chunks(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(7, "INSERT INTO t{n} VALUES (7);")
    monkeypatch.setattr(module, "CHUNK", 3)
    assert len(list(sweep(connection, move=False))) == 7


def test_a_server_that_ends_sessions_on_an_error(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (7)")
    execute("SET exit_on_error = on")
    [finding] = sweep(connection)
    assert finding.moved_to == 7
    assert value("SHOW exit_on_error") == "on"
