"""Several processes that run the command at once, as replicas do when they start."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection, migrations, transaction
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_migrate

from safemigrate import healing
from tests.support.databases import behind, elsewhere, execute, locked, put_behind, rows, value
from tests.support.locks import LOCK_SESSIONS, terminate
from tests.support.project import Project, run_python
from tests.support.runs import LONG, ROOT, somebody_migrating

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("database")

REPLICAS = 8
NAMES = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
SETTINGS = """
from tests.settings import *
DATABASES = {{"default": {database!r}}}
MIGRATION_MODULES = {{"app": "fleet_migrations"}}
"""
ITEM = """
from django.db import migrations, models
class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Item", [
            ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]),
    ]
"""
INDEX = """
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
class Migration(migrations.Migration):
    atomic = False
    dependencies = [("app", "0001_item")]
    operations = [
        migrations.RunSQL("SELECT pg_sleep(3)"),
        AddIndexConcurrently("item", models.Index(fields=["name"], name="item_by_name")),
    ]
"""


class Fleet:
    """The replicas of a project in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.migrations = folder / "fleet_migrations"
        self.migrations.mkdir()
        (self.migrations / "__init__.py").touch()
        (self.migrations / "0001_item.py").write_text(ITEM)

    def runs(self, *args: str, **options: Any) -> list[tuple[int | None, str]]:
        """Run the command in all replicas at once; return exit statuses and what was printed."""
        database = {name: connection.settings_dict[name] for name in NAMES}
        settings = SETTINGS.format(database={**database, "OPTIONS": options})
        (self.folder / "fleet_settings.py").write_text(settings)
        with ExitStack() as stack:
            replicas = [stack.enter_context(self._replica(*args)) for _ in range(REPLICAS)]
            printed = [replica.communicate(timeout=LONG)[0] for replica in replicas]
        return [(replica.returncode, text) for replica, text in zip(replicas, printed, strict=True)]

    @contextmanager
    def _replica(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-m", "django", "safemigrate", "--settings=fleet_settings", *args],
            env={**os.environ, "PYTHONPATH": f"{self.folder}:{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def well(ended: list[tuple[int | None, str]]) -> None:
    """Assert that every replica ended well, that one applied all, and the others nothing."""
    assert [status for status, _ in ended] == [0] * REPLICAS, ended
    assert sum("  Applying " in text for _, text in ended) == 1
    assert sum("  No migrations to apply." in text for _, text in ended) == REPLICAS - 1
    twice = "SELECT app, name FROM django_migrations GROUP BY app, name HAVING count(*) > 1"
    assert rows(twice) == []
    assert behind() == []


@pytest.mark.parametrize("round_", range(3))
def test_eight_at_once_on_an_empty_database(fleet: Fleet, round_: int) -> None:
    well(fleet.runs())


@pytest.mark.parametrize("round_", range(3))
def test_eight_at_once_with_everything_behind(fleet: Fleet, round_: int) -> None:
    call_command("migrate", verbosity=0)
    put_behind()
    assert len(behind()) == 3
    well(fleet.runs())


def test_an_index_is_built_concurrently_while_seven_wait(fleet: Fleet) -> None:
    (fleet.migrations / "0002_index.py").write_text(INDEX)
    ended = fleet.runs(
        options="-c idle_in_transaction_session_timeout=1000"
        " -c default_transaction_isolation=repeatable\\ read"
    )
    well(ended)
    assert sum("Waiting up to 600 s for the migration lock" in text for _, text in ended) >= 1
    assert value("SELECT indisvalid FROM pg_index WHERE indexrelid = 'item_by_name'::regclass")


def test_patience_ends_in_an_error_for_the_operator(project: Project) -> None:
    with somebody_migrating() as holder:
        with pytest.raises(CommandError, match=f"held by process {holder.pid} on .*") as raised:
            project.migrate(command="safemigrate", lock_wait=0)
        assert "--lock-wait" in str(raised.value)


@pytest.mark.parametrize("options", [{"no_lock": True}, {"plan": True}])
def test_what_takes_no_lock_does_not_wait(project: Project, options: dict[str, Any]) -> None:
    with somebody_migrating():
        assert project.migrate(command="safemigrate", lock_wait=0, **options)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT set_config('app.user', 'x', false)", ["copied", "migrated"]),
        (
            "INSERT INTO auth_group (name) SELECT 'run ' || random() ON CONFLICT DO NOTHING",
            ["run", "copied", "run", "migrated"],
        ),
    ],
    ids=["may write", "writes"],
)
def test_rows_of_the_run_that_was_waited_for_are_in_nobodys_way(
    project: Project, statement: str, expected: list[str]
) -> None:
    """A receiver has had the sequences checked before the wait, and comes again after it."""

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == "default":
            with connection.cursor() as cursor:
                cursor.execute(statement)

    def copy_and_end() -> None:
        elsewhere("INSERT INTO auth_group (id, name) SELECT count(*) + 1, 'copied' FROM auth_group")
        holder.kill()

    insert = "INSERT INTO auth_group (name) VALUES ('migrated')"
    project.migrate()
    project.migration(run_python(lambda *_: execute(insert)))
    with somebody_migrating() as holder:
        connection.close()
        connection_created.connect(receive)
        timer = Timer(2.0, copy_and_end)
        timer.start()
        try:
            printed = project.migrate("app", command="safemigrate")
        finally:
            timer.join()
            connection_created.disconnect(receive)
    assert "Waiting up to" in printed
    found = rows("SELECT id, split_part(name, ' ', 1) FROM auth_group ORDER BY id")
    assert found == list(enumerate(expected, 1))


@contextmanager
def somebody_copying(sql: str, **settings: Any) -> Iterator[None]:
    """Have another process hold the lock for two seconds; others write before it lets go."""

    def copy_and_end() -> None:
        elsewhere(sql)
        holder.kill()

    with somebody_migrating(**settings) as holder:
        timer = Timer(2.0, copy_and_end)
        timer.start()
        try:
            yield
        finally:
            timer.join()


COPIED = (
    "INSERT INTO auth_group (id, name) SELECT n, 'copied ' || n FROM generate_series(1, 5) AS n"
)
# A trigger's INSERT, which nobody sees.
FIRE = """
    CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO t (note) VALUES ('drawn') ON CONFLICT DO NOTHING; RETURN NULL;
    END $$;
    CREATE TRIGGER fire AFTER INSERT ON django_content_type EXECUTE FUNCTION fire()
"""
TABLES = {
    "plain": "CREATE TABLE t (id serial PRIMARY KEY, note text)",
    "with a trigger": """
        CREATE TABLE t (id serial PRIMARY KEY, note text);
        CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER pass BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pass()
        """,
    "partitioned": """
        CREATE TABLE t (id serial PRIMARY KEY, note text) PARTITION BY RANGE (id);
        CREATE TABLE t1 PARTITION OF t DEFAULT
        """,
}
NEWS = "INSERT INTO django_content_type (app_label, model) VALUES ('new', 'new')"


def test_a_run_in_a_transaction_checks_anew_after_its_wait(project: Project) -> None:
    insert = "INSERT INTO auth_group (name) VALUES ('drawn') ON CONFLICT (id) DO NOTHING"
    project.migrate()
    project.migration(run_python(lambda *_: execute(insert)))
    with somebody_copying(COPIED), healing(), transaction.atomic():
        execute(NEWS)
        assert "Waiting up to" in project.migrate("app", command="safemigrate")
    assert rows("SELECT id FROM auth_group WHERE name = 'drawn'") == [(6,)]


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_the_run_has_given_keys_to_is_in_sync_after_a_wait(
    project: Project, table: str
) -> None:
    project.migrate()
    project.migration(run_python(lambda *_: execute(NEWS)))
    execute(table)
    execute(FIRE)
    copied = "INSERT INTO t SELECT n, 'copied' FROM generate_series(1, 5) AS n"
    with healing(), somebody_copying(copied):
        execute("INSERT INTO t VALUES (1000, 'given')")
        assert "Waiting up to" in project.migrate("app", command="safemigrate")
    assert rows("SELECT id FROM t WHERE note = 'drawn'") == [(1001,)]


def test_a_nested_run_s_wait_is_for_its_own_database(project: Project, other_database: str) -> None:
    """Of the outer run's nothing has changed: 1000 is a key that it has given."""
    drawn: list[Any] = []

    def nest(*_: Any) -> None:
        draw = "INSERT INTO t (note) VALUES ('drawn') RETURNING id"
        drawn.append(value(draw))
        execute("DO 'BEGIN INSERT INTO t VALUES (1000); END'")
        call_command("safemigrate", "contenttypes", database="other", verbosity=0)
        drawn.append(value(draw))

    execute("CREATE TABLE t (id serial PRIMARY KEY, note text)")
    project.migration(run_python(nest, atomic=False), atomic=False)
    with somebody_copying("SELECT 1", NAME=other_database):
        project.migrate("app", command="safemigrate")
    assert drawn == [1, 2]


def test_a_wait_does_not_move_a_sequence_past_keys_that_the_run_has_given(project: Project) -> None:
    """What was copied into another table meanwhile is in nobody's way all the same."""
    copy = (
        "INSERT INTO django_content_type SELECT max(id) + 1, 'copied', 'copied' "
        "FROM django_content_type"
    )
    project.migrate()
    with healing(), somebody_copying(copy):
        execute("INSERT INTO auth_group (id, name) VALUES (1000, 'given')")
        assert "Waiting up to" in project.migrate(command="safemigrate")
        copied = value("SELECT max(id) FROM django_content_type")
        assert value("INSERT INTO auth_group (name) VALUES ('drawn') RETURNING id") == 1
        drawn = value(
            "INSERT INTO django_content_type (app_label, model) VALUES ('drawn', 'drawn') "
            "ON CONFLICT (id) DO NOTHING RETURNING id"
        )
        assert drawn == copied + 1


def test_a_wait_ends_with_the_sweep_that_follows_it(project: Project) -> None:
    """The next one, for a table that was locked, comes when nobody else has written."""
    project.migrate()
    project.migration(migrations.RunSQL("INSERT INTO t (id, note) VALUES (5, 'drawn')"))
    execute(
        "CREATE TABLE t (id int PRIMARY KEY, number serial, note text);"
        "INSERT INTO t (id, note) VALUES (1, 'a'), (2, 'b');"
        "CREATE TABLE held (id serial PRIMARY KEY); INSERT INTO held VALUES (1)"
    )
    first = next(each for each in apps.get_app_configs() if each.models_module)

    def receive(app_config: Any, **_: Any) -> None:
        if app_config is first:
            execute("INSERT INTO t VALUES (3, 3, 'given')")

    pre_migrate.connect(receive)
    try:
        with locked("held"), somebody_copying("SELECT 1"):
            assert "Waiting up to" in project.migrate("app", command="safemigrate")
    finally:
        pre_migrate.disconnect(receive)
    assert rows("SELECT number FROM t WHERE note = 'drawn'") == [(3,)]


@pytest.mark.parametrize("options", [{}, {"verbosity": 0}])
def test_a_lock_that_is_lost_is_logged(
    project: Project, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    lose = run_python(lambda apps, editor: terminate(LOCK_SESSIONS), atomic=False)
    project.migration(lose, atomic=False)
    assert "may have migrated" in project.migrate("app", command="safemigrate", **options)
    assert [record.name for record in caplog.records if "lost" in record.message] == ["safemigrate"]


def test_a_command_within_a_migration_does_not_wait(project: Project) -> None:
    def nested(apps: Any, editor: Any) -> None:
        for command in ("migrate", "safemigrate"):
            call_command(command, "contenttypes", verbosity=0)

    project.migration(run_python(nested, atomic=False), atomic=False)
    assert "Applying app.0001_step... OK" in project.migrate(
        "app", command="safemigrate", lock_wait=0
    )


def migrate_in_a_child(label: str) -> str:
    connection.connection = None
    call_command("safemigrate", label, verbosity=0, lock_wait=0)
    connection.close()
    return label


def test_forked_children_do_not_wait(project: Project) -> None:
    """As django-tenants' multiprocessing executor does it, which first lets go of connections."""

    def fork(apps: Any, editor: Any) -> None:
        connection.close()
        with get_context("fork").Pool(1) as pool:
            assert pool.map(migrate_in_a_child, ["contenttypes", "auth"]) == [
                "contenttypes",
                "auth",
            ]

    project.migration(run_python(fork, atomic=False), atomic=False)
    execute("SELECT 1")
    printed = project.migrate("app", command="safemigrate", lock_wait=0)
    assert "Applying app.0001_step... OK" in printed
    assert "lost" not in printed
    assert value("SELECT count(*) FROM django_migrations WHERE app = 'auth'") >= 12
