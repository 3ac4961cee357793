"""Indexes that another version of a collation has sorted, and what is typed to make them new."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from django.db import connection

from safemigrate.sequences.losses import find_losses
from safemigrate.sequences.needs import Loss, needs_of_apps
from safemigrate.sequences.scope import current_schemas
from tests.support.databases import binding, execute, value
from tests.support.runs import resyncsequences

if TYPE_CHECKING:
    from tests.support.project import Project

# Not every build has ICU's collations, nor every version the builtin ones.
VERSIONED = """
    SELECT collname FROM pg_collation
    WHERE pg_collation_actual_version(oid) IS NOT NULL AND collencoding IN (-1, 6)
    ORDER BY collname LIMIT 1
"""
INDEX = """
    SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = 'auth_group'::regclass AND i.indisunique AND NOT i.indisprimary
"""


def found() -> list[Loss]:
    return find_losses(connection, needs_of_apps(connection), current_schemas(connection))


def follow(loss: Loss) -> None:
    for statement in loss.sql:
        execute(statement)


def test_a_column_s_own_collation(project: Project) -> None:
    project.migrate()
    name = value(VERSIONED)
    execute(f'ALTER TABLE auth_group ALTER name TYPE varchar(150) COLLATE "{name}"')
    assert found() == []
    execute("UPDATE pg_collation SET collversion = '0' WHERE collname = %s", [name])
    (loss,) = found()
    assert str(loss).startswith("public.auth_group.name: collation mismatch; ")
    assert f"its unique index {value(INDEX)} was sorted by version 0 of collation " in loss.reason
    assert not loss.is_restorable
    printed = resyncsequences("--restore-defaults", status=1)
    assert [f"  type: {statement}" for statement in loss.sql] == printed.splitlines()[-2:]
    follow(loss)
    assert found() == []


def test_an_index_that_is_not_unique(project: Project) -> None:
    """A row that isn't found in it is no duplicate."""
    project.migrate()
    name = value(VERSIONED)
    execute(f'CREATE INDEX ON auth_group (name COLLATE "{name}")')
    execute("UPDATE pg_collation SET collversion = '0' WHERE collname = %s", [name])
    assert found() == []


def test_the_database_s_collation(project: Project) -> None:
    """Each table is told of, and what to type once."""
    version = connection.pg_version  # type: ignore[attr-defined]
    if version < 150000:
        pytest.skip("no version is recorded for a database before PostgreSQL 15")
    locale = "builtin BUILTIN_LOCALE 'C.UTF-8'" if version >= 170000 else "icu ICU_LOCALE 'en'"
    name = f"safemigrate_{os.getpid()}_Collated 'd"
    execute(f'CREATE DATABASE "{name}" TEMPLATE template0 LOCALE_PROVIDER {locale}')
    try:
        with binding("default", name):
            project.migrate()
            assert found() == []
            execute("UPDATE pg_database SET datcollversion = '0' WHERE datname = %s", [name])
            lost = found()
            tables = {"auth_group", "auth_user", "django_content_type"}
            assert {loss.table for loss in lost} >= tables
            assert {loss.status for loss in lost} == {"collation mismatch"}
            assert "by version 0 of the database's collation, and" in lost[0].reason
            printed = resyncsequences("--check", status=1)
            assert printed.count("collation mismatch") == len(lost)
            assert printed.count("REFRESH COLLATION VERSION") == 1
            follow(lost[0])
            assert found() == []
    finally:
        execute(f'DROP DATABASE "{name}"')
