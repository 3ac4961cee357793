"""One database for the many examples of a property."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Databases


@pytest.fixture(scope="module")
def shared_database(databases: Databases) -> Iterator[str]:
    with databases.bound("default") as name:
        yield name
