"""Where the sweep may come too late, can't read, or an error belongs to another statement."""

from __future__ import annotations

import io
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.core.management.sql import emit_pre_migrate_signal
from django.db import IntegrityError, connection, migrations, models
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, pre_migrate

from safemigrate.signals import sequence_resynced
from tests.support.databases import behind, execute, locked, put_behind, rows, value
from tests.support.project import Law, Project, run_python
from tests.support.texts import ADD_ITEM, LOG_ITEM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.attack

LOG_CHANGE = """
    CREATE TRIGGER t AFTER UPDATE OR DELETE ON app_log FOR EACH ROW EXECUTE FUNCTION log_item();
"""


def sql(text: str, params: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(text, params)


# --- receivers of migrate's signals -----------------------------------------------------------


def by_orm() -> None:
    from django.contrib.auth.models import Group

    Group.objects.create(name=f"group {Group.objects.count()}")


def by_function() -> None:
    sql("SELECT add_item('x')")


def by_block() -> None:
    sql("DO $$ BEGIN INSERT INTO app_item (name) VALUES ('x') ON CONFLICT DO NOTHING; END $$")


def by_trigger() -> None:
    sql("UPDATE app_log SET name = 'x' WHERE id = 1")
    sql("DELETE FROM app_log WHERE id = (SELECT min(id) FROM app_log)")


def by_execute() -> None:
    sql("PREPARE add_it AS INSERT INTO app_item (name) VALUES ('x')")
    sql("EXECUTE add_it")
    sql("DEALLOCATE add_it")


def by_the_driver() -> None:
    with connection.connection.cursor() as cursor:
        cursor.execute("INSERT INTO app_item (name) VALUES ('raw')")


def by_copy() -> None:
    with connection.cursor() as cursor:
        if is_psycopg3:
            with cursor.copy("COPY app_item (name) FROM STDIN") as copy:
                copy.write("a\n")
        else:
            cursor.copy_expert("COPY app_item (name) FROM STDIN", io.StringIO("a\n"))


def by_callproc() -> None:
    with connection.cursor() as cursor:
        cursor.callproc("add_item", ["x"])


READ = [by_orm, by_function, by_block, by_trigger, by_execute]
UNSEEN = [by_the_driver, by_copy, by_callproc]


@contextmanager
def heard(signal: Any, receiver: Callable[..., None]) -> Iterator[None]:
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@pytest.mark.parametrize("signal", [pre_migrate, post_migrate], ids=["pre", "post"])
@pytest.mark.parametrize(
    ("write", "planned"),
    [
        *((write, True) for write in (*READ, *UNSEEN)),
        *((write, False) for write in READ),
    ],
)
def test_a_receiver_of_migrates_signals_that_writes(
    filled: Project, law: Law, signal: Any, planned: bool, write: Callable[[], None]
) -> None:
    execute(ADD_ITEM + LOG_ITEM + LOG_CHANGE)
    execute("INSERT INTO auth_group (name) VALUES ('a'), ('b')")
    if planned:
        filled.migration(migrations.RunSQL("INSERT INTO app_log (name) VALUES ('x')"))

    first = next(each for each in apps.get_app_configs() if each.models_module)

    def receive(app_config: Any, **kwargs: Any) -> None:
        if app_config is first:
            write()

    with heard(signal, receive):
        assert law.holds().error is None


@pytest.mark.parametrize("readable", ["", ", app_item, app_item_id_seq"], ids=["", "readable"])
def test_a_receiver_that_sets_the_role(
    filled: Project, law: Law, database: str, readable: str
) -> None:
    """What the first role may not read, or not move, is swept as the second."""
    nobody = f"{database}_nobody"
    filled.migration(migrations.RunSQL("SELECT add_item('x')"))
    execute(f"CREATE ROLE {nobody}; GRANT SELECT ON django_migrations{readable} TO {nobody}")
    execute(ADD_ITEM)
    put_behind("app_item")

    def receive(**kwargs: Any) -> None:
        execute("RESET ROLE")

    with heard(pre_migrate, receive):
        execute(f"SET ROLE {nobody}")
        outcome = law.run("safemigrate")
    execute(f"DROP OWNED BY {nobody}; DROP ROLE {nobody}")
    assert outcome.error is None
    assert value("SELECT max(id) FROM app_item") == 21


@pytest.mark.parametrize(
    "given",
    [
        "INSERT INTO app_item (id, name) VALUES (21, 'given'), (1000, 'given')",
        "INSERT INTO items (id, name) VALUES (21, 'given'), (1000, 'given')",
        "DO $$ BEGIN INSERT INTO app_item (id, name) VALUES (21, 'g'), (1000, 'g'); END $$",
    ],
    ids=["", "through a view", "unseen"],
)
def test_a_second_sweep_leaves_what_the_run_has_given_keys_to(filled: Project, given: str) -> None:
    """There is one where something could not be checked; nobody else has written meanwhile."""
    execute(
        "CREATE TABLE held (id serial PRIMARY KEY); INSERT INTO held VALUES (1);"
        "CREATE VIEW items AS SELECT * FROM app_item"
    )
    filled.migration(
        migrations.RunSQL(
            ["DELETE FROM app_item WHERE id = 21", "INSERT INTO app_item (name) VALUES ('drawn')"]
        )
    )
    first = next(each for each in apps.get_app_configs() if each.models_module)

    def receive(app_config: Any, **kwargs: Any) -> None:
        if app_config is first:
            sql(given)

    with heard(pre_migrate, receive), locked("held"):
        filled.migrate("app", command="safemigrate")
    assert value("SELECT id FROM app_item WHERE name = 'drawn'") == 21


@pytest.mark.parametrize("planned", [True, False])
@pytest.mark.parametrize("suffix", ["", " ON CONFLICT DO NOTHING"], ids=["raises", "drops"])
def test_a_receiver_of_connection_created_that_writes(
    filled: Project, law: Law, suffix: str, planned: bool
) -> None:
    """An audit of each session: its row comes before the plan, and before the migration lock."""
    expected = [(21, "session")]
    if planned:
        filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('x')"))
        expected += [(22, "x")]
    put_behind("app_item")
    connection.close()

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == "default":
            sql(f"INSERT INTO app_item (name) VALUES ('session'){suffix}")

    with heard(connection_created, receive):
        outcome = law.run("safemigrate")
    assert outcome.error is None
    assert rows("SELECT id, name FROM app_item WHERE id > 20") == expected


def test_a_receiver_of_ours_that_raises(filled: Project, law: Law) -> None:
    def receive(**kwargs: Any) -> None:
        raise ValueError("not of the run")

    filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('x')"))
    with heard(sequence_resynced, receive):
        assert law.holds().error is None


def test_a_receiver_of_ours_that_writes(filled: Project, law: Law) -> None:
    """An audit of each resync, into a table whose own sequence may be behind."""

    def receive(record: Any, **kwargs: Any) -> None:
        sql("INSERT INTO app_log (name) VALUES (%s)", [str(record)])

    filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('x')"))
    put_behind()
    with heard(sequence_resynced, receive):
        assert law.run("safemigrate").error is None

    assert value("SELECT count(*) FROM app_log WHERE name LIKE 'Resynced%'") >= 2


# --- when and what the sweep reads ------------------------------------------------------------


def test_every_sequence_is_in_sync_before_the_first_migration(filled: Project, law: Law) -> None:
    found: list[list[str]] = []
    filled.migration(run_python(lambda apps, editor: found.append(behind())))
    put_behind()
    law.run("safemigrate")

    assert found == [[]]


def test_a_table_locked_during_the_sweep_and_written_by_a_function(filled: Project) -> None:
    """A documented limit: the first run fails as migrate does, and the next one goes on."""
    execute(ADD_ITEM)
    put_behind("app_item")
    lock = ExitStack()
    filled.migration(run_python(lambda apps, editor: lock.close()))
    filled.migration(migrations.RunSQL("SELECT add_item('x')"))
    lock.enter_context(locked("app_item"))
    with lock, pytest.raises(IntegrityError):
        filled.migrate(command="safemigrate", stderr=io.StringIO())
    filled.migrate(command="safemigrate")

    assert rows("SELECT id FROM app_item WHERE name = 'x'") == [(21,)]


@pytest.mark.parametrize("columns", ["", "(id, name)"])
def test_a_table_locked_during_the_sweep_that_is_given_keys(filled: Project, columns: str) -> None:
    """It was checked at its first INSERT; no DDL makes the keys those of before the run."""
    lock = ExitStack()
    filled.migration(run_python(lambda apps, editor: lock.close()))
    script: Any = [
        "INSERT INTO app_item (name) VALUES ('first')",
        f"INSERT INTO app_item {columns} VALUES (1000, 'given')",
        "CREATE TABLE other (id int)",
        f"INSERT INTO app_item {columns} VALUES (1001, 'given')",
        "INSERT INTO app_item (name) VALUES ('second')",
    ]
    filled.migration(migrations.RunSQL(script))
    lock.enter_context(locked("app_item"))
    with lock:
        filled.migrate(command="safemigrate", stderr=io.StringIO())

    assert rows("SELECT id FROM app_item WHERE name = 'second'") == [(22,)]


def test_a_session_that_ends_every_other(filled: Project, law: Law) -> None:
    """Scripts do that before they lock a table; the migration lock's session goes, too."""
    script: Any = [
        """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
        """,
        "INSERT INTO app_item (name) VALUES ('after')",
    ]
    filled.migration(migrations.RunSQL(script))
    filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('later')"))

    assert law.holds().error is None


def test_a_sentinel_at_the_end_of_the_range(filled: Project, law: Law) -> None:
    """21 is free, and the jump would leave nothing: the sequence stays where it is."""
    execute("INSERT INTO app_item (id, name) VALUES (9223372036854775807, 'sentinel')")
    filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('x')"))

    assert law.run("safemigrate").error is None
    assert rows("SELECT id FROM app_item WHERE name = 'x'") == [(21,)]


@pytest.mark.parametrize("odd", ["NaN", "Infinity", "-Infinity", "1e40"])
def test_a_numeric_key_that_is_no_number(filled: Project, law: Law, odd: str) -> None:
    """It can't be checked; the others still are."""
    if odd.endswith("Infinity") and connection.pg_version < 140000:  # type: ignore[attr-defined]
        pytest.skip("numeric has no infinity before PostgreSQL 14")
    execute(
        "CREATE TABLE app_other (id numeric PRIMARY KEY, name text);"
        "CREATE SEQUENCE app_keys OWNED BY app_other.id;"
        "ALTER TABLE app_other ALTER id SET DEFAULT nextval('app_keys');"
        f"INSERT INTO app_other VALUES ('{odd}', 'odd');"
        "SELECT setval('app_item_id_seq', 1, false)"
    )
    filled.migration(migrations.RunSQL("INSERT INTO app_other (name) VALUES ('x')"))
    filled.migration(migrations.RunSQL("INSERT INTO app_item (name) VALUES ('x')"))

    assert law.run("safemigrate").error is None
    assert rows("SELECT id FROM app_item WHERE name = 'x'") == [(21,)]


# --- whose error it is ------------------------------------------------------------------------


def test_a_pipelines_error_is_not_taken_for_another_statements(filled: Project, law: Law) -> None:
    """In a pipeline an error comes up at some later statement, which must not be sent again."""
    if not is_psycopg3:
        pytest.skip("pipelines are of psycopg 3")

    def pipe(apps: Any, editor: Any) -> None:
        sql("DO $$ BEGIN INSERT INTO app_item (id, name) VALUES (21, 'given'); END $$")
        with connection.connection.pipeline(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO app_item (name) VALUES ('collides')")
            cursor.execute("INSERT INTO app_log (name) VALUES ('once')")
            cursor.execute("INSERT INTO app_log (name) VALUES ('and once')")

    filled.migration(run_python(pipe), atomic=False)
    outcome = law.run("safemigrate")
    logged = rows("SELECT name FROM app_log WHERE id > 20")

    assert len(logged) == len(set(logged))
    assert outcome.error is not None or value("SELECT count(*) FROM app_item") == 22


@pytest.mark.parametrize("analyze", ["", "ANALYZE app_log"])
@pytest.mark.parametrize(
    "unique", ["ALTER TABLE app_log ADD PRIMARY KEY (id)", "CREATE UNIQUE INDEX ON app_log (id)"]
)
def test_a_key_that_becomes_unique_in_a_large_table(
    filled: Project, law: Law, unique: str, analyze: str
) -> None:
    """The sweep does not read the table, for want of an index; the INSERT comes after one."""
    execute("ALTER TABLE app_log DROP CONSTRAINT app_log_pkey")
    execute("INSERT INTO app_log (name) SELECT 'log ' || n FROM generate_series(1, 50000) AS n")
    execute(analyze or "SELECT 1")
    filled.migration(
        migrations.RunSQL(unique), migrations.RunSQL("INSERT INTO app_log (name) VALUES ('new')")
    )
    law.holds()


def test_a_number_drawn_before_it_becomes_unique(filled: Project) -> None:
    """The limit of the above: nobody has read the table when the number is drawn."""
    execute("ALTER TABLE app_log DROP CONSTRAINT app_log_pkey")
    execute("INSERT INTO app_log (name) SELECT 'log ' || n FROM generate_series(1, 50000) AS n")
    put_behind()
    filled.migration(migrations.RunSQL("INSERT INTO app_log (name) VALUES ('new')"))
    filled.migrate(command="safemigrate")

    assert rows("SELECT id FROM app_log WHERE name = 'new'") == [(1,)]


GIVE = {
    "insert": "INSERT INTO app_log (id, name) VALUES (900000, 'given')",
    "update": "UPDATE app_log SET id = 900000 WHERE id = 1",
}


@pytest.mark.parametrize("count", [1, 50_000], ids=["small", "large"])
@pytest.mark.parametrize("give", GIVE.values(), ids=GIVE)
def test_a_free_number_of_what_becomes_unique_is_used(
    filled: Project, law: Law, count: int, give: str
) -> None:
    """The run gives a key far ahead, makes the number unique, and draws the next, in sync."""
    execute("ALTER TABLE app_log DROP CONSTRAINT app_log_pkey")
    execute(f"INSERT INTO app_log (name) SELECT 'log ' || n FROM generate_series(1, {count}) AS n")
    unique = "ALTER TABLE app_log ADD PRIMARY KEY (id)"
    draw = "INSERT INTO app_log (name) VALUES ('drawn')"
    filled.migration(migrations.RunSQL([give, unique, draw]))
    law.holds(put_back=["django_migrations"])


# --- what stands in the way, or what feeds a key, changes in the run ---------------------------

DRAWS = [
    "INSERT INTO {table} (name) VALUES ('new')",
    "INSERT INTO {table} (name) VALUES ('new') ON CONFLICT DO NOTHING",
]


@pytest.mark.parametrize("together", [True, False], ids=["one-migration", "two"])
@pytest.mark.parametrize("largest", [2_147_483_647, 2_000_000_000])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_range_that_the_run_widens(
    project: Project, law: Law, draw: str, largest: int, together: bool
) -> None:
    project.migration(
        migrations.CreateModel(
            "Old",
            [("id", models.AutoField(primary_key=True)), ("name", models.CharField(max_length=9))],
        )
    )
    project.begin_with(
        f"old with {largest}",
        lambda: execute(f"INSERT INTO app_old VALUES (1, 'a'), (2, 'b'), ({largest}, 'c')"),
    )
    widen = migrations.AlterField("Old", "id", models.BigAutoField(primary_key=True))
    insert = migrations.RunSQL(draw.format(table="app_old"))
    if together:
        project.migration(widen, insert)
    else:
        project.migration(widen)
        project.migration(insert)

    assert law.holds().error is None
    assert rows("SELECT id FROM app_old WHERE name = 'new'") == [(largest + 1,)]


FED = {
    "default": "ALTER TABLE app_item ALTER id SET DEFAULT nextval('s')",
    "owner": "ALTER TABLE IF EXISTS ONLY public.app_item ALTER id SET DEFAULT nextval('s');"
    "ALTER SEQUENCE s OWNED BY app_item.id",
    "swap": """
        CREATE TABLE app_new (LIKE app_item INCLUDING INDEXES);
        ALTER TABLE app_new ALTER id SET DEFAULT nextval('s');
        INSERT INTO app_new SELECT id, name FROM app_item;
        DROP TABLE app_item;
        ALTER TABLE app_new RENAME TO app_item
    """,
}


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize("way", FED)
@pytest.mark.parametrize("draw", DRAWS)
def test_a_sequence_that_feeds_the_key_from_now_on(
    filled: Project, law: Law, draw: str, way: str, atomic: bool
) -> None:
    """As after a copy that has lost the defaults, which a migration puts back."""
    execute("ALTER TABLE app_item ALTER id DROP IDENTITY IF EXISTS")
    execute("CREATE SEQUENCE s; SELECT setval('s', 20)")
    script: Any = [FED[way], draw.format(table="app_item")]
    filled.migration(migrations.RunSQL(script), atomic=atomic)

    law.holds(spoil=lambda: execute("SELECT setval('s', 1, false)"))
    assert rows("SELECT id FROM app_item WHERE name = 'new'") == [(21,)]


@pytest.mark.parametrize("start", [1, 21])
@pytest.mark.parametrize(
    "way",
    [
        ["ALTER TABLE app_item ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START {start})"],
        [
            "CREATE SEQUENCE s START {start}",
            "ALTER TABLE app_item ALTER id SET DEFAULT nextval('s')",
        ],
        ["CREATE SEQUENCE s START {start};ALTER TABLE app_item ALTER id SET DEFAULT nextval('s')"],
        ["ALTER TABLE app_item ALTER id SET DEFAULT nextval('old')"],
    ],
    ids=["identity", "default", "one-text", "old"],
)
def test_a_sequence_that_fed_nothing_gives_what_is_free(
    filled: Project, law: Law, way: list[str], start: int
) -> None:
    """It was never in sync with the table, nor is it after migrate."""
    execute("ALTER TABLE app_item ALTER id DROP IDENTITY IF EXISTS, ALTER id DROP DEFAULT")
    execute(f"DELETE FROM app_item WHERE id < 11 AND {start} = 1")
    execute(f"CREATE SEQUENCE old START {start}")
    execute("INSERT INTO app_item VALUES (1000, 'far')")
    script: Any = [
        *(statement.format(start=start) for statement in way),
        "INSERT INTO app_item (name) VALUES ('new')",
    ]
    filled.migration(migrations.RunSQL(script))
    assert law.holds().error is None
    assert rows("SELECT id FROM app_item WHERE name = 'new'") == [(start,)]


def test_a_table_with_keys_of_its_own_is_renamed(filled: Project, law: Law) -> None:
    """They are in nobody's way: in sync or not, the next value is taken."""
    script: Any = [
        "INSERT INTO app_item VALUES (1000, 'far')",
        "ALTER TABLE app_item RENAME TO app_thing",
        "INSERT INTO app_thing (name) VALUES ('new')",
    ]
    filled.migration(migrations.RunSQL(script))
    assert law.holds().error is None
    assert rows("SELECT id FROM app_thing WHERE name = 'new'") == [(21,)]
    assert law.run("safemigrate").error is None


def test_signals_of_migrate_that_say_nothing_of_a_plan(filled: Project, law: Law) -> None:
    """A migration may send them, and in Django's function for it the plan is optional."""

    def send(apps: Any, editor: Any) -> None:
        emit_pre_migrate_signal(0, False, "default")

    filled.migration(run_python(send))
    assert law.holds().error is None
