"""``safemigrate.override``: the same under the name of ``migrate``."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from django.core import checks, management
from django.core.management import call_command, get_commands
from django.db import connection, migrations, models
from django.test import override_settings
from django.test.utils import (
    CaptureQueriesContext,
    setup_test_environment,
    teardown_test_environment,
)

from safemigrate.locking import lock
from safemigrate.management.commands import safemigrate
from safemigrate.override.management.commands.migrate import Command
from tests.support.databases import behind, execute, put_behind, rows
from tests.support.project import Project, run_python
from tests.support.sites import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ABOVE = ["safemigrate.override", "django.contrib.contenttypes", "django.contrib.auth", "tests.app"]
BELOW = [*ABOVE[1:], "safemigrate.override"]
OWN = "tests.ownmigrate"

above = override_settings(INSTALLED_APPS=ABOVE)


def tags(project: Project) -> None:
    """Add a migration with a table, and one that fills it after putting every sequence behind."""
    project.migration(
        migrations.CreateModel(
            "Tag", [("id", models.AutoField(primary_key=True)), ("name", models.TextField())]
        )
    )
    project.migration(run_python(lambda apps, editor: add_tag(apps, "first")))
    project.migration(run_python(lambda apps, editor: add_tag(apps, "second")))


def add_tag(apps: Any, name: str) -> None:
    apps.get_model("app", "Tag").objects.create(name=name)


@pytest.fixture
def ill(project: Project) -> Project:
    """A project that is migrated up to its last step, with every sequence behind."""
    tags(project)
    project.migrate("app", "0002_step")
    project.migrate("contenttypes")
    put_behind()
    return project


@contextmanager
def an_environment() -> Iterator[None]:
    setup_test_environment()
    try:
        yield
    finally:
        teardown_test_environment()


@pytest.mark.parametrize(
    "installed", [ABOVE, BELOW, [*ABOVE, "safemigrate"], ["safemigrate", *ABOVE]]
)
def test_migrate_heals(ill: Project, installed: list[str]) -> None:
    with override_settings(INSTALLED_APPS=installed):
        assert get_commands()["migrate"] == "safemigrate.override"
        output = ill.migrate("app")
    assert rows("SELECT id, name FROM app_tag ORDER BY id") == [(1, "first"), (2, "second")]
    assert "Resynced public.app_tag_id_seq from 1 to 2 for app_tag.id\n" in output


def test_without_it_migrate_is_djangos(ill: Project) -> None:
    from django.db import IntegrityError

    assert get_commands()["migrate"] == "django.core"
    with pytest.raises(IntegrityError):
        ill.migrate("app")


@above
def test_safemigrate_above_it_runs_once_and_tells_once(ill: Project) -> None:
    with (
        override_settings(INSTALLED_APPS=["safemigrate", *ABOVE]),
        mock.patch.object(safemigrate, "migration_lock", wraps=lock.migration_lock) as taken,
    ):
        output = ill.migrate("app", command="safemigrate")
    assert taken.call_count == 1
    for line in ("Resynced public.app_tag_id_seq", "Applying app.0003_step", "behind and resynced"):
        assert output.count(line) == 1


@above
def test_a_migrate_inside_a_migration_tells_once(project: Project) -> None:
    tags(project)
    project.migrate("app", "0002_step")
    inner = io.StringIO()

    def nest(apps: Any, editor: Any) -> None:
        call_command("migrate", "contenttypes", stdout=inner)

    project.migration(run_python(nest), atomic=False)
    put_behind()
    output = project.migrate("app")
    assert "Applying contenttypes.0001_initial" in inner.getvalue()
    told = output + inner.getvalue()
    sequences = [line.split()[1] for line in told.splitlines() if line.startswith("  Resynced ")]
    assert len(sequences) == len(set(sequences)) > 0


@pytest.mark.parametrize("position", [0, 4, 5])
def test_the_next_migrate_keeps_its_options(ill: Project, position: int) -> None:
    installed = [*ABOVE]
    installed.insert(position, OWN)
    with override_settings(INSTALLED_APPS=installed):
        output = ill.migrate("app", "0002_step", greeting="Good day", whispered=" Ssh.")
        assert output.startswith("Good day, the door is closed. Ssh.\n")
        parser = management.load_command_class(get_commands()["migrate"], "migrate").create_parser(
            "manage.py", "migrate"
        )
        chosen = vars(parser.parse_args(["--greeting", "Hi", "--no-lock"]))
    assert chosen["greeting"] == "Hi"
    assert chosen["no_lock"] is True
    assert ("max_retries" in chosen) == (position > 0)


def test_the_help_names_both_kinds_of_options() -> None:
    with override_settings(INSTALLED_APPS=[*ABOVE, OWN]):
        text = Command().create_parser("manage.py", "migrate").format_help()
    for option in ("--fake-initial", "--greeting", "--max-retries", "--lock-wait"):
        assert option in text
    assert "Open the door." in text
    assert "Take no migration lock" not in text


def test_a_second_safemigrate_below_is_passed_over() -> None:
    theirs = safemigrate.Command()
    load = management.load_command_class

    def loaded(app: str, name: str) -> Any:
        return theirs if app == OWN else load(app, name)

    with (
        override_settings(INSTALLED_APPS=[*ABOVE, OWN]),
        mock.patch.object(management, "load_command_class", loaded),
    ):
        assert type(Command().migrate).__module__ == "django.core.management.commands.migrate"


def test_outside_installed_apps_it_takes_the_first_migrate() -> None:
    with override_settings(INSTALLED_APPS=[OWN]):
        assert type(Command().migrate).__module__ == f"{OWN}.management.commands.migrate"


def test_being_shadowed_is_warned_of() -> None:
    with override_settings(INSTALLED_APPS=[OWN, *ABOVE]):
        (warning,) = [each for each in checks.run_checks() if each.id == "safemigrate.W003"]
    assert f"that of {OWN}, which stands above it" in warning.msg
    assert f'Move "safemigrate.override" above "{OWN}"' in str(warning.hint)


@pytest.mark.parametrize("installed", [ABOVE, [*ABOVE, OWN], [OWN, *ABOVE[1:]]])
def test_not_being_shadowed_is_not_warned_of(installed: list[str]) -> None:
    with override_settings(INSTALLED_APPS=installed):
        assert [each for each in checks.run_checks() if each.id == "safemigrate.W003"] == []


def of_being_alone(installed: list[str]) -> list[checks.CheckMessage]:
    with override_settings(INSTALLED_APPS=installed):
        return [each for each in checks.run_checks() if each.id == "safemigrate.W004"]


def test_being_alone_is_warned_of() -> None:
    (warning,) = of_being_alone(ABOVE)
    assert warning.msg == "safemigrate.override is installed, and safemigrate is not."
    assert 'Add "safemigrate" to INSTALLED_APPS' in str(warning.hint)


def test_not_being_alone_is_not_warned_of() -> None:
    assert of_being_alone([*ABOVE, "safemigrate"]) == []


# --- Test databases -------------------------------------------------------------------------------


@pytest.fixture
def locks() -> Iterator[mock.Mock]:
    with mock.patch.object(safemigrate, "migration_lock", wraps=lock.migration_lock) as taken:
        yield taken


@above
def test_tests_take_no_lock(project: Project, locks: mock.Mock) -> None:
    with an_environment():
        project.migrate()
    assert locks.call_count == 0
    assert rows("SELECT count(*) FROM auth_permission") == [(16,)]


@above
def test_others_do(project: Project, locks: mock.Mock) -> None:
    project.migrate()
    assert locks.call_count == 1


@above
def test_plans_take_no_lock(project: Project, locks: mock.Mock) -> None:
    project.migrate(plan=True)
    assert locks.call_count == 0


@above
def test_verbosity_0_is_silent(ill: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert ill.migrate("app", verbosity=0) == ""
    assert capfd.readouterr() == ("", "")
    assert "app_tag" not in behind()


def statements(work: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as sent:
        work()
    return len(sent)


def test_an_empty_database_costs_few_statements_more(project: Project) -> None:
    plain = statements(project.migrate)
    execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with above, an_environment():
        ours = statements(project.migrate)
    tables_that_are_filled = 3
    assert ours - plain <= 6 * tables_that_are_filled


SETTINGS = """
INSTALLED_APPS = ["safemigrate.override", *INSTALLED_APPS[:2], "shop"]
"""
MIGRATION = """
from django.db import migrations, models


def harm(apps, editor):
    apps.get_model("shop", "Tag").objects.create(id=1, name="given")


def fill(apps, editor):
    apps.get_model("shop", "Tag").objects.create(name="drawn")


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Tag", [
            ("id", models.AutoField(primary_key=True)), ("name", models.TextField()),
        ]),
        migrations.RunPython(harm),
        migrations.RunPython(fill),
    ]
"""
MODELS = """
from django.db import models


class Tag(models.Model):
    id = models.AutoField(primary_key=True)
    name = models.TextField()
"""
TESTS = """
from django.db import connection
from django.test import TestCase, TransactionTestCase

from shop.models import Tag


class TagTests(TestCase):
    def test_what_the_migration_left(self):
        self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))
        self.assertEqual(list(Tag.objects.values_list("id", "name").order_by("id")),
                         [(1, "given"), (2, "drawn")])


class FlushedTests(TransactionTestCase):
    def test_before_the_flush(self):
        self.assertTrue(Tag.objects.exists())
"""


@pytest.fixture
def shop(database: str, tmp_path: Path) -> Site:
    """A project on disk whose migration puts a sequence behind and then draws from it."""
    site = Site(tmp_path)
    site.write(
        settings=SETTINGS, shop__models=MODELS, shop__tests=TESTS, shop__migrations__0001=MIGRATION
    )
    return site


@pytest.mark.parametrize("parallel", ["1", "2"])
def test_manage_py_test(shop: Site, parallel: str) -> None:
    done = shop.manage("test", "--parallel", parallel, "--noinput")
    assert done.returncode == 0, done.stderr
    assert "Ran 2 tests" in done.stderr
    assert "Resynced" not in done.stdout + done.stderr
    assert "safemigrate" not in done.stdout


def test_manage_py_test_tells_where_migrate_does(shop: Site) -> None:
    done = shop.manage("test", "--noinput", "-v", "2")
    assert done.returncode == 0, done.stderr
    assert "  Resynced public.shop_tag_id_seq from 1 to 2 for shop_tag.id\n" in done.stdout


def test_manage_py_migrate(shop: Site) -> None:
    done = shop.manage("migrate")
    assert done.returncode == 0, done.stderr
    assert "Resynced public.shop_tag_id_seq from 1 to 2" in done.stdout
    assert rows("SELECT id, name FROM shop_tag ORDER BY id") == [(1, "given"), (2, "drawn")]
    assert shop.manage("migrate", "--check").returncode == 0
