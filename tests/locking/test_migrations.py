"""Around each migration: what it is called with is passed on."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.state import ProjectState
from django.db.models.signals import pre_migrate

from safemigrate.locking.migrations import Step, around_migrations
from tests.support.databases import rows


class Migration(migrations.Migration):
    operations = (migrations.RunSQL("CREATE TABLE made (id int)", "DROP TABLE made"),)


@pytest.mark.parametrize(
    ("args", "options"), [((True,), {}), ((), {"collect_sql": True})], ids=["position", "name"]
)
def test_an_executor_of_the_projects_own(database: str, args: Any, options: Any) -> None:
    """One that collects the statements of the plan, as sqlmigrate does."""
    migration = Migration("one", "app")
    met = []

    def around(step: Step) -> ProjectState:
        met.append(step.migration)
        return step.run()

    with (
        around_migrations(connection, around),
        connection.schema_editor(collect_sql=True) as editor,
    ):
        send_plan([(migration, False)])
        migration.apply(ProjectState(), editor, *args, **options)
        migration.apply(project_state=ProjectState(), schema_editor=editor)

    assert met == [migration, migration]
    assert "CREATE TABLE made (id int);" in editor.collected_sql
    assert rows("SELECT to_regclass('made')") == [(None,)]
    assert "apply" not in vars(migration)


def send_plan(plan: Any) -> None:
    config = apps.get_app_config("safemigrate")
    pre_migrate.send(
        config, app_config=config, verbosity=0, interactive=False, using="default", plan=plan
    )
