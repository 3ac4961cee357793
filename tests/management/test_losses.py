"""``resyncsequences`` on databases that have lost what their models need."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import ProgrammingError, connections, transaction
from django.test import override_settings

import safemigrate
from safemigrate.checks import check_databases
from tests.support.databases import binding, execute, value
from tests.support.runs import eventually, resyncsequences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

LOSE = """
    INSERT INTO auth_group (name) SELECT i FROM generate_series(1, 7) AS i;
    ALTER TABLE auth_group ALTER id DROP IDENTITY;
    ALTER TABLE auth_user_groups DROP CONSTRAINT auth_user_groups_pkey
"""
IS_IDENTITY = (
    "SELECT attidentity = 'd' FROM pg_attribute WHERE attname = 'id' AND attrelid = %s::regclass"
)


@pytest.fixture
def lost(project: Project) -> None:
    project.migrate()
    execute(LOSE)


KEY = """\
public.auth_user_groups.id: lost key; it has no primary key or valid unique index
  type: SELECT id, pg_catalog.count(*) FROM public.auth_user_groups GROUP BY id \
HAVING pg_catalog.count(*) > 1 OR id IS NULL;
  type: ALTER TABLE public.auth_user_groups ADD PRIMARY KEY (id);
"""


def test_check(lost: None) -> None:
    assert resyncsequences("--check", status=1) == (
        "7 sequences feed a key: 7 in sync.\n"
        "public.auth_group.id: lost default; it has no default or identity\n"
        "  type: python manage.py resyncsequences --restore-defaults\n" + KEY
    )
    assert resyncsequences("--check", verbosity=0, status=1) == ""
    assert resyncsequences("contenttypes", "--check") == "1 sequence feeds a key: 1 in sync.\n"


def test_restore(lost: None) -> None:
    assert resyncsequences("--restore-defaults", status=1) == (
        "public.auth_group.id: lost default; it has no default or identity; restored\n"
        "8 sequences feed a key: 8 in sync.\n" + KEY
    )
    assert value("INSERT INTO auth_group (name) VALUES ('new') RETURNING id") == 8
    execute("ALTER TABLE auth_user_groups ADD PRIMARY KEY (id)")
    assert resyncsequences("--restore-defaults") == "8 sequences feed a key: 8 in sync.\n"


def test_no_restore_within_a_transaction(lost: None) -> None:
    """It would keep our settings, or might never be committed."""
    before = value("SHOW search_path"), value("SHOW lock_timeout")
    with transaction.atomic():
        printed = resyncsequences("--restore-defaults", status=1)
        assert (value("SHOW search_path"), value("SHOW lock_timeout")) == before
    assert "not restored" in printed
    assert not value(IS_IDENTITY, ["auth_group"])


def test_restore_of_an_app(lost: None) -> None:
    resyncsequences("contenttypes", "--restore-defaults")
    assert not value(IS_IDENTITY, ["auth_group"])
    assert "restored" not in resyncsequences("auth", "--restore-defaults", verbosity=0, status=1)
    assert value(IS_IDENTITY, ["auth_group"])


def test_dry_run(lost: None) -> None:
    printed = resyncsequences("--dry-run")
    assert "\nALTER" not in printed
    printed = resyncsequences("--dry-run", "--restore-defaults")
    assert not value(IS_IDENTITY, ["auth_group"])
    assert "-- ALTER TABLE public.auth_user_groups ADD PRIMARY KEY (id);\n" in printed
    execute(printed)
    assert value("INSERT INTO auth_group (name) VALUES ('new') RETURNING id") == 8
    resyncsequences("--dry-run", "--check", status=1)


def test_dry_run_of_a_clone(project: Project) -> None:
    """The sequence that the clone draws from is its model's: what the clone holds is not."""
    project.migrate()
    execute(
        """
        ALTER TABLE auth_group ALTER id DROP IDENTITY;
        CREATE SEQUENCE s OWNED BY auth_group.id;
        ALTER TABLE auth_group ALTER id SET DEFAULT nextval('s');
        CREATE SCHEMA clone;
        CREATE TABLE clone.auth_group (LIKE auth_group INCLUDING ALL);
        INSERT INTO clone.auth_group VALUES (1000000, 'one')
        """
    )
    printed = resyncsequences("--schema", "clone", "--restore-defaults", "--dry-run")
    assert "\n-- SELECT pg_catalog.setval('public.s', 1000000)" in printed
    execute(printed)
    assert value("INSERT INTO clone.auth_group (name) VALUES ('new') RETURNING id") == 1_000_001
    assert value("SELECT last_value FROM s") == 1
    assert "Then run it again" not in resyncsequences("--dry-run", "--restore-defaults")


def test_dry_run_under_a_policy(lost: None, database: str) -> None:
    execute(
        f"""
        CREATE ROLE {database}_owner;
        GRANT ALL ON SCHEMA public TO {database}_owner;
        ALTER TABLE auth_group OWNER TO {database}_owner;
        ALTER TABLE auth_group ENABLE ROW LEVEL SECURITY;
        ALTER TABLE auth_group FORCE ROW LEVEL SECURITY;
        """
    )
    printed = resyncsequences("--dry-run", "--restore-defaults", "--table", "auth_group")
    with pytest.raises(ProgrammingError, match="row-level security"):
        execute(f"SET ROLE {database}_owner; {printed}")
    execute("ROLLBACK; RESET ROLE")
    assert not value(IS_IDENTITY, ["auth_group"])


def test_names_are_printed_as_they_are(project: Project) -> None:
    with override_table("two  spaces"):
        execute('CREATE TABLE "two  spaces" (id serial)')
        printed = resyncsequences("--check", status=1)
    assert '  type: ALTER TABLE public."two  spaces" ADD PRIMARY KEY (id);\n' in printed


@pytest.mark.parametrize("kind", ["bigint", "bigserial"])
@pytest.mark.parametrize(
    "name", ["two\nlines", "tab\there", "a\u202eb", "a\\b", "per%cent", "o'clock"]
)
def test_odd_names_can_be_typed(project: Project, name: str, kind: str) -> None:
    execute(f'CREATE TABLE "{name}" (id {kind} PRIMARY KEY, name text)')
    execute(f"""INSERT INTO "{name}" VALUES (41, 'old')""")
    execute(f'ALTER TABLE "{name}" ALTER id DROP DEFAULT')
    with override_table(name):
        printed = resyncsequences("--restore-defaults", "--dry-run")
    assert all(line.isprintable() for line in printed.splitlines())
    execute(printed)
    assert value(f"""INSERT INTO "{name}" (name) VALUES ('new') RETURNING id""") == 42


def test_the_script_runs_no_operator_of_others(lost: None) -> None:
    """There is none of the server's for an oid and a regclass."""
    execute(
        """
        CREATE TABLE rung (by name);
        CREATE FUNCTION ring(oid, regclass) RETURNS bool LANGUAGE sql AS
            'INSERT INTO public.rung VALUES (current_user); SELECT true';
        CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = ring)
        """
    )
    (first, _) = json.loads(resyncsequences("--json", "--check", status=1))["lost"]
    execute("BEGIN;" + "".join(first["sql"]) + "ROLLBACK")
    execute("SET search_path = public, pg_catalog")
    execute(resyncsequences("--dry-run", "--restore-defaults"))
    assert value("SELECT count(*) FROM rung") == 0
    assert value("SHOW search_path") == "public, pg_catalog"


def test_why_one_was_not_restored_is_said_once(lost: None) -> None:
    execute(
        "ALTER TABLE auth_group DROP CONSTRAINT auth_group_pkey CASCADE;"
        "ALTER TABLE auth_group ALTER id DROP NOT NULL;"
        "INSERT INTO auth_group (name) VALUES ('none')"
    )
    said = resyncsequences("--restore-defaults", status=1)
    assert said.count("not restored: ") == 1
    to_type = "python manage.py resyncsequences --restore-defaults"
    assert f"null values\n  once that is out of the way, type: {to_type}\n" in said


def test_a_tenant_s_tables(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router of django-tenants' allows an app where its tenant's turn has come."""
    project.migrate()
    execute("CREATE SCHEMA t1; ALTER TABLE auth_group SET SCHEMA t1")
    execute("ALTER TABLE t1.auth_group ALTER id DROP IDENTITY")
    monkeypatch.setattr(connections["default"], "schema_name", "public", raising=False)
    with override_settings(DATABASE_ROUTERS=[NoAuth()]):
        said = resyncsequences("--check", "--schema", "t1", status=1)
    assert "t1.auth_group.id: lost default" in said


class NoAuth:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "auth" else None


def test_json_says_why_one_was_not_restored(lost: None) -> None:
    execute(
        "ALTER TABLE auth_group DROP CONSTRAINT auth_group_pkey CASCADE;"
        "ALTER TABLE auth_group ALTER id DROP NOT NULL;"
        "INSERT INTO auth_group (name) VALUES ('none')"
    )
    document = json.loads(resyncsequences("--json", "--restore-defaults", status=1))
    assert document["lost"][0]["reason"] == (
        "it has no default or identity; not restored: "
        'column "id" of relation "auth_group" contains null values'
    )


def test_check_changes_nothing(lost: None) -> None:
    with pytest.raises(SystemExit):
        call_command("resyncsequences", check=True, restore_defaults=True, stdout=io.StringIO())
    assert not value(IS_IDENTITY, ["auth_group"])


def test_json(lost: None) -> None:
    document = json.loads(resyncsequences("--json", status=1))
    default, key = document["lost"]
    assert {name: default[name] for name in ("schema", "table", "column", "status")} == {
        "schema": "public",
        "table": "auth_group",
        "column": "id",
        "status": "lost default",
    }
    assert (key["table"], key["status"], len(key["sql"])) == ("auth_user_groups", "lost key", 2)
    assert [
        each["status"]
        for each in json.loads(resyncsequences("--json", "--restore-defaults", status=1))["lost"]
    ] == ["lost key"]


def test_github_is_told(lost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    resyncsequences("--check", status=1, stderr=err)
    assert err.getvalue() == (
        "::warning title=Lost by a table::public.auth_group.id: lost default; it has no default or "
        "identity\n"
        "::warning title=Lost by a table::public.auth_user_groups.id: lost key; it has no primary "
        "key or valid unique index\n"
    )


def test_one_that_is_locked(lost: None, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemigrate.sequences.losses.LOCK_TIMEOUT", "50ms")
    execute("ALTER TABLE django_content_type ALTER id DROP IDENTITY")
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE auth_group IN SHARE MODE")
        printed = resyncsequences("--restore-defaults", status=1)
    assert "identity; not restored: canceling statement due to lock timeout" in printed
    assert (
        "django_content_type.id: lost default; it has no default or identity; restored" in printed
    )
    assert value(IS_IDENTITY, ["django_content_type"])
    assert not value(IS_IDENTITY, ["auth_group"])


def test_one_that_another_session_restores_first(lost: None, database: str) -> None:
    execute("ALTER TABLE auth_user_groups ADD PRIMARY KEY (id)")
    with binding("other", database), connections["other"].cursor() as cursor:
        connections["other"].inc_thread_sharing()
        cursor.execute(
            "BEGIN; ALTER TABLE auth_group ALTER id ADD GENERATED BY DEFAULT AS IDENTITY"
        )

        def commit_once_somebody_waits() -> None:
            eventually(lambda: is_waited_for(cursor))
            cursor.execute("COMMIT")

        thread = Thread(target=commit_once_somebody_waits)
        thread.start()
        printed = resyncsequences("--restore-defaults")
        thread.join()
    assert "lost default" not in printed
    assert printed.endswith("8 sequences feed a key: 7 in sync, 1 behind and resynced.\n")


def is_waited_for(cursor: Any) -> bool:
    cursor.execute("SELECT FROM pg_locks WHERE NOT granted AND relation = 'auth_group'::regclass")
    return cursor.fetchone() is not None


def test_rows_without_a_key(lost: None) -> None:
    """All of a table's restoration is taken back."""
    execute(
        "CREATE TABLE copy AS TABLE auth_group; INSERT INTO copy (name) VALUES ('none'); "
        "DROP TABLE auth_group CASCADE; ALTER TABLE copy RENAME TO auth_group"
    )
    printed = resyncsequences("--restore-defaults", status=1)
    assert 'not restored: column "id" of relation "auth_group" contains null values' in printed
    assert "  type: SELECT id, pg_catalog.count(*) FROM public.auth_group GROUP BY id " in printed


def test_of_another_database(project: Project, other_database: str) -> None:
    project.migrate(database="other")
    with connections["other"].cursor() as cursor:
        cursor.execute("ALTER TABLE auth_group ALTER id DROP IDENTITY")
    command = "python manage.py resyncsequences --restore-defaults --database other"
    assert f"  type: {command}\n" in resyncsequences("--check", database="other", status=1)
    assert resyncsequences("--check") == "0 sequences feed a key.\n"


def test_what_is_refused(lost: None) -> None:
    with pytest.raises(CommandError, match="not allowed with argument"):
        resyncsequences("--check", "--restore-defaults")
    with pytest.raises(CommandError, match="No installed app with label 'nosuch'"):
        resyncsequences("nosuch", "--restore-defaults")


def test_nearly_used_up(project: Project) -> None:
    project.migrate()
    execute(
        "ALTER TABLE auth_group ALTER id TYPE smallint; SELECT setval('auth_group_id_seq', 26000)"
    )
    assert resyncsequences("--check") == "8 sequences feed a key: 8 in sync.\n"
    execute("SELECT setval('auth_group_id_seq', 27000)")
    printed = resyncsequences("--check")
    assert printed.endswith(
        "public.auth_group_id_seq: nearly used up; 82 % of its values are gone, the last is 32767\n"
    )
    document = json.loads(resyncsequences("--check", "--json"))
    used = {each["sequence"]: each["percent_used"] for each in document["sequences"]}
    assert (used["auth_group_id_seq"], used["auth_user_id_seq"]) == (82, 0)


def test_the_system_check(lost: None) -> None:
    (warning,) = run_checks(
        include_deployment_checks=True, databases=["default"], tags=["database"]
    )
    assert (warning.id, warning.hint) == (
        "safemigrate.W006",
        "Type: python manage.py resyncsequences --check",
    )
    assert warning.msg == (
        "Tables of the database 'default' have lost what their models need: "
        "public.auth_group.id (lost default), public.auth_user_groups.id (lost key)."
    )
    assert check_databases(None) == []


def test_one_table_of_another_schema(project: Project) -> None:
    project.migrate()
    execute("ALTER TABLE auth_group ALTER id DROP IDENTITY")
    execute("CREATE SCHEMA archive")
    execute("CREATE TABLE archive.auth_group (LIKE auth_group INCLUDING ALL)")
    assert resyncsequences("--restore-defaults", "--table", "archive.auth_group") == (
        "archive.auth_group.id: lost default; it has no default or identity; restored\n"
        "1 sequence feeds a key: 1 in sync.\n"
    )
    assert not value(IS_IDENTITY, ["auth_group"])
    assert value(IS_IDENTITY, ["archive.auth_group"])
    assert "lost default" in resyncsequences("--check", "--table", "AUTH_GROUP", status=1)


@contextmanager
def override_table(name: str) -> Iterator[None]:
    meta = apps.get_model("auth.Group")._meta
    before, meta.db_table = meta.db_table, name
    try:
        yield
    finally:
        meta.db_table = before


def test_a_schema_that_a_model_names_itself_is_another(project: Project) -> None:
    project.migrate()
    execute("CREATE SCHEMA archive; ALTER TABLE auth_group SET SCHEMA archive")
    execute("ALTER TABLE archive.auth_group ALTER id DROP IDENTITY")
    with override_table('archive"."auth_group'):
        assert resyncsequences("--restore-defaults", "--schema", "public") == (
            "7 sequences feed a key: 7 in sync.\n"
        )
        assert not value(IS_IDENTITY, ["archive.auth_group"])
        assert "restored" in resyncsequences("--restore-defaults")
        execute("INSERT INTO archive.auth_group (id, name) VALUES (5, 'old')")
        assert "archive.auth_group_id_seq" in resyncsequences("--check", status=1)
        assert "archive.auth_group_id_seq" in str(check_databases(None, databases=["default"]))
        assert [each for each in safemigrate.resync() if each.moved_to == 5]
        assert "1 behind" not in resyncsequences("--check", "--schema", "public")


def test_a_schema_that_the_role_may_not_use_stops_nothing(project: Project) -> None:
    project.migrate()
    execute("CREATE SCHEMA archive; ALTER TABLE auth_group SET SCHEMA archive")
    role = f"{connections['default'].settings_dict['NAME']}_reader"
    execute(f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    execute(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}; SET ROLE {role}")
    try:
        with override_table('archive"."auth_group'):
            said = resyncsequences("--check", status=3)
    finally:
        execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    assert "7 in sync, 1 not checked" in said
    assert f"role {role} may not read the sequence" in said


def test_without_autocommit(lost: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits send such projects to this command, whose own SELECT begins a transaction."""
    connection = connections["default"]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    assert "; restored\n" in resyncsequences("--restore-defaults", status=1)
    connection.rollback()
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", True)
    assert value(IS_IDENTITY, ["auth_group"])
