"""``resyncsequences``: its options, its output, its exit status."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from safemigrate import driver
from safemigrate.management.commands import resyncsequences
from safemigrate.sequences import sweep as survey
from tests.support.databases import behind, binding, execute, next_value, put_behind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

TABLES = """
    CREATE TABLE ill (id serial PRIMARY KEY);
    INSERT INTO ill VALUES (1), (7);
    CREATE TABLE well (id serial PRIMARY KEY);
    INSERT INTO well DEFAULT VALUES;
"""


def resync(*args: str, status: int = 0, **options: Any) -> str:
    """Run the command, assert its exit status, and return its stdout."""
    out = io.StringIO()
    code = 0
    try:
        call_command("resyncsequences", *args, no_color=True, **{"stdout": out, **options})
    except SystemExit as left:
        code = int(str(left.code))
    assert code == status, out.getvalue()
    return out.getvalue()


@pytest.fixture
def tables(database: str) -> None:
    execute(TABLES)


def test_the_table(tables: None) -> None:
    assert resync() == (
        "  Sequence           Column         Next value  Largest key\n"
        "  public.ill_id_seq  public.ill.id           1            7  resynced to 8\n"
        "2 sequences feed a key: 1 in sync, 1 behind and resynced.\n"
    )
    assert next_value("ill_id_seq") == 8
    assert resync() == "2 sequences feed a key: 2 in sync.\n"
    assert resync(verbosity=2) == (
        "  Sequence            Column          Next value  Largest key\n"
        "  public.ill_id_seq   public.ill.id            8            7  in sync\n"
        "  public.well_id_seq  public.well.id           2            1  in sync\n"
        "2 sequences feed a key: 2 in sync.\n"
    )


def test_check(tables: None) -> None:
    assert resync("--check", status=1) == (
        "  Sequence           Column         Next value  Largest key\n"
        "  public.ill_id_seq  public.ill.id           1            7  behind\n"
        "2 sequences feed a key: 1 in sync, 1 behind.\n"
    )
    assert next_value("ill_id_seq") == 1
    resync(verbosity=0)
    assert resync("--check", verbosity=0) == ""


def test_dry_run(tables: None) -> None:
    printed = resync("--dry-run")
    assert printed == (
        "-- Sequence public.ill_id_seq is behind public.ill.id (next value 1, largest key 7)\n"
        "SELECT pg_catalog.setval('public.ill_id_seq', 7) "
        "FROM public.ill_id_seq WHERE last_value <= 7;\n"
        "-- 2 sequences feed a key: 1 in sync, 1 behind.\n"
    )
    assert next_value("ill_id_seq") == 1
    resync("--dry-run", "--check", status=1)
    execute(printed)
    assert next_value("ill_id_seq") == 8
    execute("SELECT setval('ill_id_seq', 70)")
    execute(printed)
    assert next_value("ill_id_seq") == 71


def test_json(tables: None) -> None:
    document = json.loads(resync("--json"))
    assert document == {
        "database": "default",
        "vendor": "postgresql",
        "sequences": [
            {
                "schema": "public",
                "sequence": "ill_id_seq",
                "columns": [{"schema": "public", "table": "ill", "column": "id"}],
                "status": "resynced",
                "next_value": 1,
                "largest_key": 7,
                "new_next_value": 8,
                "percent_used": 0,
                "reason": None,
                "advice": None,
                "sql": None,
            },
            {
                "schema": "public",
                "sequence": "well_id_seq",
                "columns": [{"schema": "public", "table": "well", "column": "id"}],
                "status": "in sync",
                "next_value": 2,
                "largest_key": 1,
                "new_next_value": None,
                "percent_used": 0,
                "reason": None,
                "advice": None,
                "sql": None,
            },
        ],
        "lost": [],
        "summary": {"in sync": 1, "behind": 0, "resynced": 1, "unknown": 0, "exempt": 0},
    }


def test_headroom(tables: None) -> None:
    assert json.loads(resync("--json", "--headroom", "100"))["summary"]["resynced"] == 2
    assert (next_value("ill_id_seq"), next_value("well_id_seq")) == (108, 102)
    assert json.loads(resync("--json", "--headroom", "100"))["summary"]["in sync"] == 2
    resync("--check", "--headroom", "101", status=1)
    for wrong in ("-1", "many"):
        with pytest.raises(CommandError, match="is not a whole number"):
            resync(f"--headroom={wrong}")


def test_schemas(tables: None) -> None:
    execute('CREATE SCHEMA "B b"; CREATE SCHEMA c')
    for schema in ('"B b"', "c"):
        execute(
            f"CREATE TABLE {schema}.t (id serial PRIMARY KEY); INSERT INTO {schema}.t VALUES (1)"
        )
    listed = json.loads(resync("--json", "--check", "--schema", "B b", "--schema", "c", status=1))
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c"]
    listed = json.loads(resync("--json", "--check", "--all-schemas", status=1))
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c", "public", "public"]
    resync("--schema", "c")
    assert (next_value("c.t_id_seq"), next_value("ill_id_seq")) == (2, 1)
    execute("SET search_path = 'B b', c")
    listed = json.loads(resync("--json", "--check", status=1))
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c"]


def test_apps(project: Project) -> None:
    """The tables of an app's models, those of many-to-many fields among them, and no others."""
    project.migrate()
    execute(TABLES)
    execute("INSERT INTO auth_group VALUES (1, 'a')")
    execute("INSERT INTO auth_group_permissions VALUES (1, 1, 1)")
    put_behind()
    listed = json.loads(resync("auth", "contenttypes", json=True))
    assert {(each["sequence"], each["status"]) for each in listed["sequences"]} == {
        ("auth_group_id_seq", "resynced"),
        ("auth_group_permissions_id_seq", "resynced"),
        ("auth_permission_id_seq", "resynced"),
        ("auth_user_groups_id_seq", "in sync"),
        ("auth_user_id_seq", "in sync"),
        ("auth_user_user_permissions_id_seq", "in sync"),
        ("django_content_type_id_seq", "resynced"),
    }
    assert next_value("ill_id_seq") == next_value("django_migrations_id_seq") == 1
    resync()
    assert behind() == []


def test_database(tables: None, other_database: str) -> None:
    assert resync("--database", "other") == "0 sequences feed a key.\n"
    assert next_value("ill_id_seq") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "No installed app with label 'nosuch'"),
        (["--schema", "public", "--schema", "nosuch"], "no schema 'nosuch', only public"),
        (["--database", "nosuch"], "no database 'nosuch' in the settings, only default, other"),
        (["auth", "--all-schemas"], "Give either app labels or schemas"),
        (["--schema", "public", "--all-schemas"], "not allowed with argument"),
        (["--json", "--dry-run"], "not allowed with argument"),
    ],
)
def test_what_is_refused(tables: None, args: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        resync(*args)
    assert next_value("ill_id_seq") == 1


def test_other_vendors(database: str) -> None:
    from django.db import connections
    from django.db.backends.sqlite3.base import DatabaseWrapper

    sqlite = DatabaseWrapper({**connection.settings_dict, "NAME": ":memory:"}, "other")
    postgresql, connections["other"] = connections["other"], sqlite
    try:
        assert resync(database="other") == (
            "SQLite has no sequences that could be behind: nothing to do.\n"
        )
        assert resync(database="other", dry_run=True).startswith("-- SQLite has no")
        assert resync(database="other", verbosity=0) == ""
        assert json.loads(resync(database="other", json=True))["sequences"] == []
    finally:
        connections["other"] = postgresql


@contextmanager
def locked(database: str, table: str) -> Iterator[None]:
    from django.db import connections

    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


def test_one_locked_table_does_not_stop_the_rest(tables: None, database: str) -> None:
    execute("CREATE TABLE taken (id serial PRIMARY KEY); INSERT INTO taken VALUES (5)")
    with locked(database, "taken"):
        printed = resync(status=1)
    assert "public.taken_id_seq  public.taken.id" in printed
    assert "left alone: the table was locked for longer" in printed
    assert "1 in sync, 1 behind and resynced, 1 not looked at." in printed
    assert next_value("ill_id_seq") == 8


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "CHUNK", 1)
    monkeypatch.setattr(resyncsequences, "PATIENCE", 0)
    terminal, file = Terminal(), io.StringIO()
    resync("--check", stderr=terminal, status=1)
    resync("--check", stderr=file, status=1)
    shown = terminal.getvalue().split("\r")
    assert shown[1:3] == ["Looked at 1 of 2 sequences", "Looked at 2 of 2 sequences"]
    assert shown[3].isspace()
    assert file.getvalue() == ""


def test_a_short_look_shows_no_progress(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resyncsequences, "PATIENCE", 1_000)
    terminal = Terminal()
    resync("--check", stderr=terminal, status=1)
    assert terminal.getvalue() == ""


def test_a_lost_connection_is_not_taken_for_a_broken_table(
    tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError
    from django.db.utils import InterfaceError

    send = driver.Cursor.rows

    def lose(cursor: driver.Cursor, sql: str, params: Any = None) -> list[Any]:
        if "key_is_bare" in sql:
            sql, params = "SELECT pg_terminate_backend(pg_backend_pid())", None
        return send(cursor, sql, params)

    monkeypatch.setattr(driver.Cursor, "rows", lose)
    with pytest.raises((OperationalError, InterfaceError)):
        resync()
    connection.close()
