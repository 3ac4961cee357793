"""Projects that are migrated and filled already, each built once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.databases import execute
from tests.support.models import create

if TYPE_CHECKING:
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
