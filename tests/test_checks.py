"""The system checks: settings (E001, W005), whose command it is (W001, W008), what is behind."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.core import management
from django.core.checks import CheckMessage, run_checks
from django.core.management import BaseCommand, call_command
from django.test.utils import CaptureQueriesContext, override_settings

from safemigrate import conf
from safemigrate.checks import check_command, check_databases
from tests.support.databases import behind, binding, execute, put_behind, sqlite

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.project import Project


def of_settings(**settings: Any) -> list[CheckMessage]:
    with override_settings(**settings):
        return [
            each for each in run_checks() if each.id in ("safemigrate.E001", "safemigrate.W005")
        ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SAFEMIGRATE_MAX_RETRIES", -1, "must be a whole number, 0 or more, not -1."),
        ("SAFEMIGRATE_HEAL", "no", "must be True or False, not 'no'."),
        ("SAFEMIGRATE_LOCK", 0, "must be True or False, not 0."),
        ("SAFEMIGRATE_LOCK_WAIT", "600", "must be a whole number, 0 or more, not '600'."),
        ("SAFEMIGRATE_WAIT_FOR_DATABASE", 1.5, "must be a whole number, 0 or more, not 1.5."),
    ],
)
def test_a_setting_that_cannot_be_used(name: str, value: Any, said: str) -> None:
    (error,) = of_settings(**{name: value})
    assert (error.id, error.msg) == ("safemigrate.E001", f"{name} {said}")
    with (
        override_settings(**{name: value}),
        pytest.raises(management.CommandError, match=r"safemigrate\.E001"),
    ):
        call_command("check", stderr=io.StringIO())


def test_all_of_them_at_once() -> None:
    found = of_settings(SAFEMIGRATE_HEAL=1, SAFEMIGRATE_LOCK=1)
    assert [each.id for each in found] == ["safemigrate.E001", "safemigrate.E001"]


def test_a_setting_that_there_is_not() -> None:
    (warning,) = of_settings(SAFEMIGRATE_MAX_RETRY=5)
    assert warning.id == "safemigrate.W005"
    assert warning.msg == "safemigrate has no setting SAFEMIGRATE_MAX_RETRY."
    assert str(warning.hint).startswith("Did you mean SAFEMIGRATE_MAX_RETRIES? The settings are ")


def test_settings_of_others() -> None:
    assert of_settings(SAFEMIGRATED_BY="us", SAFE_MIGRATES_X=1, SAFETY=1) == []


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("SAFE_MIGRATE_HEAL", False, "Did you mean SAFEMIGRATE_HEAL? "),
        ("SAFEMIGRATE_LOCKTIMEOUT", 1, "Did you mean SAFEMIGRATE_LOCK_TIMEOUT? "),
        ("SAFEMIGRATE_WHATEVER", 1, "The settings are "),
        ("SAFEMIGRATE", {"HEAL": False}, "The settings are "),
    ],
)
def test_a_setting_by_another_name(name: str, value: Any, hint: str) -> None:
    (warning,) = of_settings(**{name: value})
    assert warning.msg == f"safemigrate has no setting {name}."
    assert str(warning.hint).startswith(hint)


def test_settings_that_can_be_used() -> None:
    assert of_settings() == []
    assert of_settings(SAFEMIGRATE_HEAL=False, SAFEMIGRATE_LOCK_WAIT=0, SAFEMIGRATE=1) == []


def test_every_setting_is_checked() -> None:
    readers = {
        reader
        for name, reader in vars(conf).items()
        if getattr(reader, "__module__", "") == conf.__name__ and name[0] != "_"
    }
    assert readers == set(conf.READERS)


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


def test_an_app_whose_command_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = tmp_path / "theirs" / "management" / "commands"
    commands.mkdir(parents=True)
    (tmp_path / "theirs" / "__init__.py").touch()
    (commands / "safemigrate.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "theirs"]):
        (warning,) = check_command(None)
    assert warning.id == "safemigrate.W008"
    assert warning.msg == (
        "'manage.py safemigrate' is the command of this package, not of 'theirs'."
    )


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
    assert warning.hint == "Type: python manage.py resyncsequences"
    assert behind() == ["auth_permission", "django_migrations"]

    call_command("resyncsequences", stdout=io.StringIO())
    assert check_databases(None, databases=["default"]) == []


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
    (warning,) = check_databases(None, databases=["default"])
    assert warning.msg.endswith("public.t09_id_seq and 2 more.")


def test_migrate_pays_nothing(project: Project) -> None:
    from django.db import connection

    project.migrate()
    put_behind("django_migrations")
    with CaptureQueriesContext(connection) as sent:
        project.migrate()
    assert not [query for query in sent.captured_queries if "pg_sequence" in query["sql"]]


def test_other_vendors(database: str) -> None:
    with sqlite():
        assert check_databases(None, databases=["other"]) == []
        assert check_databases(None) == []


def test_a_database_that_can_not_be_checked(database: str) -> None:
    execute(
        f"""
        CREATE ROLE {database}_reader;
        CREATE TABLE t (id serial PRIMARY KEY);
        SET ROLE {database}_reader
        """
    )
    (warning,) = check_databases(None, databases=["default"])
    execute("RESET ROLE")
    assert (warning.id, warning.msg) == (
        "safemigrate.W007",
        "Sequences of the database 'default' could not be checked: public.t_id_seq.",
    )


def test_a_database_that_is_not_there(database: str) -> None:
    with binding("other", "nosuch"):
        (warning,) = check_databases(None, databases=["other"])
    assert warning.id == "safemigrate.W007"
    assert '"nosuch" does not exist' in warning.msg
