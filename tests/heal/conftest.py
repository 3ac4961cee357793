"""Projects that are migrated and filled already, each built once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connection

from safemigrate.heal.wrapper import Wrapper
from tests.support.databases import execute, put_behind
from tests.support.models import create

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project


@pytest.fixture
def filled(project: Project) -> Project:
    """A project with tables app_item and app_log of twenty rows each."""
    project.migration(create("Item"), create("Log"))

    def fill() -> None:
        for table in ("app_item", "app_log"):
            execute(
                f"INSERT INTO {table} (name) SELECT 'item ' || n FROM generate_series(1, 20) AS n"
            )

    project.begin_with("items", fill)
    return project


@pytest.fixture
def groups(project: Project) -> Iterator[None]:
    """Make a database with three groups, and their sequence behind them."""

    def fill() -> None:
        execute("INSERT INTO auth_group (name) VALUES ('a'), ('b'), ('c')")
        put_behind("auth_group")

    project.begin_with("groups", fill)
    yield
    assert not any(isinstance(each, Wrapper) for each in connection.execute_wrappers)


@pytest.fixture
def functions(groups: None) -> None:
    """Give the database a function that inserts."""
    execute(
        "CREATE FUNCTION add_group(name text) RETURNS int LANGUAGE sql AS"
        " $$ INSERT INTO auth_group (name) VALUES (name) RETURNING id $$"
    )
