"""The savepoint of a migration: when it can be gone back to, and what that gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import (
    InternalError,
    OperationalError,
    ProgrammingError,
    connection,
    models,
    transaction,
)

from tests.support.databases import execute, rows, value
from tests.support.locks import TAKE, Blocker, letting_go, made, migrate, note_of, recorded, sql
from tests.support.project import Project, run_python

if TYPE_CHECKING:
    from safemigrate.report import LockWait

pytestmark = pytest.mark.usefixtures("database")


@pytest.mark.usefixtures("blocker")
def test_set_transaction_may_come_first(shop: Project, waits: list[LockWait]) -> None:
    levels: list[str] = []
    first = "-- not in a savepoint\nSET TRANSACTION ISOLATION LEVEL SERIALIZABLE"
    shop.migration(
        sql(first),
        sql(),
        run_python(lambda apps, editor: levels.append(value("SHOW transaction_isolation"))),
    )
    migrate(shop)
    assert levels == ["serializable"]
    assert not waits


@pytest.mark.usefixtures("blocker")
@pytest.mark.parametrize(
    "first",
    [
        ["SET LOCAL statement_timeout = 0", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        ["SET LOCAL statement_timeout = 0; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        ["SHOW server_version", "/* all */ SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
        ["SET CONSTRAINTS ALL IMMEDIATE", "SET LOCAL transaction_isolation = 'serializable'"],
    ],
)
def test_set_transaction_may_follow_other_settings(shop: Project, first: list[str]) -> None:
    levels: list[str] = []
    shop.migration(
        *map(sql, first),
        sql(),
        run_python(lambda apps, editor: levels.append(value("SHOW transaction_isolation"))),
    )
    migrate(shop)
    assert levels == ["serializable"]


def test_settings_may_come_before_the_lock(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("SET LOCAL statement_timeout = '1min'"), sql("SHOW work_mem"), sql())
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop)
    assert recorded() == 1


def test_what_went_past_django_after_a_setting_is_not_done_twice(
    shop: Project, blocker: Blocker
) -> None:
    def insert(apps: Any, editor: Any) -> None:
        execute("SET LOCAL statement_timeout = '1min'")
        connection.connection.cursor().execute("INSERT INTO first VALUES (1)")

    shop.migration(run_python(insert), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="lock timeout") as caught:
        migrate(shop, retry_python=True)
    assert "READ COMMITTED throughout" in note_of(caught.value)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "READ COMMITTED"])
def test_a_migration_that_sets_its_transaction_is_not_retried(
    shop: Project, blocker: Blocker, level: str
) -> None:
    shop.migration(sql(f"SET TRANSACTION ISOLATION LEVEL {level}"), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="lock timeout") as caught:
        migrate(shop)
    assert "READ COMMITTED throughout" in note_of(caught.value)


def test_repeatable_read_is_not_retried(shop: Project, blocker: Blocker) -> None:
    execute("SET default_transaction_isolation = 'repeatable read'")
    shop.migration(sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="lock timeout") as caught:
        migrate(shop)
    assert "READ COMMITTED throughout" in note_of(caught.value)


def test_what_a_migration_has_committed_itself_is_not_done_twice(
    shop: Project, blocker: Blocker
) -> None:
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql("COMMIT"), sql("SELECT 1"), sql())
    blocker.execute(TAKE)
    with pytest.raises(OperationalError, match="lock timeout"):
        migrate(shop)
    assert rows("SELECT id FROM first") == [(1,)]


def test_a_commit_of_its_own_is_nothing_new(shop: Project) -> None:
    shop.migration(sql("COMMIT"), sql("INSERT INTO first VALUES (1)"), sql("COMMIT"))
    migrate(shop)
    assert recorded() == 1
    assert rows("SELECT id FROM first") == [(1,)]


def test_what_is_to_follow_the_commit_follows_it_once(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    done: list[int] = []

    def promise(apps: Any, editor: Any) -> None:
        transaction.on_commit(lambda: done.append(1))

    shop.migration(run_python(promise), sql())
    blocker.execute(TAKE)
    with letting_go(blocker, waits):
        migrate(shop, retry_python=True)
    assert done == [1]


def test_the_row_that_records_it_is_waited_for_too(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql())
    blocker.execute("LOCK TABLE django_migrations IN SHARE MODE")
    with letting_go(blocker, waits):
        migrate(shop)
    assert recorded() == 1
    assert rows("SELECT id FROM first") == [(1,)]


@pytest.mark.parametrize("first", ["SET LOCAL ROLE {role}", "SET LOCAL search_path = {role}"])
def test_who_and_where_the_transaction_is_does_not_record_it(
    shop: Project, role: str, first: str
) -> None:
    """With deferred SQL, Django's record comes after the transaction."""
    execute(f"GRANT {role} TO current_user")
    execute(f"CREATE SCHEMA {role}")
    execute(f"GRANT CREATE ON SCHEMA public TO {role}")
    parent = models.ForeignKey("app.Parent", models.CASCADE)
    shop.migration(sql(first.format(role=role)), made("Parent"), made("Child", parent))
    migrate(shop)
    assert recorded() == 1


def test_a_role_that_may_insert_the_columns_only(shop: Project, role: str) -> None:
    execute(f"GRANT SELECT, INSERT (app, name, applied) ON django_migrations TO {role}")
    shop.migration(sql(f"SET LOCAL ROLE {role}"))
    migrate(shop)
    assert recorded() == 1


def test_a_pause_is_not_too_long_for_the_server(
    shop: Project, blocker: Blocker, waits: list[LockWait]
) -> None:
    blocker.execute("SET idle_in_transaction_session_timeout = 0")
    blocker.execute(TAKE)
    execute("SET idle_in_transaction_session_timeout = '100ms'")
    shop.migration(sql("INSERT INTO first VALUES (1)"), sql())
    with letting_go(blocker, waits):
        migrate(shop)
    assert recorded() == 1
    assert value("SHOW idle_in_transaction_session_timeout") == "100ms"


def test_the_savepoint_shows(shop: Project) -> None:
    """A limit: what comes after it is a subtransaction."""
    shop.migration(
        sql("INSERT INTO first VALUES (1)"),
        sql("DELETE FROM first WHERE xmin = pg_current_xact_id()::xid"),
    )
    migrate(shop)
    assert rows("SELECT id FROM first") == [(1,)]
    shop.migration(sql("SELECT pg_export_snapshot()"))
    with pytest.raises(InternalError, match="subtransaction"):
        migrate(shop)


def test_what_no_rollback_takes_back_is_repeated(shop: Project, blocker: Blocker) -> None:
    """A limit."""
    shop.migration(sql("PREPARE once AS SELECT 1"), sql())
    blocker.execute(TAKE)
    with pytest.raises(ProgrammingError, match="already exists"):
        migrate(shop)
