"""A run that could not be recorded does not begin."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connection, migrations
from django.test.utils import CaptureQueriesContext

from safemigrate.management.preflight import requiring_record
from safemigrate.sequences.losses import CANNOT_RECORD
from tests.support.databases import execute, rows, sqlite, value
from tests.support.models import shop
from tests.support.project import Project, contents
from tests.support.runs import counted

LOSE = "ALTER TABLE django_migrations ALTER id DROP IDENTITY"
REFUSAL = "no migration could be recorded. Nothing was changed in schema public. Type: "


@pytest.fixture
def lost(project: Project) -> Project:
    """Make a database that has lost its record's identity, with the shop to be migrated."""
    project.migrate()
    execute(LOSE)
    project.migration(*shop())
    return project


@pytest.mark.parametrize("options", [{}, {"fake": True}, {"verbosity": 0}, {"no_heal": True}])
def test_nothing_is_changed(lost: Project, options: dict[str, Any]) -> None:
    execute("SELECT setval('auth_permission_id_seq', 1, false)")
    before = contents()
    with pytest.raises(CommandError, match=REFUSAL) as refused:
        lost.migrate(command="safemigrate", **options)
    assert str(refused.value).endswith("Type: python manage.py resyncsequences --restore-defaults")
    assert contents() == before
    assert rows("SELECT is_called FROM auth_permission_id_seq") == [(False,)]


def test_what_it_says_to_type(lost: Project) -> None:
    lost.migrate(command="resyncsequences", restore_defaults=True)
    lost.migrate(command="safemigrate")
    assert rows("SELECT to_regclass('app_product') IS NOT NULL") == [(True,)]


def test_another_schema(project: Project) -> None:
    execute('CREATE SCHEMA "B b"; SET search_path = "B b"')
    project.migrate()
    execute(LOSE)
    project.migration(migrations.RunSQL("CREATE TABLE t (id int)"))
    with pytest.raises(CommandError, match=r"resyncsequences --restore-defaults --schema 'B b'$"):
        project.migrate(command="safemigrate")
    project.migrate(command="resyncsequences", restore_defaults=True, schemas=["B b"])
    project.migrate(command="safemigrate")


def test_runs_that_record_nothing(project: Project) -> None:
    first = project.migration(migrations.RunSQL("", ""))
    project.migration(migrations.RunSQL("", ""))
    project.migrate()
    execute(LOSE)
    project.migrate(command="safemigrate")
    project.migrate("app", first, command="safemigrate")
    assert rows("SELECT count(*) FROM django_migrations WHERE app = 'app'") == [(1,)]
    project.migrate(command="safemigrate", plan=True)


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE SEQUENCE s; ALTER TABLE django_migrations ALTER id SET DEFAULT nextval('s')",
        "ALTER TABLE django_migrations ALTER id SET DEFAULT random() * 100000 + 1000",
        """
        ALTER TABLE django_migrations
            DROP CONSTRAINT django_migrations_pkey, ALTER id DROP NOT NULL
        """,
        """
        CREATE SEQUENCE s START 1000;
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN NEW.id := nextval(''s''); RETURN NEW; END';
        CREATE TRIGGER fill BEFORE INSERT ON django_migrations
            FOR EACH ROW EXECUTE FUNCTION fill()
        """,
        """
        CREATE SEQUENCE s START 1000;
        CREATE TABLE record (LIKE django_migrations);
        CREATE RULE elsewhere AS ON INSERT TO django_migrations DO INSTEAD
            INSERT INTO record VALUES (nextval('s'), NEW.app, NEW.name, NEW.applied)
            RETURNING id, app, name, applied
        """,
        """
        ALTER TABLE django_migrations RENAME TO record;
        CREATE TABLE django_migrations (LIKE record) PARTITION BY LIST (app);
        CREATE SEQUENCE s START 1000;
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN NEW.id := nextval(''s''); RETURN NEW; END';
        CREATE TRIGGER fill BEFORE INSERT ON record FOR EACH ROW EXECUTE FUNCTION fill();
        ALTER TABLE django_migrations ATTACH PARTITION record DEFAULT
        """,
    ],
    ids=["default", "computed", "nullable", "trigger", "rule", "partition"],
)
def test_records_that_take_a_row(lost: Project, sql: str) -> None:
    execute(sql)
    lost.migrate(command="safemigrate")


def test_a_migration_that_would_restore_it_is_refused_too(project: Project) -> None:
    """A limit: what a migration will do is not known before."""
    project.migrate()
    execute(LOSE)
    restore = "ALTER TABLE django_migrations ALTER id ADD GENERATED ALWAYS AS IDENTITY"
    project.migration(migrations.RunSQL(restore))
    with pytest.raises(CommandError, match=REFUSAL):
        project.migrate(command="safemigrate")


def test_an_empty_database(project: Project) -> None:
    project.migrate(command="safemigrate")
    assert value("SELECT count(*) > 0 FROM django_migrations")


def test_once_for_all_apps(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptureQueriesContext(connection) as captured, counted(monkeypatch) as sent:
        project.migrate(command="safemigrate")
    assert len([each for each in sent if CANNOT_RECORD in each]) == 1
    assert not any("to_regclass" in query["sql"] for query in captured.captured_queries)


def test_its_own_error_is_not_the_run_s(lost: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemigrate.sequences.losses.CANNOT_RECORD", "SELECT 1 / 0, %s, %s")
    execute("ALTER TABLE django_migrations ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 99)")
    with counted(monkeypatch) as sent:
        lost.migrate(command="safemigrate")
    assert len([each for each in sent if "1 / 0" in each]) == 1


def test_other_vendors(database: str) -> None:
    from django.db.models.signals import pre_migrate

    with sqlite(), requiring_record():
        pre_migrate.send(None, using="other", plan=[(None, False)])
