"""What differs between the drivers, and what is sent beside Django."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from safemigrate import driver
from tests.support.databases import execute


@pytest.mark.usefixtures("database")
def test_ctrl_c_leaves_no_transaction_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs its handler when the driver has come back: here, when it has sent our BEGIN."""
    plain = driver.Cursor.execute

    def interrupted(self: driver.Cursor, sql: str, params: Any = None) -> None:
        plain(self, sql, params)
        if sql.startswith("BEGIN"):
            raise KeyboardInterrupt

    execute("SELECT 1")
    monkeypatch.setattr(driver.Cursor, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt), driver.transaction(connection):
        pass
    assert driver.transaction_status(connection) == driver.IDLE


@pytest.mark.usefixtures("database")
def test_a_search_path_that_comes_with_the_next_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As django-tenants sets it, when another tenant's turn has come on an open connection."""
    execute("CREATE SCHEMA tenant; CREATE TABLE tenant.thing (id int)")
    plain = connection._cursor  # type: ignore[attr-defined]

    def in_the_tenant(name: Any = None) -> Any:
        cursor = plain(name)
        cursor.execute("SET search_path = tenant")
        return cursor

    monkeypatch.setattr(connection, "_cursor", in_the_tenant)
    with driver.aside(connection) as ours:
        assert ours.row("SELECT to_regclass('thing')::oid AS oid").oid
