"""safemigrate where others stand in the way of ``migrate`` too, or beside it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings

from tests.locking.test_pgbouncer import PGBOUNCER, bouncer  # noqa: F401 - a fixture
from tests.support.databases import behind, execute, keys, next_value, put_behind, rows
from tests.support.models import create, shop
from tests.support.project import Law, Outcome, Project, contents, run_python
from tests.support.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INSTALLED = ["django.contrib.contenttypes", "django.contrib.auth", "safemigrate", "tests.app"]


def fill(apps: Any, editor: Any) -> None:
    Tag, Product = apps.get_model("app", "Tag"), apps.get_model("app", "Product")
    for name in ("first", "second"):
        tag = Tag.objects.create(name=name)
        Product.objects.create(name=name, main=tag).tags.add(tag)


@pytest.fixture
def half(project: Project) -> Project:
    """A project with rows in every table, and a table and rows still to come."""
    project.migration(*shop())
    project.migration(run_python(fill))
    project.begin_with("half")
    project.migration(run_python(fill))
    project.migration(create("Later"))
    return project


def sequences() -> dict[str, int]:
    return {sequence: next_value(sequence) for *_, sequence in keys()}


# --- A migrate command of the project's own -------------------------------------------------------


@pytest.mark.parametrize("position", [0, 4])
def test_a_migrate_of_the_project(half: Project, law: Law, position: int) -> None:
    installed = [*INSTALLED]
    installed.insert(position, "tests.ownmigrate")
    with override_settings(INSTALLED_APPS=installed):
        outcome = law.holds(greeting="Good day", no_lock=True, whispered=" Ssh.")
    assert outcome.lines[0] == "Good day, the door is open. Ssh."
    assert outcome.notices


@pytest.mark.parametrize("chosen", ["by option", "by environment"])
def test_tenants_in_processes_of_their_own_are_refused(
    half: Project, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    options = {"executor": "subprocess"} if chosen == "by option" else {}
    if chosen == "by environment":
        monkeypatch.setenv("EXECUTOR", "subprocess")
    half.migrate("app", "0002_step", command="safemigrate")  # Django's own has no executors
    installed = [*INSTALLED, "tests.ownmigrate"]
    with (
        override_settings(INSTALLED_APPS=installed),
        pytest.raises(CommandError, match="where safemigrate can't heal"),
    ):
        half.migrate(command="safemigrate", **options)


def test_lines_that_are_written_past_the_command(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a migration's print() does, and each migrate of django-tenants."""
    project.migration(*shop())

    def fill_and_print(apps: Any, editor: Any) -> None:
        tags = apps.get_model("app.Tag").objects
        print("filling ...", end="")  # noqa: T201
        tags.create(pk=next_value("app_tag_id_seq"), name="in the way")
        tags.create(name="past it")
        print(" filled")  # noqa: T201

    project.migration(run_python(fill))
    project.migration(run_python(fill_and_print))
    call_command("safemigrate", no_color=True)
    printed = capsys.readouterr().out
    assert "  Applying app.0003_step...filling ... filled\n  Resynced " in printed


# --- Other execute wrappers -----------------------------------------------------------------------


class ReadOnlyError(Exception):
    """What django-read-only's hook raises: not one of the database's errors."""


def forbid_writing(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    if not sql.lstrip(" (").startswith(("SELECT ", "SET ", "SAVEPOINT ", "RELEASE ", "ROLLBACK ")):
        raise ReadOnlyError(sql)
    return execute(sql, params, many, context)


def add_comment(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* app's 100%% own; */ {sql} -- at the end", params, many, context)


def add_nothing(execute: Any, *args: Any) -> Any:
    return execute(*args)


@contextmanager
def hooked(wrapper: Any, position: int) -> Iterator[None]:
    """Install a wrapper for good, as apps do it in ready()."""
    connection.execute_wrappers.insert(position, wrapper)
    try:
        yield
    finally:
        connection.execute_wrappers.remove(wrapper)


@pytest.mark.parametrize("position", [0, 1])
def test_wrappers_that_rewrite(half: Project, law: Law, position: int) -> None:
    with hooked(add_comment, 0), hooked(add_nothing, position):
        assert law.holds().notices
        assert len(connection.execute_wrappers) == 2
    assert connection.execute_wrappers == []


def test_a_wrapper_that_forbids_writing(half: Project, law: Law) -> None:
    put_behind()
    before = sequences()
    with hooked(forbid_writing, 0), pytest.raises(ReadOnlyError):
        half.migrate(command="safemigrate")
    assert sequences() == before


def test_a_wrapper_that_forbids_writing_on_the_way(project: Project, law: Law) -> None:
    """It stands between us and the database, and would forbid what we do but not the INSERT."""
    project.migration(*shop())
    project.migration(run_python(fill))
    project.migrate()

    def forbid_with(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if sql.lstrip().startswith("WITH"):
            raise ReadOnlyError(sql)
        return execute(sql, params, many, context)

    def fill_under_watch(apps: Any, editor: Any) -> None:
        with connection.execute_wrapper(forbid_with):
            fill(apps, editor)

    project.migration(run_python(fill_under_watch))
    assert law.holds().notices


def test_a_wrapper_that_comes_and_goes_in_a_migration(project: Project, law: Law) -> None:
    project.migration(*shop())
    project.migration(run_python(fill))
    project.migrate()
    seen = []

    def watch(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    def fill_under_watch(apps: Any, editor: Any) -> None:
        with connection.execute_wrapper(watch):
            fill(apps, editor)

    project.migration(run_python(fill_under_watch))
    project.migration(run_python(fill))
    assert law.holds().notices
    on_the_healthy_twin, on_the_ill_one = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert on_the_ill_one == on_the_healthy_twin
    assert connection.execute_wrappers == []


# --- AUTOCOMMIT: False, where migrate commits nothing ---------------------------------------------


@contextmanager
def without_autocommit() -> Iterator[None]:
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = False
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["AUTOCOMMIT"] = True


def end(law: Law, command: str) -> Outcome:
    """Run a command without autocommit; what its outcome holds is what was there to its end."""
    with without_autocommit():
        return law.run(command)


@pytest.mark.parametrize("ill", [False, True])
def test_without_autocommit_the_same_nothing(half: Project, law: Law, ill: bool) -> None:
    if ill:
        put_behind()
    before, ground = contents(), sequences()
    expected, drawn = end(law, "migrate"), sequences()
    assert contents() == before
    for sequence, value in ground.items():
        execute("SELECT setval(%s::regclass, %s, false)", [sequence, value])
    actual = end(law, "safemigrate")
    assert contents() == before
    assert sequences() == drawn
    assert (actual.failure is not None) == ill
    assert actual.failure == expected.failure
    assert actual.lines == expected.lines
    assert actual.notices == []


# --- PgBouncer in transaction pooling -------------------------------------------------------------


@contextmanager
def through(settings: dict[str, str]) -> Iterator[None]:
    before = {name: connection.settings_dict[name] for name in settings}
    connection.close()
    connection.settings_dict.update(settings)
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.update(before)


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
def test_through_pgbouncer(
    half: Project,
    law: Law,
    monkeypatch: pytest.MonkeyPatch,
    bouncer: dict[str, str],  # noqa: F811
) -> None:
    run = law.run

    def run_through(*args: Any, **options: Any) -> Outcome:
        with through(bouncer):
            return run(*args, **options)

    monkeypatch.setattr(law, "run", run_through)
    assert law.holds().notices


# --- A router, two PostgreSQL databases and one of another vendor ---------------------------------

SETTINGS = """
LABELS = {"here": "default", "there": "other", "lite": "lite"}
DATABASES["other"] = {**DATABASES["default"], "NAME": os.environ["TEST_OTHER"]}
DATABASES["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["TEST_LITE"]}
DATABASE_ROUTERS = ["router.Router"]
INSTALLED_APPS += LABELS
"""
ROUTER = """
from django.conf import settings


class Router:
    def db_for_read(self, model, **hints):
        return settings.LABELS.get(model._meta.app_label)

    db_for_write = db_for_read

    def allow_migrate(self, db, app_label, **hints):
        return db == settings.LABELS.get(app_label, db)
"""
MODELS = """
from django.db import models


class Thing(models.Model):
    name = models.TextField()
"""
FIRST = """
from django.db import migrations, models


def fill(apps, editor):
    if editor.connection.alias == {alias!r}:
        apps.get_model({label!r}, "Thing").objects.create(name="first")


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Thing", [
            ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField()),
        ]),
        migrations.RunPython(fill),
    ]
"""
# Whichever alias is migrated, the rows go where the router sends them.
SECOND = """
from django.db import migrations


def fill(apps, editor):
    for label in ("here", "there", "lite"):
        apps.get_model(label, "Thing").objects.create(name=editor.connection.alias)


class Migration(migrations.Migration):
    dependencies = [("here", "0001"), ("there", "0001"), ("lite", "0001")]
    operations = [migrations.RunPython(fill)]
"""


@pytest.fixture
def routed(database: str, other_database: str, tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.write(settings=SETTINGS, router=ROUTER)
    for label, alias in {"here": "default", "there": "other", "lite": "lite"}.items():
        first = FIRST.format(alias=alias, label=label)
        site.write(**{f"{label}__models": MODELS, f"{label}__migrations__0001": first})
    return site


def test_a_router_and_another_vendor(routed: Site, tmp_path: Path) -> None:
    other = connections["other"].settings_dict["NAME"]
    lite = tmp_path / "lite.sqlite3"

    def manage(command: str, *args: str) -> None:
        done = routed.manage(command, *args, TEST_OTHER=other, TEST_LITE=str(lite))
        assert done.returncode == 0, done.stderr

    for alias in ("default", "other", "lite"):
        manage("migrate", "--database", alias)
    routed.write(here__migrations__0002=SECOND)
    put_behind()
    with connections["other"].cursor() as cursor:
        cursor.execute("SELECT setval('there_thing_id_seq', 1, false)")
        cursor.execute("SELECT setval('django_migrations_id_seq', 1, false)")
    for alias in ("default", "other", "lite"):
        manage("safemigrate", "--database", alias)
        manage("migrate", "--check", "--database", alias)
    expected = [(1, "first"), (2, "default")]
    assert rows("SELECT id, name FROM here_thing ORDER BY id") == expected
    with connections["other"].cursor() as cursor:
        cursor.execute("SELECT id, name FROM there_thing ORDER BY id")
        assert list(cursor.fetchall()) == expected
    assert behind() == []
