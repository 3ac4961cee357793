"""On a database in sync ``safemigrate`` does nothing that ``migrate`` would not have done.

Each migration writes down what it sees of its connection, so that the law compares that as rows. It
has to see the same where the sequences were behind: they are in sync before the run writes.
"""

from __future__ import annotations

import io
import logging
import re
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import DataError, IntegrityError, connection, connections, migrations, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from tests.support.databases import Databases, execute, rows, value
from tests.support.models import create
from tests.support.project import Law, Project, run_python
from tests.support.servers import moved_to_a_server_of_its_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.attack

WAYS: list[Any] = []
SEEN = "INSERT INTO app_seen (what) VALUES (%s)"
# They carry the thread's number and that of the savepoint.
SAVEPOINT = re.compile(r'"?s\d+_x\d+"?')
ENOUGH = 200


def way(code: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    WAYS.append(pytest.param(code, id=code.__name__.replace("_", "-")))
    return code


def sql(text: Any, params: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(text, params)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []


def write_down(*what: Any) -> None:
    """Keep what a migration has seen, past every wrapper, where the law compares it."""
    with connection.connection.cursor() as cursor:
        for each in what:
            cursor.execute(SEEN, [SAVEPOINT.sub("savepoint", str(each))])


def write_and_read(Tag: Any) -> None:
    Tag.objects.create(name="new")
    Tag.objects.create(pk=300, name="given")
    Tag.objects.create(name="newer")
    Tag.objects.filter(name="new").update(name="renamed")
    Tag.objects.filter(name="tag 3").delete()
    for name in ("tag 1", "unheard of"):
        Tag.objects.get_or_create(name=name)
    for _ in range(3):
        with suppress(IntegrityError), transaction.atomic():
            Tag.objects.create(pk=1, name="twice")
    Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")], ignore_conflicts=True)


@way
def statements_by_a_wrapper(apps: Any, editor: Any) -> None:
    seen: list[str] = []

    def record(send: Any, text: Any, params: Any, many: bool, context: Any) -> Any:
        seen.append(f"{text} {params} {many}")
        return send(text, params, many, context)

    with connection.execute_wrapper(record):
        write_and_read(apps.get_model("app.Tag"))
    write_down(*seen)


@way
def statements_by_capture_queries(apps: Any, editor: Any) -> None:
    with CaptureQueriesContext(connection) as captured:
        write_and_read(apps.get_model("app.Tag"))
    write_down(len(captured), *(query["sql"] for query in captured))


@way
def currval_and_lastval_after_a_delete(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(name="new")
    apps.get_model("app.Log").objects.filter(id__lt=3).delete()
    sql("UPDATE app_log SET name = name || '!' WHERE id = 5")
    ((current, last),) = sql("SELECT currval('app_tag_id_seq'), lastval()")
    write_down(current, last)


@way
def lastval_before_anything(apps: Any, editor: Any) -> None:
    with suppress(Exception), transaction.atomic():
        write_down(sql("SELECT lastval()"))


@way
def lastval_across_a_recheck(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    apps.get_model("app.Log").objects.create(name="of another table")
    Tag.objects.create(pk=300, name="given")
    sql("INSERT INTO app_tag (name) SELECT lastval()::text")
    write_down(sql("SELECT lastval(), currval('app_log_id_seq')"))


@way
def transactions_of_rows(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(name="new")
    Tag.objects.create(pk=300, name="given")
    Tag.objects.create(name="newer")
    same = (
        "SELECT name, xmin::text = pg_current_xact_id()::xid::text, cmin FROM app_tag WHERE id > 20"
    )
    write_down(sql(f"{same} ORDER BY id"))
    write_down(sql("SELECT count(DISTINCT xmin::text) FROM app_tag"))


@way
def no_transaction_number_before_a_write(apps: Any, editor: Any) -> None:
    write_down(sql("SELECT pg_current_xact_id_if_assigned() IS NULL, pg_my_temp_schema()"))


@way
def locks_of_the_session(apps: Any, editor: Any) -> None:
    locks = """
        SELECT locktype, relation::regclass::text, mode FROM pg_locks
        WHERE pid = pg_backend_pid() AND (locktype = 'advisory' OR relation > 16384)
        ORDER BY 1, 2, 3
    """
    write_down(*sql(locks))
    apps.get_model("app.Tag").objects.create(name="new")
    write_down(*sql(locks))


@way
def settings_of_the_session(apps: Any, editor: Any) -> None:
    settings = """
        SELECT name, setting FROM pg_settings
        WHERE source = 'session' AND name <> 'client_connection_check_interval' ORDER BY 1
    """
    write_down(*sql(settings))
    sql("SET lock_timeout = '7s'")
    sql("SET search_path = app, public")
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=300, name="given")
    Tag.objects.create(name="drawn")
    write_down(*sql(settings))
    sql("RESET lock_timeout")
    sql("RESET search_path")


@way
def settings_of_the_transaction(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    with transaction.atomic():
        sql("SET LOCAL lock_timeout = '7s'")
        sql("SET LOCAL row_security = on")
        Tag.objects.create(pk=300, name="given")
        Tag.objects.create(name="drawn")
        write_down(sql("SHOW lock_timeout"), sql("SHOW row_security"))


@way
def prepared_statements_and_cursors_of_the_session(apps: Any, editor: Any) -> None:
    write_and_read(apps.get_model("app.Tag"))
    write_down(*sql("SELECT statement FROM pg_prepared_statements ORDER BY 1"))
    write_down(*sql("SELECT statement FROM pg_cursors WHERE statement NOT LIKE '%pg_cursors%'"))


@way
def what_a_cursor_says_of_itself(apps: Any, editor: Any) -> None:
    with connection.cursor() as cursor:
        for text in (
            "INSERT INTO app_tag (id, name) VALUES (300, 'given')",
            "INSERT INTO app_tag (name) VALUES ('x'), ('y')",
            "INSERT INTO app_tag (name) VALUES ('z') RETURNING id, name",
            "INSERT INTO app_tag (name) VALUES ('z') ON CONFLICT DO NOTHING",
            "UPDATE app_tag SET name = 'x' WHERE id < 3",
            "SELECT 1 AS one",
        ):
            cursor.execute(text)
            names = [column[0] for column in cursor.description or ()]
            found = cursor.fetchall() if names else []
            write_down(cursor.rowcount, cursor.statusmessage, names, [tuple(row) for row in found])


@way
def notices_of_the_server(apps: Any, editor: Any) -> None:
    heard: list[str] = []
    if is_psycopg3:
        connection.connection.add_notice_handler(
            lambda notice: heard.append(str(notice.message_primary))
        )
    sql("DROP TABLE IF EXISTS app_nothing")
    write_and_read(apps.get_model("app.Tag"))
    write_down(*(heard if is_psycopg3 else connection.connection.notices))


@way
def a_generator_that_reads_between_its_rows(apps: Any, editor: Any) -> None:
    def names() -> Iterator[list[str]]:
        for n in range(4):
            seen = sql("SELECT count(*) FROM app_tag") if not is_psycopg3 else n
            yield [f"after {seen}"]

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_tag (name) VALUES (%s)", names())


@way
def a_generator_that_ends_by_what_it_inserted(apps: Any, editor: Any) -> None:
    if is_psycopg3:
        pytest.skip("psycopg 3 sends the rows in a pipeline, where nothing can be read")

    def names() -> Iterator[list[str]]:
        for n in range(ENOUGH):
            if value("SELECT count(*) FROM app_tag") >= 25:
                return
            yield [f"number {n}"]
        raise AssertionError("its rows are collected first")

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_tag (name) VALUES (%s)", names())


@way
def a_generator_that_stops_where_the_server_says_no(apps: Any, editor: Any) -> None:
    """It would never end but for the duplicate."""
    given: list[int] = []

    def keys() -> Iterator[list[Any]]:
        for n in range(300, 300 + ENOUGH):
            given.append(n)
            yield [n if len(given) < 5 else 1, "x"]

    with suppress(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_tag (id, name) VALUES (%s, %s)", keys())
    if not is_psycopg3:
        write_down(given)


@way
def parameters_read_once(apps: Any, editor: Any) -> None:
    class Once(list):  # type: ignore[type-arg]
        reads = 0

        def __iter__(self) -> Any:
            type(self).reads += 1
            return super().__iter__()

    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO app_tag (name) VALUES (%s)", Once(["new"]))
    write_down(Once.reads)


@way
def bytes_that_are_no_text(apps: Any, editor: Any) -> None:
    with suppress(DataError), transaction.atomic():
        sql(b"INSERT INTO app_tag (name) VALUES ('\xff')")
    write_down("refused")


@way
def a_text_that_is_more_than_a_text(apps: Any, editor: Any) -> None:
    class Text(str):
        __slots__ = ()

        def lower(self) -> str:
            raise AssertionError("somebody read the text")

        strip = split = upper = lower  # type: ignore[assignment]

    sql(Text("INSERT INTO app_tag (name) VALUES ('x')"))


@way
def a_snapshot_taken_by_the_first_statement(apps: Any, editor: Any) -> None:
    def write() -> None:
        sql("INSERT INTO app_log (name) VALUES ('of the thread')")
        connection.close()

    with transaction.atomic():
        if not connection.savepoint_ids:
            connection.connection.cursor().execute(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            )
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        sql("INSERT INTO app_tag (name) SELECT count(*)::text FROM app_log")


@way
def serializable_from_the_first_statement(apps: Any, editor: Any) -> None:
    with transaction.atomic():
        if not connection.savepoint_ids:
            sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        write_and_read(apps.get_model("app.Tag"))


@way
def force_debug_cursor(apps: Any, editor: Any) -> None:
    connection.force_debug_cursor, before = True, connection.force_debug_cursor
    connection.queries_log.clear()
    try:
        write_and_read(apps.get_model("app.Tag"))
        write_down(*(query["sql"] for query in connection.queries))
    finally:
        connection.force_debug_cursor = before
        connection.queries_log.clear()


@way
def the_time_of_the_transaction(apps: Any, editor: Any) -> None:
    """In autocommit each statement has its own, in a transaction all have the first one's."""
    Tag = apps.get_model("app.Tag")
    ((before,),) = sql("SELECT now()")
    Tag.objects.create(pk=300, name="given")
    Tag.objects.create(name="drawn")
    ((after,),) = sql("SELECT now()")
    write_down(before == after)


@way
def errors_and_what_they_carry(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for _ in range(2):
        try:
            with transaction.atomic():
                Tag.objects.create(pk=1, name="twice")
        except IntegrityError as error:
            cause: Any = error.__cause__
            write_down(
                type(cause).__name__,
                cause.diag.constraint_name,
                str(error),
                repr(error.__context__) == repr(cause),
                error.__suppress_context__,
                getattr(error, "__notes__", None),
            )


@way
def sequences_positions(apps: Any, editor: Any) -> None:
    write_and_read(apps.get_model("app.Tag"))
    write_down(sql("SELECT last_value, is_called FROM app_tag_id_seq"))
    write_down(sql("SELECT last_value, is_called FROM app_seen_id_seq"))


@pytest.fixture
def seen(project: Project) -> Project:
    """A project with tables of twenty rows, and one for what its migrations see."""
    project.migration(create("Tag"), create("Log"))

    def fill() -> None:
        for table in ("app_tag", "app_log"):
            execute(
                f"INSERT INTO {table} (name) SELECT 'tag ' || n FROM generate_series(1, 20) AS n"
            )
        execute("CREATE TABLE app_seen (id serial PRIMARY KEY, what text)")

    project.begin_with("seen", fill)
    return project


HEALTHY, BEHIND = ["nothing"], list[str]()


@pytest.mark.parametrize("state", [HEALTHY, BEHIND], ids=["healthy", "behind"])
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize("code", WAYS)
def test_a_migration_sees_what_it_sees_under_migrate(
    seen: Project, law: Law, code: Callable[[Any, Any], None], atomic: bool, state: list[str]
) -> None:
    if code is lastval_before_anything and state is BEHIND:
        pytest.skip("the resync has drawn values in this session, so lastval() has one")
    seen.migration(run_python(code), atomic=atomic)

    assert law.holds(put_back=state).error is None


@contextmanager
def option(**options: Any) -> Iterator[None]:
    """Connect with some OPTIONS more."""
    connection.close()
    settings: Any = connection.settings_dict
    before = settings["OPTIONS"]
    settings["OPTIONS"] = {**before, **options}
    connection.__dict__.pop("isolation_level", None)
    try:
        yield
    finally:
        connection.close()
        settings["OPTIONS"] = before


def driver_options() -> list[Any]:
    if is_psycopg3:
        from psycopg import IsolationLevel
        from psycopg.rows import namedtuple_row

        return [
            pytest.param({"isolation_level": IsolationLevel.SERIALIZABLE}, id="serializable"),
            pytest.param({"isolation_level": IsolationLevel.REPEATABLE_READ}, id="repeatable"),
            pytest.param({"row_factory": namedtuple_row}, id="named-tuples"),
            pytest.param({"server_side_binding": True}, id="server-side-binding"),
            pytest.param({"prepare_threshold": 1}, id="prepared"),
        ]
    from psycopg2.extensions import ISOLATION_LEVEL_REPEATABLE_READ, ISOLATION_LEVEL_SERIALIZABLE
    from psycopg2.extras import NamedTupleCursor

    return [
        pytest.param({"isolation_level": ISOLATION_LEVEL_SERIALIZABLE}, id="serializable"),
        pytest.param({"isolation_level": ISOLATION_LEVEL_REPEATABLE_READ}, id="repeatable"),
        pytest.param({"cursor_factory": NamedTupleCursor}, id="named-tuples"),
        pytest.param({"options": "-c quote_all_identifiers=on"}, id="quote-all-identifiers"),
        pytest.param({"options": "-c search_path=app,public"}, id="search-path"),
        pytest.param({"options": "-c standard_conforming_strings=off"}, id="strings"),
        pytest.param({"options": "-c row_security=off -c lock_timeout=5s"}, id="row-security"),
        pytest.param({"options": "-c enable_indexscan=off -c enable_seqscan=off"}, id="no-scans"),
        pytest.param({"options": "-c DateStyle=SQL,DMY -c IntervalStyle=iso_8601"}, id="styles"),
        pytest.param({"client_encoding": "LATIN1"}, id="latin1"),
    ]


@pytest.mark.parametrize("state", [HEALTHY, BEHIND], ids=["healthy", "behind"])
@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize("options", driver_options())
def test_connections_of_another_make(
    seen: Project, law: Law, options: dict[str, Any], atomic: bool, state: list[str]
) -> None:
    def write(apps: Any, editor: Any) -> None:
        write_and_read(apps.get_model("app.Tag"))

    seen.migration(run_python(write), atomic=atomic)
    with option(**options):
        outcome = law.holds(put_back=state)

    assert outcome.error is None or "row_factory" in options


@pytest.mark.parametrize("state", [HEALTHY, BEHIND], ids=["healthy", "behind"])
@pytest.mark.parametrize(
    "script",
    [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; INSERT INTO app_tag (name) VALUES ('x')",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; UPDATE app_log SET name = 'x'",
        "LOCK TABLE app_tag IN ACCESS EXCLUSIVE MODE; INSERT INTO app_tag (name) VALUES ('x')",
    ],
)
def test_a_text_that_has_to_come_first(
    seen: Project, law: Law, script: str, state: list[str]
) -> None:
    seen.migration(migrations.RunSQL(script))

    assert law.holds(put_back=state).error is None


@pytest.mark.parametrize("state", [HEALTHY, BEHIND], ids=["healthy", "behind"])
def test_a_database_made_of_the_one_that_is_migrated(
    seen: Project, law: Law, databases: Databases, state: list[str]
) -> None:
    """The server refuses that while another session is connected, as the migration lock's is."""

    def copy(apps: Any, editor: Any) -> None:
        name = connection.settings_dict["NAME"]
        sql(f'CREATE DATABASE "{name}_copy" TEMPLATE "{name}"')
        sql(f'DROP DATABASE "{name}_copy"')

    seen.migration(run_python(copy), atomic=False)
    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('after')"))

    assert law.holds(put_back=state, ours={"no_lock": True}).error is None


@pytest.mark.parametrize(
    "script",
    [
        "CREATE INDEX CONCURRENTLY i ON app_tag (name)",
        "CREATE UNIQUE INDEX CONCURRENTLY i ON app_tag ((1))",
        "VACUUM app_tag",
        "REINDEX TABLE CONCURRENTLY app_tag",
        "ALTER TABLE app_tag ADD CONSTRAINT c CHECK (id < 5) NOT VALID",
        "CLUSTER app_tag USING app_tag_pkey",
    ],
)
def test_what_runs_in_no_transaction(seen: Project, law: Law, script: str) -> None:
    seen.migration(migrations.RunSQL(script), atomic=False)
    law.holds(put_back=HEALTHY)


@pytest.mark.parametrize("options", [{"plan": True}, {"check_unapplied": True}, {"fake": True}])
def test_options_of_migrate(seen: Project, law: Law, options: dict[str, Any]) -> None:
    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')"))
    law.holds(**options)


# --- what else may be seen of a run -----------------------------------------------------------


def test_one_log_record_and_one_line_for_each_resync(
    seen: Project, law: Law, caplog: pytest.LogCaptureFixture
) -> None:
    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')"))
    with caplog.at_level(logging.DEBUG, logger="safemigrate"):
        outcome = law.holds(put_back=["app_tag", "app_log"])
    told = [record for record in caplog.records if "app_tag_id_seq" in record.getMessage()]

    assert len(told) == 1
    assert sum("app_tag_id_seq" in line for line in outcome.notices) == 1


def test_a_project_that_filters_its_own_stdout(seen: Project, tmp_path: Path) -> None:
    """As some do to be rid of a warning: the filter has to stay in place."""
    from django.core.management.base import OutputWrapper

    from tests.ownmigrate.management.commands.migrate import Command

    class Filtered(OutputWrapper):
        def write(  # type: ignore[override]
            self, msg: str = "", *args: Any, **kwargs: Any
        ) -> None:
            if "door" not in msg:
                super().write(msg, *args, **kwargs)

    init = Command.__init__

    def initialise(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.stdout = Filtered(self.stdout._out)

    Command.__init__ = initialise  # type: ignore[method-assign]
    installed = ["tests.ownmigrate", "safemigrate", "django.contrib.contenttypes"]
    installed += ["django.contrib.auth", "tests.app"]
    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')", "SELECT 1"))
    try:
        with override_settings(INSTALLED_APPS=installed):
            output = {}
            for command in ("migrate", "safemigrate"):
                read, kept = io.StringIO(), io.StringIO()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("sys.stdout", read)
                    call_command(command, "app", "0001", no_color=True)
                output[command] = read.getvalue()
                del kept
                call_command("migrate", "app", "0002", verbosity=0)
    finally:
        Command.__init__ = init  # type: ignore[method-assign]

    assert "door" not in output["migrate"]
    assert "door" not in output["safemigrate"]


def test_receivers_of_connection_created_are_called_once(seen: Project, law: Law) -> None:
    """A project that sets something up for each session has it done for its own alone."""
    made: list[str] = []

    def count(connection: Any, **kwargs: Any) -> None:
        made.append(connection.alias)

    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')"))
    connection.close()
    connection_created.connect(count)
    try:
        law.run("migrate", "app")
        plain = len(made)
        made.clear()
        execute("DELETE FROM django_migrations WHERE app = 'app' AND name LIKE '0002%'")
        connection.close()
        law.run("safemigrate", "app")
    finally:
        connection_created.disconnect(count)

    assert len(made) <= plain + 1, made


RECORD = re.compile(r"^\[([\w.]+)\] LOG:  (?:statement|execute [^:]*): (.*)$", re.MULTILINE)
NEW = ("from-nothing", "nothing-to-do")


def test_a_run_with_nothing_to_write_sends_nothing_of_ours(seen: Project, law: Law) -> None:
    """Read from the log of a server of the test's own, in which nothing can hide."""
    settings = "log_statement = 'all'", "log_line_prefix = '[%c] '"
    with moved_to_a_server_of_its_own(*settings) as server:
        log = Path(server.pgdata) / "log"
        law.project.migrate()
        execute("SELECT setval('django_migrations_id_seq', 1, false)")
        sent = {}
        for command in ("migrate", "safemigrate"):
            connection.close()
            start = log.stat().st_size
            law.project.migrate(command=command)
            connection.close()
            sent[command] = _longest(log.read_text()[start:])

    assert sent["safemigrate"] == sent["migrate"]
    assert sent["migrate"]


def _longest(text: str) -> list[str]:
    sessions: dict[str, list[str]] = {}
    for session, statement in RECORD.findall(text):
        sessions.setdefault(session, []).append(statement)
    return max(sessions.values(), key=len)


def test_a_second_alias_is_not_touched(seen: Project, other_database: str) -> None:
    seen.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')"))
    with CaptureQueriesContext(connections["other"]) as captured:
        seen.migrate(command="safemigrate")

    assert len(captured) == 0
    assert rows("SELECT count(*) FROM app_tag") == [(21,)]
