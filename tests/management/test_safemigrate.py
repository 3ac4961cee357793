"""The command: every option of ``migrate``, its output, its exit status, and its own options."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.color import color_style
from django.db import IntegrityError, migrations
from django.test import override_settings

from safemigrate.management.commands.safemigrate import Command
from tests.support.databases import (
    behind,
    binding,
    execute,
    keys,
    locked,
    next_value,
    put_behind,
    value,
)
from tests.support.models import create, shop
from tests.support.project import Law, Project, run_python

if TYPE_CHECKING:
    from collections.abc import Callable


def sequences() -> dict[str, int]:
    return {sequence: next_value(sequence) for *_, sequence in keys()}


@pytest.fixture
def shop_to_do(project: Project) -> Project:
    """Make a database where all but the shop is migrated."""
    project.begin_with("contrib")
    project.migration(create("Tag"))
    project.migration(*shop()[1:])
    return project


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([], {}),
        (["app"], {}),
        (["app", "0001"], {}),
        (["app", "zero"], {}),
        ([], {"fake": True}),
        (["app"], {"fake": True}),
        ([], {"fake_initial": True}),
        ([], {"run_syncdb": True}),
        ([], {"interactive": False}),
        ([], {"verbosity": 0}),
        ([], {"verbosity": 3}),
        (["nonsense"], {}),
        (["app", "nonsense"], {}),
        (["app"], {"prune": True}),
    ],
)
def test_the_options_of_migrate(
    shop_to_do: Project, law: Law, args: list[str], options: dict[str, Any]
) -> None:
    law.holds(*args, **options)


def test_fake_initial_of_tables_that_are_there(shop_to_do: Project, law: Law) -> None:
    execute("CREATE TABLE app_tag (id bigserial PRIMARY KEY, name text NULL)")
    execute("INSERT INTO app_tag (name) VALUES ('there')")
    outcome = law.holds(fake_initial=True)
    assert outcome.error is None
    assert "  Applying app.0001_step... FAKED" in outcome.lines


@pytest.mark.parametrize("target", ["0001", "zero"])
def test_backwards(shop_to_do: Project, law: Law, target: str) -> None:
    shop_to_do.migrate()

    def remember(apps: Any, editor: Any) -> None:
        apps.get_model("app", "Tag").objects.create(name="taken back")

    execute("INSERT INTO app_tag (name) VALUES ('a'), ('b')")
    shop_to_do.migration(run_python(migrations.RunPython.noop, reverse_code=remember))
    shop_to_do.migrate()
    outcome = law.holds("app", target)
    assert outcome.error is None
    assert any("Unapplying app.0003_step... OK" in line for line in outcome.lines)


def test_squashed_migrations(project: Project, law: Law) -> None:
    project.migrate()
    first = project.migration(create("Tag"))
    second = project.migration(*shop()[1:])
    project.migrate("app", "0001")
    project.migration(*shop(), replaces=[("app", first), ("app", second)], dependencies=[])
    outcome = law.holds()
    assert outcome.error is None
    assert outcome.notices


@pytest.mark.parametrize("option", ["plan", "check_unapplied"])
def test_plan_and_check_write_nothing(shop_to_do: Project, law: Law, option: str) -> None:
    put_behind()
    before = sequences()
    outcome = law.run("safemigrate", **{option: True})
    assert sequences() == before
    assert outcome.notices == []
    if option == "check_unapplied":
        assert isinstance(outcome.error, SystemExit)
        assert outcome.error.code == 1
    options: dict[str, Any] = {option: True}
    law.holds(**options)


def test_another_database(shop_to_do: Project, other_database: str) -> None:
    shop_to_do.migrate("auth", database="other")
    with binding("default", other_database):
        put_behind()
        assert "django_content_type" in behind()
    untouched = sequences()
    out = shop_to_do.migrate(database="other", command="safemigrate")
    assert "Resynced public.django_migrations_id_seq" in out
    assert sequences() == untouched
    with binding("default", other_database):
        assert behind() == []


def test_call_command_takes_options_in_every_form(shop_to_do: Project) -> None:
    put_behind()
    out = io.StringIO()
    call_command("safemigrate", "app", "0001", "--max-retries=2", "--no-color", stdout=out)
    call_command("safemigrate", app_label="app", max_retries=1, verbosity=1, stdout=out)
    assert "Applying app.0001_step... OK" in out.getvalue()
    assert "Applying app.0002_step... OK" in out.getvalue()


def test_a_database_that_does_not_come(shop_to_do: Project) -> None:
    with binding("default", "never_there"), pytest.raises(CommandError) as caught:
        shop_to_do.migrate(command="safemigrate", wait_for_database=1)
    assert str(caught.value).startswith('Gave up after 1 s: database "default": ')
    assert 'database "never_there" does not exist' in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": "many"},
        {"lock_wait": -1},
        {"wait_for_database": "soon"},
    ],
)
def test_values_that_make_no_sense(shop_to_do: Project, options: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match="whole number"):
        shop_to_do.migrate(command="safemigrate", **options)
    ((name, given),) = options.items()
    with pytest.raises(CommandError, match="whole number"):
        call_command("safemigrate", f"--{name.replace('_', '-')}={given}")
    assert value("SELECT to_regclass('app_tag')") is None


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("SAFEMIGRATE_MAX_RETRIES", -1),
        ("SAFEMIGRATE_MAX_RETRIES", "3"),
        ("SAFEMIGRATE_HEAL", "no"),
        ("SAFEMIGRATE_LOCK", 1),
        ("SAFEMIGRATE_LOCK_WAIT", None),
        ("SAFEMIGRATE_WAIT_FOR_DATABASE", True),
    ],
)
def test_settings_that_make_no_sense(shop_to_do: Project, name: str, given: Any) -> None:
    with override_settings(**{name: given}), pytest.raises(CommandError, match=name):
        shop_to_do.migrate(command="safemigrate")
    assert value("SELECT to_regclass('app_tag')") is None


@pytest.mark.parametrize("by_setting", [False, True])
def test_no_heal_touches_nothing_and_says_what_it_found(
    shop_to_do: Project, by_setting: bool, caplog: pytest.LogCaptureFixture
) -> None:
    put_behind()
    before = sequences()
    out, err = io.StringIO(), io.StringIO()
    options = {} if by_setting else {"no_heal": True}
    with (
        override_settings(SAFEMIGRATE_HEAL=not by_setting),
        pytest.raises(IntegrityError, match="django_migrations_pkey"),
    ):
        shop_to_do.migrate(command="safemigrate", stdout=out, stderr=err, **options)
    after = sequences()
    # The plain draw that failed; nothing else.
    assert {name for name in before if before[name] != after[name]} == {"django_migrations_id_seq"}
    assert "Sequence public.django_migrations_id_seq is behind" in err.getvalue()
    assert "SELECT pg_catalog.setval('public.django_migrations_id_seq'" in err.getvalue()
    assert err.getvalue().splitlines()[0].removeprefix("safemigrate: ") in caplog.text


# Collides when it is drawn from, wherever the look finds it: the trigger puts it back each time.
RELAPSING = """
    CREATE FUNCTION relapse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF currval('app_tag_id_seq') < 1000 THEN
            PERFORM setval('app_tag_id_seq', 1);
            INSERT INTO app_audit (name) VALUES ('x');
        END IF;
        RETURN NEW;
    END $$;
    CREATE TABLE app_audit (id serial PRIMARY KEY, name text);
    CREATE TRIGGER relapse BEFORE INSERT ON app_tag FOR EACH ROW EXECUTE FUNCTION relapse();
    CREATE FUNCTION fall() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM setval('app_audit_id_seq', 1, false);
        RETURN NULL;
    END $$;
    INSERT INTO app_audit (name) VALUES ('old'), ('older');
    CREATE TRIGGER fall BEFORE INSERT ON app_audit FOR EACH STATEMENT EXECUTE FUNCTION fall();
"""


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_retries_are_bounded(project: Project, retries: int) -> None:
    """A trigger that puts its sequence behind each time can't be healed: the error gets out."""
    project.migration(create("Tag"))
    project.migrate()
    execute("INSERT INTO app_tag (name) VALUES ('old')")
    execute(RELAPSING)
    sent = []

    def count(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        sent.append(str(sql))
        return execute(sql, params, many, context)

    def fill(apps: Any, editor: Any) -> None:
        # Installed after ours, so what ours repeats passes through it.
        with editor.connection.execute_wrapper(count):
            execute("INSERT INTO app_tag (name) VALUES ('new')")

    project.migration(run_python(fill), atomic=False)
    with pytest.raises(IntegrityError, match="app_audit_pkey"):
        project.migrate(command="safemigrate", max_retries=retries)
    assert sent.count("INSERT INTO app_tag (name) VALUES ('new')") == 1 + retries


def test_no_retries_still_resyncs(project: Project) -> None:
    project.migration(create("Tag"))
    project.migrate()
    execute("INSERT INTO app_tag (name) VALUES ('old'), ('older'), ('oldest')")
    project.migration(
        migrations.RunSQL("SELECT setval('app_tag_id_seq', 1, false)"),
        migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('new')"),
        atomic=False,
    )
    err = io.StringIO()
    with pytest.raises(IntegrityError, match="app_tag_pkey"):
        project.migrate(command="safemigrate", max_retries=0, stderr=err)
    assert behind() == []
    assert "The statement was not retried, because retries are off" in err.getvalue()


def test_the_notices_break_no_line(shop_to_do: Project) -> None:
    put_behind()
    lines = shop_to_do.migrate(command="safemigrate").splitlines()
    at = lines.index("Running migrations:")
    assert lines[at - 1].startswith("  Resynced public.django_migrations_id_seq from 1 to ")
    assert lines[at - 1].endswith(" for django_migrations.id")
    assert lines[-1] == "3 sequences were behind and resynced; 0 statements retried."


def test_nothing_is_printed_at_verbosity_0(
    shop_to_do: Project, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    put_behind()
    with caplog.at_level(logging.INFO, "safemigrate"):
        call_command("safemigrate", verbosity=0)
    assert capsys.readouterr() == ("", "")
    assert "Resynced public.django_migrations_id_seq" in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "is_told"),
    [(Terminal, 0.1, True), (Terminal, 60.0, False), (io.StringIO, 0.1, False)],
    ids=["slow", "quick", "no-terminal"],
)
def test_a_sweep_that_takes_long_is_told_of_on_a_terminal(
    shop_to_do: Project,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    patience: float,
    is_told: bool,
) -> None:
    """It waits a second for the table that another session has locked."""
    monkeypatch.setattr("safemigrate.management.progress.PATIENCE", patience)
    printed = stream()
    with locked("auth_group"):
        shop_to_do.migrate(command="safemigrate", stdout=printed, stderr=io.StringIO())

    assert ("Checking every sequence ...\n" in printed.getvalue()) is is_told


@pytest.mark.parametrize("color", [False, True])
def test_colors_are_those_of_migrate(shop_to_do: Project, color: bool) -> None:
    put_behind()
    out = io.StringIO()
    call_command("safemigrate", force_color=color, no_color=not color, stdout=out)
    heading = color_style(force_color=True).MIGRATE_HEADING("Running migrations:")
    assert (heading in out.getvalue()) == color
    assert ("\x1b[" in out.getvalue()) == color
    ours = "3 sequences were behind and resynced; 0 statements retried."
    assert (color_style(force_color=True).MIGRATE_HEADING(ours) in out.getvalue()) == color


def test_notes_on_a_terminal_have_no_color_where_none_is_wanted(
    shop_to_do: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_behind()
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    with pytest.raises(IntegrityError):
        call_command("safemigrate", no_heal=True, no_color=True, stdout=io.StringIO())
    assert "safemigrate: Sequence public.django_migrations_id_seq is behind" in err.getvalue()
    assert "\x1b[" not in err.getvalue()


def test_a_name_that_stdout_can_not_encode_is_escaped(shop_to_do: Project) -> None:
    execute('CREATE TABLE "Ωmega" (id serial PRIMARY KEY); INSERT INTO "Ωmega" VALUES (1)')
    written = io.BytesIO()
    out = io.TextIOWrapper(written, encoding="latin-1")
    call_command("safemigrate", stdout=out)
    out.flush()
    assert rb"Resynced public.\u03a9mega_id_seq from 1 to 2" in written.getvalue()


def test_help_has_every_option_of_migrate_and_a_heading_for_ours() -> None:
    theirs = Command().migrate.create_parser("manage.py", "migrate").format_help()
    ours = Command().create_parser("manage.py", "safemigrate").format_help()
    options = {word.strip(",") for word in theirs.split() if word.startswith("--")}
    assert options <= {word.strip(",") for word in ours.split()}
    assert "usage: manage.py safemigrate" in ours
    before, heading, after = ours.partition("\nsafemigrate:\n")
    assert heading
    assert "--max-retries" in after
    assert "--max-retries" not in before.partition("options:")[2]


def test_a_migration_that_fails_by_itself(shop_to_do: Project, law: Law) -> None:
    def fail(apps: Any, editor: Any) -> None:
        raise ZeroDivisionError("by itself")

    shop_to_do.migration(run_python(fail))
    assert isinstance(law.holds().error, ZeroDivisionError)


@pytest.mark.parametrize("leave", [SystemExit(3), KeyboardInterrupt()])
def test_leaving_is_leaving(project: Project, leave: BaseException) -> None:
    def stop(apps: Any, editor: Any) -> None:
        raise leave

    project.migration(run_python(stop))
    with pytest.raises(type(leave)) as caught:
        project.migrate(command="safemigrate")
    assert caught.value is leave


def outer(code: Callable[[], Any]) -> Any:
    return run_python(lambda apps, editor: code())


def test_a_run_inside_a_run(project: Project, law: Law) -> None:
    """A migration that migrates another app: one healing, and no waiting for itself."""
    project.migrate("contenttypes")
    project.migration(
        outer(lambda: call_command("safemigrate", "auth", verbosity=0)),
        dependencies=[],
        atomic=False,
    )
    put_behind("django_migrations", to=1)
    out = project.migrate("app", command="safemigrate")
    assert out.count("Resynced public.django_migrations_id_seq") == 1
    assert behind() == []
