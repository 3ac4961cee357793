"""What models need and a database has lost: found, and put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connection

from safemigrate.sequences.expected import Loss, losses, needs_of_models, restore
from safemigrate.sequences.sweep import current_schemas
from tests.support.databases import execute, rows

if TYPE_CHECKING:
    from tests.support.project import Project

TABLE = "auth_group_permissions"
DEFINITION = """
    SELECT data_type, is_nullable, column_default, is_identity, identity_generation,
        pg_get_serial_sequence(quote_ident(table_schema) || '.' || quote_ident(table_name), 'id')
    FROM information_schema.columns WHERE table_name = %s AND column_name = 'id'
"""


def found() -> list[Loss]:
    return losses(connection, needs_of_models(connection), current_schemas(connection))


def statuses() -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for loss in found():
        tables.setdefault(loss.table, []).append(loss.status)
    return tables


def copied(how: str) -> str:
    """Return what leaves a copy in the table's stead."""
    return f"CREATE TABLE copy {how}; DROP TABLE {TABLE}; ALTER TABLE copy RENAME TO {TABLE}"


ZOO: dict[str, tuple[list[str], str]] = {
    "DROP IDENTITY": (["lost default"], f"ALTER TABLE {TABLE} ALTER id DROP IDENTITY"),
    "CREATE TABLE AS": (["lost default", "lost key"], copied(f"AS TABLE {TABLE}")),
    "LIKE": (
        ["lost default", "lost key"],
        copied(f"(LIKE {TABLE}); INSERT INTO copy TABLE {TABLE}"),
    ),
    "LIKE INCLUDING INDEXES": (["lost default"], copied(f"(LIKE {TABLE} INCLUDING INDEXES)")),
    "no primary key": (["lost key"], f"ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey"),
    "an index that is not valid": (
        ["lost key"],
        f"""
        ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey;
        CREATE UNIQUE INDEX i ON {TABLE} (id);
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i'::regclass
        """,
    ),
    "an index of some rows": (
        ["lost key"],
        f"""
        ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey;
        CREATE UNIQUE INDEX ON {TABLE} (id) WHERE id > 7
        """,
    ),
    "another table's sequence": (
        ["foreign sequence"],
        f"""
        CREATE TABLE other (id serial);
        ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
        ALTER TABLE {TABLE} ALTER id SET DEFAULT nextval('other_id_seq')
        """,
    ),
}


@pytest.fixture
def healthy(project: Project) -> None:
    project.migrate()
    execute(
        "INSERT INTO auth_group (name) VALUES ('a'); "
        f"INSERT INTO {TABLE} (id, group_id, permission_id) SELECT id, 1, id FROM auth_permission"
    )


def test_a_healthy_database(healthy: None) -> None:
    assert found() == []


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(healthy: None, name: str) -> None:
    before = rows(DEFINITION, [TABLE])
    expected, sql = ZOO[name]
    execute(sql)
    assert statuses() == {TABLE: expected}
    for loss in found():
        if loss.is_restorable:
            restore(connection, loss)
    assert [each for each in statuses().get(TABLE, []) if each != "lost key"] == []
    assert rows(DEFINITION, [TABLE]) == before
