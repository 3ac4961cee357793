"""DDL that is CONCURRENT, and what asks not to wait: patience, and what is left behind."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, OperationalError, ProgrammingError, connection, transaction

from tests.support.databases import execute, rows, value
from tests.support.locks import Blocker, letting_go_soon, migrate, note_of, patient, sql
from tests.support.project import Project, run_python
from tests.support.servers import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.usefixtures("database")


@pytest.mark.usefixtures("thing")
def test_an_index_waits_for_transactions_and_queues_nobody(blocker: Blocker) -> None:
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with letting_go_soon(blocker), patient():
        execute("CREATE INDEX CONCURRENTLY thing_id ON thing (id)")
        assert value("SHOW lock_timeout") == "100ms"
    assert value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'thing_id'::regclass")


@pytest.mark.usefixtures("thing")
def test_reindexing_waits_for_transactions_as_long_as_patience_lasts(blocker: Blocker) -> None:
    execute("CREATE INDEX thing_id ON thing (id)")
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with letting_go_soon(blocker), patient():
        execute("REINDEX TABLE CONCURRENTLY thing")
    assert rows(INVALID) == []


@pytest.mark.usefixtures("thing")
def test_a_partition_is_detached_as_long_as_patience_lasts(blocker: Blocker) -> None:
    needs(14, "DETACH PARTITION CONCURRENTLY")
    execute(
        "CREATE TABLE whole (id int) PARTITION BY LIST (id); "
        "CREATE TABLE part PARTITION OF whole FOR VALUES IN (1)"
    )
    blocker.execute("SELECT FROM whole")
    with letting_go_soon(blocker), patient():
        execute("ALTER TABLE whole DETACH PARTITION part CONCURRENTLY")
    assert rows("SELECT inhrelid FROM pg_inherits WHERE inhparent = 'whole'::regclass") == []


@pytest.mark.usefixtures("thing")
def test_a_value_is_not_what_the_statement_does(blocker: Blocker) -> None:
    execute("ALTER TABLE thing ADD note text")
    blocker.execute("LOCK TABLE thing IN ACCESS EXCLUSIVE MODE")
    with letting_go_soon(blocker), patient():
        execute("INSERT INTO thing (note) VALUES ('done concurrently')")
    assert value("SELECT count(*) FROM thing WHERE note IS NOT NULL") == 1


@pytest.mark.usefixtures("thing")
def test_a_view_is_refreshed_again(blocker: Blocker) -> None:
    execute("CREATE MATERIALIZED VIEW seen AS TABLE thing; CREATE UNIQUE INDEX ON seen (id)")
    blocker.execute("LOCK TABLE thing IN ACCESS EXCLUSIVE MODE")
    with letting_go_soon(blocker), patient():
        execute("REFRESH MATERIALIZED VIEW CONCURRENTLY seen")


@pytest.mark.usefixtures("thing")
def test_what_asks_not_to_wait_is_not_retried(blocker: Blocker) -> None:
    execute("INSERT INTO thing VALUES (1)")
    blocker.execute("SELECT FROM thing FOR UPDATE")
    sent: list[str] = []
    with (
        patient(patience=1),
        connection.execute_wrapper(remembering(sent)),
        pytest.raises(OperationalError, match="could not obtain lock"),
    ):
        execute("SELECT FROM thing FOR UPDATE NOWAIT")
    assert len(sent) == 1


def remembering(sent: list[str]) -> Callable[..., Any]:
    def remember(run: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        sent.append(sql)
        return run(sql, params, many, context)

    return remember


INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


@pytest.fixture
def others(thing: None) -> set[tuple[str]]:
    """INVALID indexes that somebody has left, one of them of a name that will be given again."""
    execute("CREATE SCHEMA elsewhere")
    for table in ("twice", "elsewhere.twice"):
        execute(f"CREATE TABLE {table} AS SELECT 1 AS id FROM generate_series(1, 2)")
        for name in ("thing_id", "other"):
            if (table, name) != ("twice", "thing_id"):
                with suppress(IntegrityError):
                    execute(f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} (id)")
    left = {("other",), ("elsewhere.thing_id",), ("elsewhere.other",)}
    assert set(rows(INVALID)) == left
    return left


def test_the_invalid_index_that_was_left_is_dropped_and_no_other(
    blocker: Blocker, others: set[tuple[str]]
) -> None:
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker):
        execute('CREATE INDEX CONCURRENTLY IF NOT EXISTS Thing_Id ON ONLY "thing" (id)')
    assert set(rows(INVALID)) == others
    assert value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'thing_id'::regclass")


@pytest.mark.usefixtures("thing")
@pytest.mark.parametrize("exists", ["", "IF NOT EXISTS "])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("i" * 70, "thing"),
        ('"' + "é" * 40 + '"', "thing"),
        ("i", "public . thing"),
        ("i", '{database}."public".thing'),
    ],
    ids=["a long name", "a long name in two bytes each", "blanks", "a database"],
)
def test_the_invalid_index_is_found_however_it_is_written(
    blocker: Blocker, name: str, table: str, exists: str
) -> None:
    """With IF NOT EXISTS, a second attempt would leave it INVALID without an error."""
    table = table.format(database=connection.settings_dict["NAME"])
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker):
        execute(f"CREATE INDEX CONCURRENTLY {exists}{name} ON {table} (id)")
    assert rows(INVALID) == []
    assert value("SELECT count(*) FROM pg_index WHERE indrelid = 'thing'::regclass") == 1


@pytest.mark.usefixtures("thing")
@pytest.mark.parametrize(
    "text",
    [
        "/* a comment */ CREATE INDEX CONCURRENTLY i ON thing /* of */ (id)",
        "CREATE INDEX CONCURRENTLY i -- a name\n ON thing -- a table\n (id)",
        'CREATE UNIQUE INDEX CONCURRENTLY i ON ONLY public."thing"USING btree (id)',
    ],
)
def test_an_index_with_comments_is_created_again(blocker: Blocker, text: str) -> None:
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker):
        execute(text)
    assert rows(INVALID) == []


@pytest.mark.usefixtures("thing")
@pytest.mark.parametrize("more", ["😀", "\u00a0"])
def test_an_index_is_not_created_twice_if_its_table_s_name_is_not_understood(
    blocker: Blocker, more: str
) -> None:
    execute(f"CREATE TABLE thing{more} (id int)")
    blocker.execute(f"LOCK TABLE thing{more} IN ROW EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker, attempts=1), pytest.raises(OperationalError):
        execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON thing{more} (id)")
    assert rows(INVALID) == [("i",)]


@pytest.mark.usefixtures("thing")
def test_an_invalid_index_of_that_name_that_was_there_before_is_not_dropped(
    blocker: Blocker,
) -> None:
    execute("INSERT INTO thing VALUES (1)")
    with suppress(IntegrityError):
        execute("CREATE UNIQUE INDEX CONCURRENTLY thing_id ON thing (id)")
    oid = value("SELECT 'thing_id'::regclass::oid::int8")
    blocker.execute("LOCK TABLE thing IN SHARE UPDATE EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker), pytest.raises(ProgrammingError, match="thing_id"):
        execute("CREATE INDEX CONCURRENTLY thing_id ON thing (id)")
    assert value("SELECT 'thing_id'::regclass::oid::int8") == oid


@pytest.mark.usefixtures("thing")
@pytest.mark.parametrize("name", ["thing_id", '"a\nb \u202e"', '"a%s{b}"'])
def test_an_invalid_index_that_cannot_be_dropped_is_named(blocker: Blocker, name: str) -> None:
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with pytest.raises(OperationalError) as raised, patient(patience=1):
        execute(f"CREATE INDEX CONCURRENTLY {name} ON thing (id)")
    blocker.let_go()
    execute(note_of(raised.value).partition("Type: ")[2].partition(";")[0])
    assert rows(INVALID) == []


@pytest.mark.usefixtures("thing")
def test_an_index_without_a_name_is_not_created_twice(blocker: Blocker) -> None:
    blocker.execute("LOCK TABLE thing IN ROW EXCLUSIVE MODE")
    with patient(), giving_up_once(blocker, attempts=1), pytest.raises(OperationalError):
        execute("CREATE INDEX CONCURRENTLY ON thing (id)")
    assert rows(INVALID) == [("thing_id_idx",)]


@contextmanager
def giving_up_once(blocker: Blocker, attempts: int = 2) -> Iterator[None]:
    """Let the first attempt give up soon, as a deadlock would end it; then let the blocker go."""
    seen: list[str] = []

    def fail_once(run: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        if len(seen) > 1:
            return run(sql, params, many, context)
        with connection.connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '100ms'")
        try:
            return run(sql, params, many, context)
        finally:
            blocker.let_go()

    with connection.execute_wrapper(fail_once):
        yield
        assert len(seen) == attempts


@pytest.mark.usefixtures("thing")
def test_a_constraint_is_validated_with_patience(blocker: Blocker) -> None:
    execute("ALTER TABLE thing ADD CONSTRAINT positive CHECK (id > 0) NOT VALID")
    blocker.execute("LOCK TABLE thing IN SHARE UPDATE EXCLUSIVE MODE")
    with letting_go_soon(blocker), patient():
        execute("ALTER TABLE thing VALIDATE CONSTRAINT positive")
        assert value("SHOW lock_timeout") == "100ms"


@pytest.mark.usefixtures("thing")
def test_in_a_transaction_others_queue_for_what_it_holds(blocker: Blocker) -> None:
    execute("ALTER TABLE thing ADD CONSTRAINT positive CHECK (id > 0) NOT VALID")
    blocker.execute("LOCK TABLE thing IN SHARE UPDATE EXCLUSIVE MODE")
    with letting_go_soon(blocker, 10), patient(), transaction.atomic():
        execute("CREATE TABLE held (id int)")
        with pytest.raises(OperationalError, match="lock timeout"), transaction.atomic():
            execute("ALTER TABLE thing VALIDATE CONSTRAINT positive")


@pytest.mark.usefixtures("blocker")
def test_a_lock_timeout_of_the_migrations_own_outlasts_an_index(shop: Project) -> None:
    seen: list[str] = []
    shop.migration(
        sql("SET lock_timeout = '5s'"),
        sql("CREATE INDEX CONCURRENTLY thing_id ON thing (id)"),
        run_python(lambda apps, editor: seen.append(value("SHOW lock_timeout"))),
        atomic=False,
    )
    migrate(shop)
    assert seen == ["5s"]
