"""Cases that a search found: each a law that did not hold."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.db import DataError, connection, migrations, models, transaction

from tests.support.databases import execute, put_behind, rows
from tests.support.project import Project, run_python

ADD_ITEM = """
    CREATE FUNCTION add_item(x text) RETURNS text LANGUAGE sql AS
    $$ INSERT INTO app_item (label) VALUES (x) RETURNING label $$
"""


@pytest.fixture
def filled(project: Project) -> Project:
    """A project with a table app_item of three rows, its sequence put behind."""
    project.migration(
        migrations.CreateModel(
            "Item", [("id", models.BigAutoField(primary_key=True)), ("label", models.TextField())]
        )
    )
    project.migrate()
    execute("INSERT INTO app_item (label) VALUES ('a'), ('b'), ('c')")
    put_behind("app_item")
    return project


def items() -> list[tuple[Any, ...]]:
    return rows("SELECT id, label FROM app_item ORDER BY id")


def test_a_script_that_sets_a_key_and_calls_a_function_that_draws(filled: Project) -> None:
    execute(ADD_ITEM)
    filled.migration(
        migrations.RunSQL("UPDATE app_item SET id = 9 WHERE id = 3; SELECT add_item('d')")
    )
    filled.migrate(command="safemigrate")

    assert sorted(label for _, label in items()) == ["a", "b", "c", "d"]


def test_a_table_swapped_for_another_until_an_error(filled: Project) -> None:
    def swap(apps: Any, editor: Any) -> None:
        with connection.cursor() as cursor:
            with suppress(DataError), transaction.atomic():
                cursor.execute("ALTER TABLE app_item RENAME TO app_old")
                cursor.execute("CREATE TABLE app_item (id serial PRIMARY KEY, label text)")
                cursor.execute("INSERT INTO app_item (label) VALUES ('x')")
                cursor.execute("SELECT 1 / 0")
            cursor.execute("INSERT INTO app_item (label) VALUES ('d')")

    filled.migration(run_python(swap))
    filled.migrate(command="safemigrate")

    assert items() == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
