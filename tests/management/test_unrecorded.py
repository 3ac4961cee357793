"""A migration that an earlier run committed and failed to record."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import pytest
from django.core import management
from django.core.management.commands import migrate
from django.db import (
    IntegrityError,
    ProgrammingError,
    connection,
    connections,
    migrations,
    models,
)

from tests.support.databases import binding, execute, put_behind, set_right
from tests.support.models import create, shop

if TYPE_CHECKING:
    from tests.support.project import Project

FAKE = "python manage.py safemigrate app {name} --fake"


def note_of(project: Project, **options: Any) -> str:
    """Run into what is already there; return stderr."""
    err = io.StringIO()
    with pytest.raises(ProgrammingError, match="already exists") as caught:
        project.migrate(command="safemigrate", stderr=err, **options)
    if sys.version_info >= (3, 11) and err.getvalue():
        assert caught.value.__notes__[-1] == err.getvalue().strip()
    return err.getvalue()


@pytest.fixture
def begun(project: Project) -> Project:
    """A database of the contrib apps and the first migration of ``app``."""
    project.migration(create("Tag"))
    project.migrate()
    return project


def test_what_migrate_left_unrecorded(project: Project) -> None:
    project.migrate()
    name = project.migration(*shop())
    put_behind("django_migrations")
    with pytest.raises(IntegrityError):
        project.migrate()
    set_right()

    note = note_of(project)

    assert "an earlier run has committed the migration and failed to record it." in note
    assert note.rstrip().endswith(FAKE.format(name=name))
    project.migrate("app", name, fake=True)
    project.migrate(command="safemigrate")


def test_a_column(begun: Project) -> None:
    name = begun.migration(migrations.AddField("Tag", "size", models.IntegerField(null=True)))
    execute("ALTER TABLE app_tag ADD size integer")
    assert FAKE.format(name=name) in note_of(begun)


def test_another_database_is_named(begun: Project) -> None:
    name = begun.migration(migrations.AddField("Tag", "size", models.IntegerField(null=True)))
    execute("ALTER TABLE app_tag ADD size integer")
    with binding("other", connection.settings_dict["NAME"]):
        assert f"{FAKE.format(name=name)} --database other" in note_of(begun, database="other")


@pytest.mark.parametrize(
    "operations",
    [
        [create("Size"), create("Colour")],
        [
            migrations.AddField("Tag", "colour", models.TextField(null=True)),
            migrations.AddField("Tag", "tags", models.ManyToManyField("app.Tag")),
            create("Size"),
        ],
        [migrations.RunSQL("CREATE TABLE app_size (id bigint)")],
        [
            migrations.AddField("Tag", "colour", models.TextField(null=True)),
            migrations.AddField("Tag", "size", models.TextField(null=True)),
            create("Size"),
        ],
        [create("Size", options={"managed": False}), migrations.RunSQL("CREATE TABLE app_size ()")],
    ],
    ids=[
        "a table is missing",
        "a column is missing",
        "not a model",
        "one of two columns is missing",
        "not managed",
    ],
)
def test_what_was_not_committed_by_it(begun: Project, operations: list[Any]) -> None:
    begun.migration(*operations)
    execute("CREATE TABLE app_size (id bigint PRIMARY KEY, name text)")
    execute("ALTER TABLE app_tag ADD size text")
    assert "--fake" not in note_of(begun)


@pytest.mark.parametrize(
    "operations",
    [
        [create("Size"), migrations.RenameModel("Size", "Width")],
        [create("Size"), migrations.DeleteModel("Size")],
        [
            create("Size"),
            migrations.AddField("Size", "old", models.TextField(null=True)),
            migrations.RenameField("Size", "old", "new"),
        ],
    ],
    ids=["renamed model", "deleted model", "renamed field"],
)
def test_what_the_migration_itself_changes_again(begun: Project, operations: list[Any]) -> None:
    begun.migration(*operations)
    execute("CREATE TABLE app_size (id bigint PRIMARY KEY, name text)")
    assert "--fake" not in note_of(begun)


def test_backwards(begun: Project) -> None:
    begun.migration(
        create("Size"), migrations.RunSQL("SELECT 1", "CREATE TABLE app_tag (id bigint)")
    )
    begun.migrate()
    err = io.StringIO()
    with pytest.raises(ProgrammingError, match="already exists"):
        begun.migrate("app", "0001", command="safemigrate", stderr=err)
    assert "--fake" not in err.getvalue()


def test_a_many_to_many_table_that_is_missing(begun: Project) -> None:
    """A migration that is not atomic may have come as far as the model's own table."""
    tags = ("tags", models.ManyToManyField("app.Tag"))
    name = begun.migration(
        migrations.CreateModel("Item", [("id", models.BigAutoField(primary_key=True)), tags])
    )
    execute("CREATE TABLE app_item (id bigserial PRIMARY KEY)")
    assert "--fake" not in note_of(begun)
    execute("CREATE TABLE app_item_tags (id bigserial PRIMARY KEY)")
    assert FAKE.format(name=name) in note_of(begun)


class EachSchema(migrate.Command):
    """A migrate that runs once for each schema, as those of tenants do."""

    def handle(self, *args: Any, **options: Any) -> None:
        for schema in ("one", "two"):
            execute(f"SET search_path = {schema}")
            connections["default"].schema_name = schema  # type: ignore[attr-defined]
            super().handle(*args, **options)


@pytest.mark.parametrize("is_first_up_to_date", [True, False])
def test_a_tenant_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_first_up_to_date: bool
) -> None:
    execute("CREATE SCHEMA one; CREATE SCHEMA two")
    name = project.migration(create("Tag"))
    for schema in ("one", "two"):
        execute(f"SET search_path = {schema}")
        project.migrate()
    unrecorded = "two" if is_first_up_to_date else "one"
    execute(f"DELETE FROM {unrecorded}.django_migrations WHERE app = 'app'")
    monkeypatch.setitem(management.get_commands(), "migrate", EachSchema())
    monkeypatch.setattr(connections["default"], "schema_name", "", raising=False)
    assert f"{FAKE.format(name=name)} --schema {unrecorded}\n" in note_of(project)
