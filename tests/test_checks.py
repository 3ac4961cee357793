"""The system checks: whose command it is (W001), and which sequences are behind (W002)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from django.core import management
from django.core.checks import run_checks
from django.core.management import BaseCommand, call_command
from django.test.utils import CaptureQueriesContext

from safemigrate.checks import check_command, check_sequences
from tests.support.databases import behind, execute, put_behind

if TYPE_CHECKING:
    from tests.support.project import Project


def test_our_own_command() -> None:
    assert check_command(None) == []


@pytest.mark.parametrize("ours", ["safemigrate", "safemigrate.override", None])
def test_commands_of_ours(monkeypatch: pytest.MonkeyPatch, ours: str | None) -> None:
    commands = {} if ours is None else {"safemigrate": ours}
    monkeypatch.setattr(management, "get_commands", lambda: commands)
    assert check_command(None) == []


class Theirs(BaseCommand):
    pass


@pytest.mark.parametrize("theirs", ["django_safemigrate", Theirs()])
def test_another_app_s_command(monkeypatch: pytest.MonkeyPatch, theirs: Any) -> None:
    commands = management.get_commands()
    monkeypatch.setattr(management, "get_commands", lambda: {**commands, "safemigrate": theirs})
    (warning,) = [each for each in run_checks() if each.id == "safemigrate.W001"]
    owner = theirs if isinstance(theirs, str) else __name__
    assert warning.msg == (
        f"'manage.py safemigrate' is the command of '{owner}', not of this package."
    )
    assert warning.hint is not None
    assert f"List 'safemigrate' before '{owner}' in INSTALLED_APPS" in warning.hint


def test_sequences_behind(project: Project) -> None:
    project.migrate()
    put_behind("django_migrations", "auth_permission")
    (warning,) = run_checks(
        include_deployment_checks=True, databases=["default"], tags=["database"]
    )
    assert warning.id == "safemigrate.W002"
    assert warning.msg == (
        "Sequences of the database 'default' are behind the keys they feed: "
        "public.auth_permission_id_seq, public.django_migrations_id_seq."
    )
    assert warning.hint == "Run 'manage.py resyncsequences --database default'."
    assert behind() == ["auth_permission", "django_migrations"]

    call_command("resyncsequences", stdout=io.StringIO())
    assert check_sequences(None, databases=["default"]) == []


def test_the_command_line(project: Project) -> None:
    project.migrate()
    put_behind("django_migrations")
    for options, is_told in [({"deploy": True}, True), ({}, False)]:
        err = io.StringIO()
        call_command("check", databases=["default"], tags=["database"], stderr=err, **options)
        assert ("safemigrate.W002" in err.getvalue()) is is_told
    err = io.StringIO()
    call_command("check", deploy=True, stderr=err)
    assert "safemigrate.W002" not in err.getvalue()


def test_many_are_not_all_named(database: str) -> None:
    for number in range(12):
        execute(f"CREATE TABLE t{number:02} (id serial PRIMARY KEY)")
        execute(f"INSERT INTO t{number:02} VALUES (1)")
    (warning,) = check_sequences(None, databases=["default"])
    assert warning.msg.endswith("public.t09_id_seq and 2 more.")


def test_migrate_pays_nothing(project: Project) -> None:
    from django.db import connection

    project.migrate()
    put_behind("django_migrations")
    with CaptureQueriesContext(connection) as sent:
        project.migrate()
    assert not [query for query in sent.captured_queries if "pg_sequence" in query["sql"]]


def test_other_vendors(database: str) -> None:
    from django.db import connections
    from django.db.backends.sqlite3.base import DatabaseWrapper

    postgresql = connections["other"]
    connections["other"] = DatabaseWrapper(
        {**postgresql.settings_dict, "NAME": ":memory:"}, "other"
    )
    try:
        assert check_sequences(None, databases=["other"]) == []
        assert check_sequences(None) == []
    finally:
        connections["other"] = postgresql
