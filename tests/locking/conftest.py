"""What the tests of the migration lock connect as."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection

from tests.support.databases import execute

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def options() -> Iterator[dict[str, Any]]:
    """The alias's OPTIONS, to be changed; what was is restored."""
    settings = connection.settings_dict
    before = settings["OPTIONS"]
    settings["OPTIONS"] = dict(before)
    connection.close()
    yield settings["OPTIONS"]
    connection.close()
    settings["OPTIONS"] = before


@pytest.fixture
def role() -> Iterator[str]:
    """A role that may log in, and what a role of this name with _assumed behind may."""
    name = f"safemigrate_test_{os.getpid()}"
    execute(f"CREATE ROLE {name} LOGIN NOINHERIT PASSWORD 'x'")
    execute(f"CREATE ROLE {name}_assumed ROLE {name}")
    yield name
    execute(f"DROP OWNED BY {name}, {name}_assumed")
    execute(f"DROP ROLE {name}, {name}_assumed")
