"""``safemigrate.healing()`` by itself: for imports, loaddata and scripts."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from operator import mod
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import Error, IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.test import override_settings
from django.utils.connection import ConnectionDoesNotExist

import safemigrate
from safemigrate.signals import sequence_resynced
from tests.support.databases import (
    behind,
    binding,
    elsewhere,
    execute,
    next_value,
    put_behind,
    rows,
    value,
)
from tests.support.locks import note_of, terminate


def test_the_report(groups: None) -> None:
    told: list[Any] = []
    with safemigrate.healing(tell=told.append) as report:
        Group.objects.create(name="new")
        Group.objects.create(name="newer")
    assert (
        report.resyncs
        == told
        == [
            safemigrate.Resync(
                using="default",
                schema="public",
                table="auth_group",
                column="id",
                sequence="auth_group_id_seq",
                before=1,
                after=4,
            )
        ]
    )
    assert str(told[0]) == "Resynced public.auth_group_id_seq from 1 to 4 for auth_group.id"
    assert rows("SELECT id FROM auth_group ORDER BY id") == [(n,) for n in range(1, 6)]


def test_the_signal_and_the_log_carry_the_record(
    groups: None, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []

    def hear(sender: Any, using: str, record: safemigrate.Resync, **kwargs: Any) -> None:
        heard.append((sender, using, record))
        raise ZeroDivisionError("a receiver's own trouble stops nothing")

    sequence_resynced.connect(hear)
    try:
        with caplog.at_level(logging.INFO, "safemigrate"), safemigrate.healing() as report:
            Group.objects.create(name="new")
    finally:
        sequence_resynced.disconnect(hear)
    assert heard == [(safemigrate.Resync, "default", report.resyncs[0])]
    (record,) = [each for each in caplog.records if each.name == "safemigrate"]
    assert vars(report.resyncs[0]).items() <= vars(record).items()
    assert mod("told: %s", report.resyncs[0]) == f"told: {report.resyncs[0]}"


def test_a_retried_statement_is_reported(groups: None) -> None:
    with safemigrate.healing() as report:
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        assert Group.objects.create(name="new").pk == 4
    assert [each.retried for each in report.resyncs] == [False, True]


def test_one_retry_is_one(groups: None) -> None:
    with safemigrate.healing(max_retries=1) as report:
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        assert Group.objects.create(name="new").pk == 4
    assert [each.retried for each in report.resyncs] == [False, True]


def test_without_retries_the_sequence_is_resynced(groups: None) -> None:
    with pytest.raises(IntegrityError), safemigrate.healing(max_retries=0) as report:  # noqa: PT012
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        Group.objects.create(name="new")
    assert behind() == []
    assert "The statement was not retried, because retries are off" in report.notes[0].text


def test_without_healing_the_sequence_is_named(groups: None) -> None:
    with pytest.raises(IntegrityError), safemigrate.healing(heal=False) as report:
        Group.objects.create(name="new")
    assert next_value("auth_group_id_seq") == 2
    (text,) = [note.text for note in report.notes if note.is_fatal]
    assert text.startswith(
        "Sequence public.auth_group_id_seq is behind public.auth_group.id (next value 2, largest "
        "key 3) and was left alone: healing is off. To move it: SELECT pg_catalog.setval("
    )


def test_what_was_left_alone_is_a_warning_once_it_matters(groups: None) -> None:
    """Rows that give way to others are lost without an error."""
    execute("INSERT INTO auth_group VALUES (2147483000, 'largest')")
    with safemigrate.healing() as report:
        assert [note.is_expected for note in report.notes] == [True]
        for _ in range(2):
            execute("INSERT INTO auth_group (name) VALUES ('new') ON CONFLICT DO NOTHING")
        assert [note.is_expected for note in report.notes] == [True, False]
    assert "auth_group_id_seq is behind" in report.notes[1].text


def test_retries_come_to_an_end(groups: None) -> None:
    attempts: list[str] = []

    def put_back(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT"):
            attempts.append(sql)
            elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        return run(sql, params, many, context)

    with (
        pytest.raises(IntegrityError, match="auth_group_pkey") as raised,
        safemigrate.healing(max_retries=2),
        connection.execute_wrapper(put_back),
    ):
        Group.objects.create(name="new")
    assert len(attempts) == 3
    assert note_of(raised.value).startswith("It was retried, and failed: duplicate key")


def test_another_error_of_the_retry_is_told(groups: None) -> None:
    """The first one is what the run ends with."""
    with safemigrate.healing():
        put_behind("auth_group")
        with pytest.raises(IntegrityError, match="auth_group_pkey") as raised:
            Group.objects.create(name=rows("SELECT name FROM auth_group")[0][0])
    assert "auth_group_name" in note_of(raised.value)


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("one statement, and no more"), "one statement, and no more"),
        (SpeechlessError(), ""),
    ],
    ids=["an error", "an error without words"],
)
def test_what_else_a_retry_meets_gives_way_to_the_first_error(
    groups: None, error: Exception, said: str
) -> None:
    """Another wrapper's own exception, say."""
    attempts: list[str] = []

    def refuse(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        attempts.append(sql)
        if len(attempts) > 1:
            raise error
        return run(sql, params, many, context)

    with safemigrate.healing():
        put_behind("auth_group")
        with (
            pytest.raises(IntegrityError, match="auth_group_pkey") as raised,
            connection.execute_wrapper(refuse),
        ):
            execute("INSERT INTO auth_group (name) VALUES ('new')")
    if said:
        assert note_of(raised.value) == f"It was retried, and failed: {said}"


class OddError(Exception):
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


@pytest.mark.parametrize(
    "cause",
    [ValidationError("Not %(group)s.", params={"group": Group()}), OddError()],
    ids=["hash", "truth"],
)
def test_errors_of_which_nothing_can_be_asked(cause: Exception) -> None:
    """The hash of a ValidationError takes that of the model instances that it names."""
    last = ValidationError("Not %(group)s.", params={"group": Group()})
    last.__cause__ = cause
    with pytest.raises(ValidationError, match="Not"), safemigrate.healing():
        raise last


def test_rows_that_a_generator_has_given_are_not_asked_for_again(groups: None) -> None:
    names = ([f"new {number}"] for number in range(10))
    with safemigrate.healing() as report, connection.cursor() as cursor:
        put_behind("auth_group")
        with pytest.raises(IntegrityError) as raised:
            cursor.executemany("INSERT INTO auth_group (name) VALUES (%s)", names)
    assert [each.after for each in report.resyncs] == [4, 4]
    assert "cannot be asked for again" in note_of(raised.value)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT add_group('new')",
        "WITH called AS (SELECT add_group('new')) SELECT * FROM called",
        "EXPLAIN ANALYZE INSERT INTO auth_group (name) VALUES ('new')",
    ],
)
def test_what_may_do_anything_is_not_sent_twice(functions: None, statement: str) -> None:
    """It may have committed, or written elsewhere: the run ends, and the sequence is in sync."""
    with pytest.raises(IntegrityError), safemigrate.healing() as report:  # noqa: PT012
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        execute(statement)
    assert behind() == []
    assert [each.retried for each in report.resyncs] == [False, False]
    verb = statement.split(maxsplit=1)[0]
    assert f"{verb} may have committed a part already: run the command again" in (
        report.notes[0].text
    )


def test_loaddata_of_objects_without_keys(groups: None) -> None:
    data = '[{"model": "auth.group", "fields": {"name": "loaded"}}]'
    with safemigrate.healing():
        for each in serializers.deserialize("json", data):
            each.save()
    assert Group.objects.get(name="loaded").pk == 4


def test_using_none_at_all(groups: None) -> None:
    with safemigrate.healing([]) as report:
        assert report.resyncs == []
        assert not connection.execute_wrappers


def test_what_a_commit_may_have_met_in_either_database_moves_nothing(
    groups: None, other_database: str
) -> None:
    with connections["other"].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE auth_group (id serial UNIQUE DEFERRABLE INITIALLY DEFERRED, name text);"
            "INSERT INTO auth_group (name) VALUES ('other')"
        )
    execute("ALTER TABLE auth_group DROP CONSTRAINT auth_group_pkey CASCADE")
    execute("ALTER TABLE auth_group ADD UNIQUE (id) DEFERRABLE INITIALLY DEFERRED")

    def collide() -> None:
        with transaction.atomic(using="other"), connections["other"].cursor() as cursor:
            cursor.execute("SELECT setval('auth_group_id_seq', 1, false)")
            cursor.execute("INSERT INTO auth_group (name) VALUES ('new')")
            put_behind("auth_group")

    def collide_while_healing() -> None:
        with safemigrate.healing(tell=told.append):
            collide()

    told: list[Any] = []
    with pytest.raises(IntegrityError) as raised:
        collide_while_healing()
    moved = {each.using for each in told if isinstance(each, safemigrate.Resync)}
    assert moved == {"default"}
    assert "resyncsequences --check" in note_of(raised.value)


def test_using_one_alias_only(groups: None) -> None:
    with safemigrate.healing("other"), pytest.raises(IntegrityError):
        Group.objects.create(name="new")
    with pytest.raises(ConnectionDoesNotExist), safemigrate.healing("nonsense"):
        raise AssertionError("not reached")


def test_inside_a_transaction_of_the_callers(groups: None) -> None:
    with transaction.atomic():
        with safemigrate.healing() as report:
            Group.objects.create(name="new")
        with pytest.raises(IntegrityError), transaction.atomic():
            Group.objects.create(pk=1, name="taken")
    assert len(report.resyncs) == 1
    assert Group.objects.filter(name="new").exists()


def test_one_inside_another(groups: None) -> None:
    with safemigrate.healing() as outer:
        with safemigrate.healing(max_retries=0, heal=False) as inner:
            Group.objects.create(name="new")
        put_behind("auth_group")
        Group.objects.create(name="newer")
    assert (len(inner.resyncs), len(outer.resyncs)) == (0, 2)


def noop(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
    return execute(sql, params, many, context)


def test_the_wrappers_of_others_stay(groups: None) -> None:
    with connection.execute_wrapper(noop):
        before = list(connection.execute_wrappers)
        with pytest.raises(IntegrityError), safemigrate.healing():  # noqa: PT012
            connection.execute_wrappers.append(noop)
            Group.objects.create(name="new")
            Group.objects.create(pk=1, name="taken")
        assert connection.execute_wrappers == [*before, noop]
        connection.execute_wrappers.pop()


def test_a_wrapper_that_leaves_before_us_takes_ours(groups: None) -> None:
    """``execute_wrapper`` pops the last one, whichever it is: nothing of ours may break of it."""
    other = connection.execute_wrapper(noop)
    with other:
        with safemigrate.healing():
            connection.execute_wrappers.pop()
        assert connection.execute_wrappers == [noop]


def test_autocommit_off_is_left_alone(groups: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    connection.close()
    with pytest.raises(IntegrityError), safemigrate.healing() as report:
        Group.objects.create(name="new")
    connection.rollback()
    connection.close()
    assert report.resyncs == []
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", True)
    assert next_value("auth_group_id_seq") == 2


def test_a_project_may_read_numbers_as_floats(groups: None) -> None:
    """As psycopg2's documentation shows; and others as text."""
    connection.ensure_connection()
    if is_psycopg3:
        from psycopg.types.numeric import FloatLoader

        connection.connection.adapters.register_loader("numeric", FloatLoader)
    else:
        from psycopg2 import extensions

        numbers = extensions.DECIMAL.values
        as_float = extensions.new_type(numbers, "FLOAT", lambda text, _: text and float(text))
        extensions.register_type(as_float, connection.connection)
        others = [20, 26, *extensions.ROWIDARRAY.values, *extensions.UNICODEARRAY.values]
        as_text = extensions.new_type(tuple(others), "TEXT", lambda text, _: text)
        extensions.register_type(as_text, connection.connection)
    assert isinstance(value("SELECT 1.5"), float)
    with safemigrate.healing() as report:
        Group.objects.create(name="new")
        Group.objects.create(pk=9, name="nine")
        Group.objects.create(name="newer")
    assert [each.after for each in report.resyncs] == [4]
    assert report.notes == []
    connection.close()


def test_a_mirror_is_told_of_once(groups: None) -> None:
    mirrored = connections["other"]
    connections["other"] = connection  # as Django's test runner does for TEST: {"MIRROR": …}
    try:
        with safemigrate.healing() as report:
            Group.objects.create(name="new")
    finally:
        connections["other"] = mirrored
    assert len(report.resyncs) == 1


def test_parameters_bound_by_the_server(functions: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", is_psycopg3)
    if not is_psycopg3:
        monkeypatch.delitem(connection.settings_dict["OPTIONS"], "server_side_binding")
    connection.close()
    with safemigrate.healing() as report:
        with transaction.atomic():
            Group.objects.create(name="new")
        put_behind("auth_group")
        execute("INSERT INTO auth_group (name) VALUES (%s)", ["newer"])
    connection.close()
    assert [each.retried for each in report.resyncs] == [False, True]


def test_settings_are_checked_before_anything(groups: None) -> None:
    with (
        override_settings(SAFEMIGRATE_MAX_RETRIES="3"),
        pytest.raises(ImproperlyConfigured, match="SAFEMIGRATE_MAX_RETRIES must be"),
        safemigrate.healing(),
    ):
        raise AssertionError("not reached")


def test_an_alias_that_can_not_be_loaded_is_skipped(groups: None) -> None:
    databases = {**connections.settings, "broken": {"ENGINE": "no.such.engine"}}
    connections.settings["broken"] = databases["broken"]
    try:
        with safemigrate.healing():
            Group.objects.create(name="new")
        with pytest.raises(ImproperlyConfigured), safemigrate.healing("broken"):
            raise AssertionError("not reached")
    finally:
        del connections.settings["broken"]


def test_a_table_that_is_locked_during_the_sweep_is_checked_later(groups: None) -> None:
    other = connections["other"]
    with (
        binding("other", connection.settings_dict["NAME"]),
        safemigrate.healing("default") as report,
    ):
        pass
    put_behind("auth_group")
    with ExitStack() as stack:
        stack.enter_context(binding("other", connection.settings_dict["NAME"]))
        with transaction.atomic(using="other"), other.cursor() as cursor:
            cursor.execute("LOCK TABLE auth_group IN ACCESS EXCLUSIVE MODE")
            report = stack.enter_context(safemigrate.healing("default"))
            assert report.resyncs == []
        Group.objects.create(name="new")
    assert [each.after for each in report.resyncs] == [4]
    assert Group.objects.get(name="new").pk == 4


def test_locked_tables_of_one_name_are_each_checked(database: str) -> None:
    for schema in ("one", "two"):
        execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.tag (id serial PRIMARY KEY)")
        execute(f"INSERT INTO {schema}.tag VALUES (1)")
    with ExitStack() as stack:
        stack.enter_context(binding("other", database))
        with transaction.atomic(using="other"), connections["other"].cursor() as cursor:
            cursor.execute("LOCK one.tag, two.tag IN ACCESS EXCLUSIVE MODE")
            report = stack.enter_context(safemigrate.healing("default"))
        with transaction.atomic():
            execute("INSERT INTO one.tag DEFAULT VALUES")
            execute("INSERT INTO two.tag DEFAULT VALUES")
    assert [each.schema for each in report.resyncs] == ["one", "two"]


def test_a_connection_that_is_lost_is_lost(groups: None) -> None:
    """The look meets the dead connection first: what gets out is what plain migrate would say."""
    pid = value("SELECT pg_backend_pid()")
    with binding("other", connection.settings_dict["NAME"]):
        terminate(f"pid = {pid}", "other")
    with pytest.raises(Error), safemigrate.healing():
        Group.objects.create(name="new")
    connection.close()


def test_a_server_side_cursor_passes(groups: None) -> None:
    with safemigrate.healing(), transaction.atomic():
        assert [group.pk for group in Group.objects.order_by("pk").iterator()] == [1, 2, 3]


def test_a_broken_transaction_passes(groups: None) -> None:
    with safemigrate.healing() as report, transaction.atomic():
        Group.objects.create(pk=4, name="so that the next one would be checked first")
        with pytest.raises(Error), connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
        with pytest.raises(Error, match="aborted"), connection.cursor() as cursor:
            cursor.execute("INSERT INTO auth_group (name) VALUES ('x')")
        transaction.set_rollback(True)
    assert report.notes == []


def test_in_an_event_loop_nothing_can_be_swept(groups: None) -> None:
    """Django forbids it; that is noted, and the block goes on."""

    async def enter() -> safemigrate.Report:
        with safemigrate.healing("default") as report:
            return report

    report = asyncio.run(enter())

    (note,) = report.notes
    assert note.text.startswith(
        "The sequences could not be checked: the check failed (SynchronousOnlyOperation: You "
        "cannot call this from an async context"
    )
    assert not report.resyncs
    assert not connection.execute_wrappers


NUMBERED = """
    CREATE SEQUENCE {schema}.ns;
    CREATE TABLE {schema}.doc (
        id bigserial PRIMARY KEY, name text, number bigint DEFAULT nextval('{schema}.ns'));
    INSERT INTO {schema}.doc (name) SELECT repeat('x', 400) FROM generate_series(1, 4000);
    ALTER SEQUENCE {schema}.ns RESTART
"""


@pytest.mark.parametrize("is_tenant", [True, False])
def test_a_number_that_becomes_unique_in_each_schema(
    database: str, monkeypatch: pytest.MonkeyPatch, is_tenant: bool
) -> None:
    with ExitStack() as stack:
        for schema in ("one", "two"):
            execute(f"CREATE SCHEMA {schema}; {NUMBERED.format(schema=schema)}")
        if not is_tenant:
            stack.enter_context(safemigrate.healing("default"))
        for schema in ("one", "two"):
            execute(f"SET search_path = {schema}")
            if is_tenant:
                monkeypatch.setattr(connections["default"], "schema_name", schema, raising=False)
                stack.enter_context(safemigrate.healing("default"))
            execute("INSERT INTO doc (name) SELECT 'none' WHERE false")
            execute("ALTER TABLE doc ADD UNIQUE (number)")
            found = value(
                "INSERT INTO doc (name) VALUES ('a') ON CONFLICT DO NOTHING RETURNING number"
            )
            assert found == 4001


FAR = "INSERT INTO auth_group (id, name) VALUES (100, 'far')"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO auth_group (id, name) VALUES (100, 'again')",
        "UPDATE auth_group SET id = 100 WHERE id = 1",
        "INSERT INTO auth_group (id, name) VALUES (3, 'again')",
        "UPDATE auth_group SET id = 2 WHERE id = 1",
    ],
)
def test_a_key_that_no_sequence_has_given_moves_none(groups: None, statement: str) -> None:
    execute("SELECT setval('auth_group_id_seq', 3)")
    with safemigrate.healing() as report:
        execute(FAR)
        with pytest.raises(IntegrityError) as caught:
            execute(statement)
        assert report.resyncs == []
        assert note_of(caught.value).startswith("Genuine duplicate in ")
        assert value("INSERT INTO auth_group (name) VALUES ('new') RETURNING id") == 4


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE t (id serial, year int DEFAULT 1, PRIMARY KEY (year, id))",
        "CREATE TABLE t (id serial PRIMARY KEY, year int); ALTER TABLE t ALTER id TYPE numeric",
    ],
)
def test_keys_of_other_kinds_that_the_statement_gives(database: str, table: str) -> None:
    execute(f"{table}; INSERT INTO t (year) VALUES (1), (1)")
    with safemigrate.healing("default") as report:
        execute("INSERT INTO t (id, year) VALUES (100, 1)")
        for taken in (100, 2):
            with pytest.raises(IntegrityError):
                execute(f"INSERT INTO t (id, year) VALUES ({taken}, 1)")
        assert report.resyncs == []
        assert value("INSERT INTO t (year) VALUES (1) RETURNING id") == 3


def test_what_a_trigger_draws_is_not_given_by_the_statement(database: str) -> None:
    execute(
        """
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE TABLE log (id serial PRIMARY KEY, x int);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO log (x) VALUES (NEW.id); RETURN NULL; END';
        CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        INSERT INTO log (x) VALUES (0), (0)
        """
    )
    with safemigrate.healing("default") as report:
        execute("SELECT setval('log_id_seq', 1, false)")
        execute("INSERT INTO t (id) VALUES (7)")
    assert [each.retried for each in report.resyncs] == [True]


@pytest.mark.parametrize(
    "values", ["VALUES (DEFAULT)", "VALUES (nextval('t_id_seq'))", "SELECT nextval('t_id_seq')"]
)
def test_a_key_that_is_named_and_drawn(database: str, values: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    with safemigrate.healing("default") as report:
        execute("SELECT setval('t_id_seq', 1, false)")
        assert value(f"INSERT INTO t (id) {values} RETURNING id") == 3
    assert [each.retried for each in report.resyncs] == [False, True]


def test_a_key_that_was_drawn_and_is_taken_is_jumped_over(groups: None) -> None:
    """The nearest taken value is the sequence's own doing, whatever lies far ahead."""
    execute(f"{FAR}; SELECT setval('auth_group_id_seq', 3)")
    with safemigrate.healing() as report:
        execute("SELECT setval('auth_group_id_seq', 2)")
        assert value("INSERT INTO auth_group (name) VALUES ('new') RETURNING id") == 101
    assert [each.retried for each in report.resyncs] == [False, True]


def test_tables_of_one_name_are_each_rechecked(database: str) -> None:
    for schema in ("one", "two"):
        execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.tag (id serial PRIMARY KEY, x int)")
    with safemigrate.healing("default") as report, transaction.atomic():
        for schema in ("one", "two"):
            execute(f"INSERT INTO {schema}.tag (id, x) VALUES (1, 1)")
        for schema in ("one", "two"):
            execute(f"INSERT INTO {schema}.tag (x) VALUES (1)")
    assert [each.schema for each in report.resyncs] == ["one", "two"]


@pytest.mark.parametrize("column", ["name", "size"])
def test_a_failed_insert_uses_up_a_value(database: str, column: str) -> None:
    execute("CREATE TABLE tag (id serial PRIMARY KEY, name text UNIQUE, size int CHECK (size < 9))")
    failing = {"name": "'a'", "size": "9"}[column]
    with safemigrate.healing("default"), transaction.atomic():
        execute("INSERT INTO tag (id) VALUES (4)")
        execute("INSERT INTO tag (name) VALUES ('a')")
        for _ in range(2):
            with pytest.raises(Error), transaction.atomic():
                execute(f"INSERT INTO tag ({column}) VALUES ({failing})")
        assert value("INSERT INTO tag (name) VALUES ('b') RETURNING id") == 5


def test_who_is_told_decides_nothing(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the sweep, which goes on, nor before a retry."""

    def fail(event: object) -> None:
        raise OSError("disk full")

    execute(
        "CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (7);"
        "CREATE TABLE u (id serial PRIMARY KEY, note text); INSERT INTO u VALUES (7)"
    )
    with safemigrate.healing(tell=fail) as report:
        assert len(report.resyncs) == 2
        execute("SELECT setval('t_id_seq', 7, false)")
        execute("INSERT INTO t (note) VALUES ('retried')")
    assert "disk full" in caplog.text
    assert value("SELECT id FROM t WHERE note = 'retried'") == 8


def test_fewer_than_no_retries(database: str) -> None:
    message = "max_retries must be 0 or more, not -1"
    with pytest.raises(ValueError, match=message), safemigrate.healing(max_retries=-1):
        pass
