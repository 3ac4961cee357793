"""``ResyncSequences`` in migrations: applied, taken back, shown, squashed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import migrations, models
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import OperationWriter
from django.test import override_settings

from safemigrate.operations import ResyncSequences
from tests.support.databases import execute, next_value, put_behind, rows, sqlite, value
from tests.support.models import create, shop

if TYPE_CHECKING:
    from tests.support.project import Project

INSERT = migrations.RunSQL("INSERT INTO app_tag (id, name) VALUES (7, 'copied')", "SELECT 1")
NEXT = "INSERT INTO app_tag (name) VALUES ('new') RETURNING id"


@pytest.mark.parametrize("command", ["migrate", "safemigrate"])
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize("names", ["Tag", "tag", "app.Tag", "app_tag", ["Product", "app_tag"], ()])
def test_after_rows_were_copied(project: Project, names: Any, atomic: bool, command: str) -> None:
    """In the very migration that creates the table, and writes to it."""
    project.migration(*shop(), INSERT, ResyncSequences(names), atomic=atomic)
    printed = project.migrate(command=command)
    assert value(NEXT) == 8
    assert ("  Resynced public.app_tag_id_seq from 1 to 8" in printed) is (command == "safemigrate")


def test_on_a_table_that_the_migration_has_locked(project: Project) -> None:
    project.migration(create("Tag"))
    project.migration(
        INSERT,
        migrations.AddField("tag", "size", models.IntegerField(null=True)),
        migrations.RunSQL("LOCK TABLE app_tag IN ACCESS EXCLUSIVE MODE", "SELECT 1"),
        ResyncSequences("Tag"),
    )
    project.migrate()
    assert value("SELECT max(id) FROM app_tag") == 7
    assert next_value("app_tag_id_seq") == 8


def test_an_empty_table(project: Project) -> None:
    project.migration(create("Tag"), ResyncSequences("Tag"))
    project.migrate()
    assert value(NEXT) == 1


def test_taken_back_it_does_nothing(project: Project) -> None:
    project.migration(create("Tag"), INSERT)
    project.migration(ResyncSequences("Tag"))
    project.migrate()
    before = rows("SELECT xmin, * FROM app_tag_id_seq")
    project.migrate("app", "0001")
    assert rows("SELECT xmin, * FROM app_tag_id_seq") == before
    project.migrate()


def test_a_model_of_an_earlier_state(project: Project) -> None:
    """Its table's name is what it was then."""
    project.migration(create("Tag"), INSERT, ResyncSequences("Tag"))
    project.migration(migrations.RenameModel("Tag", "Label"), ResyncSequences("Label"))
    project.migrate()
    assert next_value("app_tag_id_seq") == 8


def test_a_table_that_is_not_there(project: Project) -> None:
    project.migration(ResyncSequences("nosuch"))
    with pytest.raises(LookupError, match="There is no table 'nosuch'"):
        project.migrate()


def test_sqlmigrate_shows_what_it_would_do(project: Project) -> None:
    project.migration(create("Tag"), INSERT)
    name = project.migration(ResyncSequences(["Tag", "app_tag"]))
    shown = project.migrate("app", name, command="sqlmigrate")
    assert "-- Resync the sequences of Tag, app_tag\n" in shown
    assert (
        "-- There is no table 'app_tag'. What is behind can be told only when there is.\n" in shown
    )
    project.migrate("app", "0001")
    shown = project.migrate("app", name, command="sqlmigrate")
    assert (
        "-- Sequence public.app_tag_id_seq is behind public.app_tag.id "
        "(next value 1, largest key 7)\n"
        "SELECT pg_catalog.setval('public.app_tag_id_seq', 7) "
        "FROM public.app_tag_id_seq WHERE last_value <= 7;\n"
    ) in shown
    assert next_value("app_tag_id_seq") == 1
    execute(shown)
    assert next_value("app_tag_id_seq") == 8
    assert "-- (no-op)" in project.migrate("app", name, command="sqlmigrate")
    assert "-- (no-op)" in project.migrate("app", name, command="sqlmigrate", backwards=True)


def test_sqlmigrate_shows_a_name_that_acts_as_a_name(project: Project) -> None:
    name = project.migration(ResyncSequences("x\nDROP TABLE victim; --"))
    shown = project.migrate("app", name, command="sqlmigrate")
    assert all(
        line.startswith("--") for line in shown.splitlines() if line not in ("BEGIN;", "COMMIT;")
    )


def test_the_state_is_untouched() -> None:
    state = ProjectState()
    operation = ResyncSequences("Tag")
    operation.state_forwards("app", state)
    assert state.models == {}


@pytest.mark.parametrize(
    ("operation", "written"),
    [
        (ResyncSequences(), "),"),
        (
            ResyncSequences("Tag"),
            "    names=['Tag'],\n),",
        ),
        (
            ResyncSequences(["Tag", "b"], elidable=True),
            "    names=['Tag', 'b'],\n    elidable=True,\n),",
        ),
    ],
)
def test_it_can_be_written(operation: ResyncSequences, written: str) -> None:
    text, imports = OperationWriter(operation, indentation=0).serialize()
    assert text == f"safemigrate.operations.ResyncSequences(\n{written}"
    assert imports == {"import safemigrate.operations"}
    name, args, kwargs = operation.deconstruct()
    assert (name, args) == ("ResyncSequences", [])
    assert ResyncSequences(**kwargs).deconstruct() == operation.deconstruct()


@pytest.mark.parametrize("elidable", [True, False])
def test_squashed(elidable: bool) -> None:
    operations = [create("Tag"), ResyncSequences("Tag", elidable=elidable), create("Other")]
    left = MigrationOptimizer().optimize(operations, "app")
    assert any(isinstance(each, ResyncSequences) for each in left) is not elidable


class OnlyOther:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return db != "default" or app_label != "app"


def test_a_router_may_keep_it_away(project: Project) -> None:
    project.migration(create("Tag"), INSERT)
    project.migrate()
    put_behind("app_tag")
    project.migration(ResyncSequences("Tag"))
    with override_settings(DATABASE_ROUTERS=["tests.test_operations.OnlyOther"]):
        project.migrate()
    assert next_value("app_tag_id_seq") == 1


def test_other_vendors() -> None:
    state = ProjectState()
    with sqlite() as other, other.schema_editor() as editor:
        ResyncSequences("nosuch").database_forwards("app", editor, state, state)
