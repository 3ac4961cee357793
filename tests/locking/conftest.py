"""What the tests connect as, and the session that blocks them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection

from safemigrate.signals import lock_waited
from tests.support.databases import execute
from tests.support.locks import Blocker
from tests.support.runs import hearing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safemigrate.report import LockWait
    from tests.support.project import Project


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


@pytest.fixture
def blocker(database: str) -> Iterator[Blocker]:
    connection.ensure_connection()
    blocker = Blocker()
    yield blocker
    blocker.twin.close()


observer = blocker


@pytest.fixture
def thing(database: str) -> None:
    execute("CREATE TABLE thing (id int)")
    execute("INSERT INTO thing VALUES (1)")


@pytest.fixture
def waits() -> Iterator[list[LockWait]]:
    with hearing(lock_waited) as heard:
        yield heard


@pytest.fixture
def shop(project: Project) -> Project:
    project.migrate()
    execute("CREATE TABLE thing (id int)")
    execute("CREATE TABLE first (id int)")
    return project
