"""``resyncsequences``: its options, its output, its exit status."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from safemigrate import driver
from safemigrate.management import progress
from safemigrate.management import table as layout
from safemigrate.sequences import resync as engine
from safemigrate.sequences import sweep as survey
from tests.support.databases import (
    behind,
    binding,
    execute,
    next_value,
    put_behind,
    rows,
    sqlite,
    value,
)
from tests.support.runs import LONG, eventually, resyncsequences
from tests.support.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.project import Project

TABLES = """
    CREATE TABLE ill (id serial PRIMARY KEY);
    INSERT INTO ill VALUES (1), (7);
    CREATE TABLE well (id serial PRIMARY KEY);
    INSERT INTO well DEFAULT VALUES;
"""


@pytest.fixture
def tables(database: str) -> None:
    execute(TABLES)


def test_the_table(tables: None) -> None:
    assert resyncsequences() == (
        "  Sequence           Column  Next value  Largest key\n"
        "  public.ill_id_seq  ill.id           1            7  resynced to 8\n"
        "2 sequences feed a key: 1 in sync, 1 behind and resynced.\n"
    )
    assert next_value("ill_id_seq") == 8
    assert resyncsequences() == "2 sequences feed a key: 2 in sync.\n"
    assert resyncsequences(verbosity=2) == (
        "  Sequence            Column   Next value  Largest key\n"
        "  public.ill_id_seq   ill.id            8            7  in sync\n"
        "  public.well_id_seq  well.id           2            1  in sync\n"
        "2 sequences feed a key: 2 in sync.\n"
    )


def test_check(tables: None) -> None:
    assert resyncsequences("--check", status=1) == (
        "  Sequence           Column  Next value  Largest key\n"
        "  public.ill_id_seq  ill.id           1            7  behind\n"
        "2 sequences feed a key: 1 in sync, 1 behind.\n"
        "To move what is behind: python manage.py resyncsequences\n"
    )
    assert next_value("ill_id_seq") == 1
    resyncsequences(verbosity=0)
    assert resyncsequences("--check", verbosity=0) == ""


def test_dry_run(tables: None) -> None:
    printed = resyncsequences("--dry-run")
    assert printed == (
        "-- Sequence public.ill_id_seq is behind public.ill.id (next value 1, largest key 7)\n"
        "SELECT pg_catalog.setval('public.ill_id_seq', 7) "
        "FROM public.ill_id_seq WHERE last_value <= 7;\n"
        "-- 2 sequences feed a key: 1 in sync, 1 behind.\n"
    )
    assert next_value("ill_id_seq") == 1
    resyncsequences("--dry-run", "--check", status=1)
    execute(printed)
    assert next_value("ill_id_seq") == 8
    execute("SELECT setval('ill_id_seq', 70)")
    execute(printed)
    assert next_value("ill_id_seq") == 71


def test_json(tables: None) -> None:
    document = json.loads(resyncsequences("--json"))
    assert document == {
        "database": "default",
        "vendor": "postgresql",
        "headroom": 0,
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
        "summary": {"in sync": 1, "behind": 0, "resynced": 1, "unknown": 0, "not judged": 0},
        "error": None,
    }


@pytest.mark.parametrize("headroom", [-1, None, "few"])
def test_headroom_from_code_is_validated(tables: None, headroom: Any) -> None:
    with pytest.raises(CommandError, match=r"^headroom: "):
        call_command("resyncsequences", headroom=headroom)


def test_headroom(tables: None) -> None:
    assert json.loads(resyncsequences("--json", "--headroom", "100"))["summary"]["resynced"] == 2
    assert (next_value("ill_id_seq"), next_value("well_id_seq")) == (108, 102)
    assert json.loads(resyncsequences("--json", "--headroom", "100"))["summary"]["in sync"] == 2
    assert resyncsequences("--check", "--headroom", "101", status=1) == (
        "  Sequence            Column   Next value  Largest key\n"
        "  public.ill_id_seq   ill.id          108            7  short of headroom\n"
        "  public.well_id_seq  well.id         102            1  short of headroom\n"
        "2 sequences feed a key: 2 with fewer than 101 values free.\n"
        "To move what is behind: python manage.py resyncsequences --headroom 101\n"
    )
    printed = resyncsequences("--headroom", "3000000000", status=1)
    assert "there are no 3000000000 values left past the largest key" in printed
    assert "100 % of its values are gone" in printed
    assert resyncsequences("--headroom", "101").endswith(
        "2 sequences feed a key: 2 moved to leave 101 values free.\n"
    )
    for wrong in ("-1", "many"):
        with pytest.raises(CommandError, match="is not a whole number"):
            resyncsequences(f"--headroom={wrong}")


def test_schemas(tables: None) -> None:
    execute('CREATE SCHEMA "B b"; CREATE SCHEMA c')
    for schema in ('"B b"', "c"):
        execute(
            f"CREATE TABLE {schema}.t (id serial PRIMARY KEY); INSERT INTO {schema}.t VALUES (1)"
        )
    listed = json.loads(
        resyncsequences("--json", "--check", "--schema", "B b", "--schema", "c", status=1)
    )
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c"]
    listed = json.loads(resyncsequences("--json", "--check", "--all-schemas", status=1))
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c", "public", "public"]
    resyncsequences("--schema", "c")
    assert (next_value("c.t_id_seq"), next_value("ill_id_seq")) == (2, 1)
    execute("SET search_path = 'B b', c")
    listed = json.loads(resyncsequences("--json", "--check", status=1))
    assert [each["schema"] for each in listed["sequences"]] == ["B b", "c"]


def test_apps(project: Project) -> None:
    """The tables of an app's models, those of many-to-many fields among them, and no others."""
    project.migrate()
    execute(TABLES)
    execute("INSERT INTO auth_group VALUES (1, 'a')")
    execute("INSERT INTO auth_group_permissions VALUES (1, 1, 1)")
    put_behind()
    listed = json.loads(resyncsequences("auth", "contenttypes", json=True))
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
    resyncsequences()
    assert behind() == []


def test_database(tables: None, other_database: str) -> None:
    assert resyncsequences("--database", "other") == "0 sequences feed a key.\n"
    assert next_value("ill_id_seq") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "No installed app with label 'nosuch'"),
        (["--schema", "public", "--schema", "nosuch"], "There is no schema 'nosuch'"),
        (["--database", "nosuch"], "invalid choice: 'nosuch'"),
        (
            ["auth", "--all-schemas"],
            "App labels can't be combined with --table, --schema or --all-schemas",
        ),
        (["--table", "ill", "--table", "nosuch"], "There is no table 'nosuch'"),
        (["--table", "two words"], "There is no table 'two words'"),
        (["--table", "ill_id_seq"], "There is no table 'ill_id_seq'"),
        (["--table", "ill", "--all-schemas"], "not allowed with argument"),
        (["--schema", "public", "--all-schemas"], "not allowed with argument"),
        (["--json", "--dry-run"], "not allowed with argument"),
    ],
)
def test_what_is_refused(tables: None, args: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message) as refused:
        resyncsequences(*args)
    assert refused.value.returncode in (1, 2)  # argparse's own are Django's when called
    assert next_value("ill_id_seq") == 1


def test_other_vendors(database: str) -> None:
    with sqlite():
        assert resyncsequences(database="other") == (
            "SQLite has no sequences that could be behind: nothing to do.\n"
        )
        assert resyncsequences(database="other", dry_run=True).startswith("-- SQLite has no")
        with pytest.raises(CommandError, match="No installed app with label 'nosuch'"):
            resyncsequences("nosuch", database="other")
        assert resyncsequences(database="other", verbosity=0) == ""
        assert json.loads(resyncsequences(database="other", json=True))["sequences"] == []


@contextmanager
def locked(database: str, table: str) -> Iterator[None]:
    from django.db import connections

    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


def test_one_locked_table_does_not_stop_the_rest(tables: None, database: str) -> None:
    execute("CREATE TABLE taken (id serial PRIMARY KEY); INSERT INTO taken VALUES (5)")
    with locked(database, "taken"):
        printed = resyncsequences(status=3)
    assert printed == (
        "  Sequence             Column    Next value  Largest key\n"
        "  public.ill_id_seq    ill.id             1            7  resynced to 8\n"
        "  public.taken_id_seq  taken.id                           unknown\n"
        "public.taken_id_seq could not be checked: the table was locked\n"
        "  try again when it is not\n"
        "3 sequences feed a key: 1 in sync, 1 behind and resynced, 1 not checked.\n"
    )
    assert next_value("ill_id_seq") == 8


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "CHUNK", 1)
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "PAUSE", 0)
    terminal, file = Terminal(), io.StringIO()
    resyncsequences("--check", stderr=terminal, status=1)
    resyncsequences("--check", stderr=file, status=1)
    shown = terminal.getvalue().split("\r")
    assert shown[1:4:2] == ["Checked 1 of 2 sequences", "Checked 2 of 2 sequences"]
    assert set(shown[5]) == {" "}
    assert "\x1b" not in terminal.getvalue()
    assert file.getvalue() == ""


def test_a_short_check_shows_no_progress(tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 1_000)
    terminal = Terminal()
    resyncsequences("--check", stderr=terminal, status=1)
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
    out = io.StringIO()
    with pytest.raises(CommandError, match=r'^The database "default" can\'t be reached: ') as down:
        call_command("resyncsequences", json=True, stdout=out)
    assert isinstance(down.value.__cause__, (OperationalError, InterfaceError))
    assert down.value.returncode == 4
    assert "\n" not in str(down.value)
    document = json.loads(out.getvalue())
    assert document["error"] == str(down.value)
    assert document["sequences"] == []
    connection.close()


# What a DBA meets.


def test_one_table(tables: None) -> None:
    execute('CREATE SCHEMA s; CREATE TABLE s."Two Words" (id serial PRIMARY KEY)')
    execute('INSERT INTO s."Two Words" VALUES (4)')
    for name in ("well", "public.well", '"public"."well"'):
        assert resyncsequences("--table", name) == "1 sequence feeds a key: 1 in sync.\n"
    listed = json.loads(resyncsequences("--table", 's."Two Words"', "--table", "ill", json=True))
    assert [each["sequence"] for each in listed["sequences"]] == ["Two Words_id_seq", "ill_id_seq"]
    assert next_value("ill_id_seq") == 8


def test_what_to_type_next(tables: None) -> None:
    execute('CREATE SCHEMA "B b"; CREATE TABLE "B b".t (id serial PRIMARY KEY)')
    execute('INSERT INTO "B b".t VALUES (1)')
    execute('CREATE TABLE "--force" (id serial PRIMARY KEY); INSERT INTO "--force" VALUES (1)')
    for args in (
        ["--schema", "B b"],
        ["--table=--force"],
        ["--all-schemas", "--headroom", "3"],
        ["--table", "ill", "--force", "--scan"],
    ):
        put_behind()
        said = resyncsequences("--check", *args, status=1).splitlines()[-1]
        typed = shlex.split(said.partition(": ")[2])
        assert typed[:3] == ["python", "manage.py", "resyncsequences"]
        assert "resynced" in resyncsequences(*typed[3:])
    resyncsequences()
    assert "To move" not in resyncsequences("--check")


def test_a_document_is_printed_whatever_is_wrong(database: str) -> None:
    for args in (["--table", "nosuch"], ["nosuch"]):
        out = io.StringIO()
        with pytest.raises(CommandError, match="nosuch") as wrong:
            call_command("resyncsequences", *args, json=True, stdout=out)
        assert wrong.value.returncode == 2
        document = json.loads(out.getvalue())
        assert (document["error"], document["sequences"]) == (str(wrong.value), [])
    assert document["vendor"] is None


def test_nothing_to_type_where_nothing_would_be_moved(tables: None) -> None:
    execute("INSERT INTO ill VALUES (2100000000)")
    printed = resyncsequences("--check", status=1)
    assert "public.ill_id_seq is behind and would not be moved: moving past the" in printed
    assert "left alone" not in printed
    assert "To move" not in printed
    assert "public.ill_id_seq is behind and was not moved: moving" in resyncsequences(status=1)


def test_a_schema_that_cannot_be_named_is_told(database: str) -> None:
    execute('CREATE SCHEMA "日"; CREATE TABLE "日".t (id serial PRIMARY KEY)')
    execute("SET client_encoding = 'LATIN1'")
    printed = resyncsequences("--all-schemas", "--check", status=3)
    assert 'encoding "UTF8" has no equivalent in encoding "LATIN1"' in printed
    assert printed.endswith("1 sequence feeds a key: 1 not checked.\n")
    assert resyncsequences("--check") == "0 sequences feed a key.\n"


def test_an_app_without_tables(project: Project) -> None:
    assert resyncsequences("safemigrate") == (
        "The app 'safemigrate' has no tables in this database.\n0 sequences feed a key.\n"
    )
    assert resyncsequences("auth").startswith("The app 'auth' has no tables in this database.\n")
    assert resyncsequences("auth", dry_run=True).startswith("-- The app 'auth' has no tables")
    assert json.loads(resyncsequences("auth", json=True))["sequences"] == []


def test_no_schema_is_current(tables: None) -> None:
    execute("SET search_path = nosuch")
    with pytest.raises(CommandError, match="No schema is current"):
        resyncsequences()


def test_unjudged_ones_are_for_those_who_ask(tables: None) -> None:
    execute("ALTER SEQUENCE ill_id_seq CYCLE")
    assert resyncsequences() == "2 sequences feed a key: 1 in sync, 1 not judged.\n"
    assert resyncsequences(dry_run=True) == "-- 2 sequences feed a key: 1 in sync, 1 not judged.\n"
    printed = resyncsequences(verbosity=2)
    assert "not judged\n" in printed
    assert "public.ill_id_seq is not judged: the sequence is declared CYCLE" in printed


@pytest.mark.parametrize("force", [False, True])
def test_what_somebody_has_to_decide_on_is_a_comment(tables: None, force: bool) -> None:
    execute("INSERT INTO ill VALUES (2100000000)")
    printed = resyncsequences("--dry-run", force=force)
    statements = [line for line in printed.splitlines() if not line.startswith("-- ")]
    assert len(statements) == force
    assert "SELECT pg_catalog.setval('public.ill_id_seq', 2100000000)" in printed


@pytest.fixture
def visitor(tables: None) -> Iterator[str]:
    """Be a role that was granted nothing."""
    role = f"visitor_{os.getpid()}"
    execute(f"CREATE ROLE {role}; SET ROLE {role}")
    yield role
    execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


def test_what_this_session_may_not_do_a_dba_may(visitor: str) -> None:
    execute(f"RESET ROLE; GRANT SELECT ON ill, ill_id_seq TO {visitor}; SET ROLE {visitor}")
    printed = resyncsequences("--dry-run", "--table", "ill")
    execute("RESET ROLE")
    assert f"role {visitor} may not move the sequence" in printed
    execute(printed)
    assert next_value("ill_id_seq") == 8


def test_advice_comes_whole(visitor: str) -> None:
    printed = resyncsequences("--table", "ill", status=3)
    execute("RESET ROLE")
    for line in printed.splitlines():
        if line.startswith("  GRANT"):
            execute(line)
    execute(f"SET ROLE {visitor}")
    resyncsequences("--table", "ill")
    execute("RESET ROLE")
    assert next_value("ill_id_seq") == 8


# Names that anybody may choose.

HOSTILE = ["x\ndrop table victim; --", "\x1b[2J\x1b[31mred", "\u202egnp.exe", "a\r\x85b\u2028\x7f"]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Hostile:
    """Tables, and the sequences that feed them, quoted."""

    tables: tuple[str, ...]
    sequences: tuple[str, ...]


@pytest.fixture(params=HOSTILE, ids=ascii)
def hostile(database: str, request: pytest.FixtureRequest) -> Hostile:
    schema, table, sequence = (quoted(f"{request.param}{end}") for end in ("", "t", "s"))
    execute(f"CREATE TABLE victim (id int); CREATE SCHEMA {schema}")
    hostile = Hostile(
        (f"{schema}.{table}", f"public.{table}"), (f"{schema}.{sequence}", f"public.{sequence}")
    )
    for name, feeding in zip(hostile.tables, hostile.sequences, strict=True):
        literal = feeding.replace("'", "''")
        execute(f"CREATE SEQUENCE {feeding} AS int")
        execute(f"CREATE TABLE {name} ({table} int PRIMARY KEY DEFAULT nextval('{literal}'))")
        execute(f"INSERT INTO {name} VALUES (7)")
    return hostile


OBSTACLES = {"none": "", "cramped": "INSERT INTO {} VALUES (2100000000)", "not judged": "CYCLE"}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_nothing_printed_acts(hostile: Hostile, obstacle: str) -> None:
    for table in hostile.tables if obstacle == "cramped" else ():
        execute(f"INSERT INTO {table} VALUES (2100000000)")
    for sequence in hostile.sequences if obstacle == "not judged" else ():
        execute(f"ALTER SEQUENCE {sequence} CYCLE")
    every = {"all_schemas": True, "verbosity": 2, "no_color": True}
    for options in ({"check": True}, {"dry_run": True}, {}):
        out = io.StringIO()
        with suppress(SystemExit):
            call_command("resyncsequences", **every, **options, stdout=out)
        lines = out.getvalue().removesuffix("\n").split("\n")
        assert len(lines) > 2
        assert all(line.isprintable() for line in lines)
        if "dry_run" in options:
            assert all(line.startswith(("-- ", "SELECT pg_catalog.setval(")) for line in lines)


def test_what_a_hostile_name_makes_of_the_dry_run(hostile: Hostile) -> None:
    for table in hostile.tables:
        execute(f"INSERT INTO {table} VALUES (2100000000)")
    execute(f"SELECT 1;\n{resyncsequences('--dry-run', '--all-schemas')}")
    assert {next_value(sequence) for sequence in hostile.sequences} == {1}
    execute(resyncsequences("--dry-run", "--all-schemas", "--force"))
    assert {next_value(sequence) for sequence in hostile.sequences} == {2100000001}
    assert value("SELECT count(*) FROM pg_class WHERE relname = 'victim'") == 1


# Many sequences, long names.


def test_a_line_has_at_most_120_characters(database: str) -> None:
    long = "t" * 50
    execute(f"CREATE SCHEMA {long}; CREATE TABLE {long}.{long} (id bigserial PRIMARY KEY)")
    execute(f"INSERT INTO {long}.{long} VALUES (2147483647); {TABLES}")
    execute(
        "CREATE TABLE plain_enough_for_one_line (id serial PRIMARY KEY);"
        "INSERT INTO plain_enough_for_one_line VALUES (1234567890)"
    )
    printed = resyncsequences("--all-schemas", "--check", status=1)
    assert max(map(len, printed.splitlines())) <= 120
    lines = printed.splitlines()
    assert lines[1].split() == ["public.ill_id_seq", "ill.id", "1", "7", "behind"]
    assert lines[2:4] == [
        "  public.plain_enough_for_one_line_id_seq",
        "    plain_enough_for_one_line.id",
    ]
    assert lines[4].split() == ["1", "1234567890", "behind"]
    assert lines[1].index("  behind") == lines[4].index("  behind")


def test_only_the_first_remedies_are_told_unasked(
    tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "REMEDIES", 1)
    for table in ("ill", "well"):
        execute(f"INSERT INTO {table} VALUES (2100000000)")
    printed = resyncsequences("--check", status=1)
    assert printed.count("would not be moved: ") == 1
    assert "\n1 more could not be checked or moved; --verbosity 2 says why.\n" in printed
    assert resyncsequences("--check", status=1, verbosity=2).count("would not be moved: ") == 2


def test_what_was_moved_is_said_by_a_run_that_is_ended(
    tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("CREATE TABLE more (id serial PRIMARY KEY); INSERT INTO more VALUES (3)")
    move_past = engine.move_past

    def interrupted(cursor: Any, sequence: Any, terms: Any) -> Any:
        if sequence.name == "more_id_seq":
            raise KeyboardInterrupt
        return move_past(cursor, sequence, terms)

    monkeypatch.setattr(survey, "move_past", interrupted)
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        call_command("resyncsequences", stdout=out, stderr=err, no_color=True)
    assert out.getvalue().endswith("resynced to 8\n")
    assert err.getvalue() == (
        "Interrupted after 1 of 3 sequences; the next one may have been moved, too.\n"
    )
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        call_command("resyncsequences", stdout=out, stderr=err, json=True)
    document = json.loads(out.getvalue())
    assert document["error"].startswith("Interrupted after 1 of 3")


def test_github_is_told_of_each_that_is_behind(
    tables: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    resyncsequences("--check", status=1, stderr=err)
    assert err.getvalue() == ""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for options in ({"check": True}, {"dry_run": True}, {"check": True, "json": True}):
        resyncsequences(status=int("check" in options), stderr=err, **options)
    assert err.getvalue() == 3 * (
        "::warning title=Sequence behind::Sequence public.ill_id_seq is behind public.ill.id "
        "(next value 1, largest key 7)\n"
    )
    resyncsequences(stderr=err)
    resyncsequences("--check", stderr=err)
    assert err.getvalue().count("\n") == 3


# Typed, in a process of its own.

SLOW = """
from django.apps import AppConfig

class Slow(AppConfig):
    name = "slow"

    def ready(self):
        from safemigrate.sequences import sweep
        move_past = sweep.move_past

        def slowly(cursor, sequence, terms):
            if sequence.name == "more_id_seq":
                cursor.execute("SELECT pg_catalog.pg_sleep(300)")
            return move_past(cursor, sequence, terms)

        sweep.move_past = slowly
"""
ASLEEP = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = %s"


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_ctrl_c_ends(
    tables: None, database: str, tmp_path: Path, ending: signal.Signals
) -> None:
    execute("CREATE TABLE more (id serial PRIMARY KEY); INSERT INTO more VALUES (3)")
    site = Site(tmp_path)
    site.write(settings="INSTALLED_APPS += ['slow.apps.Slow']", slow__apps=SLOW)
    with site.starts("resyncsequences") as process:
        eventually(lambda: rows(ASLEEP, [database]))
        process.send_signal(ending)
        stdout, stderr = process.communicate(timeout=LONG)
    assert stdout.endswith("  public.ill_id_seq  ill.id           1            7  resynced to 8\n")
    assert stderr == (
        "Interrupted after 1 of 3 sequences; the next one may have been moved, too.\n"
    )
    assert process.returncode == (-ending if ending == signal.SIGINT else 128 + ending)


@pytest.mark.parametrize("options", [(), ("--json",), ("--dry-run",)], ids=str)
def test_a_closed_pipe(tables: None, tmp_path: Path, options: tuple[str, ...]) -> None:
    """What reads has gone; what is to be done is done."""
    execute("CREATE TABLE more (id serial PRIMARY KEY); INSERT INTO more VALUES (3)")
    site = Site(tmp_path)
    site.write(settings="")
    with site.starts("resyncsequences", *options) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert next_value("more_id_seq") == (1 if "--dry-run" in options else 4)


def test_an_encoding_that_has_not_every_letter(database: str, tmp_path: Path) -> None:
    execute('CREATE TABLE "m\u00e4rz" (id serial PRIMARY KEY); INSERT INTO "m\u00e4rz" VALUES (1)')
    site = Site(tmp_path)
    site.write(settings="")
    done = site.manage("resyncsequences", "--check", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (1, "")
    assert "public.m\\xe4rz_id_seq" in done.stdout
    done = site.manage("resyncsequences", "--check", PYTHONIOENCODING="utf-8")
    assert "public.m\u00e4rz_id_seq" in done.stdout


@pytest.mark.parametrize("options", [(), ("--json",)], ids=str)
def test_no_server(database: str, tmp_path: Path, options: tuple[str, ...]) -> None:
    site = Site(tmp_path)
    site.write(settings="DATABASES['default'].update(HOST='127.0.0.1', PORT=9)")
    done = site.manage("resyncsequences", *options)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith('CommandError: The database "default" can\'t be reached: ')
    assert "refused" in line
    if options:
        assert "refused" in json.loads(done.stdout)["error"]
    else:
        assert done.stdout == ""
