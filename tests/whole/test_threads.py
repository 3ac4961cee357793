"""A ``migrate`` of the project's own that works in threads, as django-pgschemas has it."""

from __future__ import annotations

import gc
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from django.core import management
from django.core.management.commands import migrate
from django.db import IntegrityError, connection, connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from tests.support.databases import behind, execute, put_behind, value
from tests.support.project import Project, run_python
from tests.support.runs import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

INSERT = "INSERT INTO auth_group (name) SELECT random() ON CONFLICT (id) DO NOTHING"
SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend'
    AND application_name NOT LIKE 'safemigrate%'
"""


@pytest.fixture
def pool(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Have ``migrate`` do its work in a thread, which outlives the run."""

    class InAThread(migrate.Command):
        def handle(self, *args: Any, **options: Any) -> None:
            threads.submit(super().handle, *args, **options).result()

    project.migrate()
    execute("INSERT INTO auth_group (name) SELECT g FROM generate_series(1, 3) AS g")
    monkeypatch.setitem(management.get_commands(), "migrate", InAThread())
    with ThreadPoolExecutor(1) as threads:
        yield threads
        threads.submit(connections.close_all).result()


def test_nothing_is_lost(project: Project, pool: ThreadPoolExecutor) -> None:
    project.migration(run_python(lambda *_: execute(INSERT)))
    put_behind()
    printed = project.migrate("app", command="safemigrate")
    assert "Resynced public.auth_group_id_seq from 1 to 4" in printed
    assert value("SELECT max(id) FROM auth_group") == 4
    assert behind() == []


def test_another_database_of_the_settings(
    project: Project, pool: ThreadPoolExecutor, other_database: str
) -> None:
    def insert(*_: Any) -> None:
        with connections["other"].cursor() as cursor:
            cursor.execute("INSERT INTO t (note) VALUES ('drawn') ON CONFLICT (id) DO NOTHING")
        connections["other"].close()

    filled = "CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1), (7)"
    with connections["other"].cursor() as cursor:
        cursor.execute(filled)
    project.migration(run_python(insert))
    project.migrate("app", command="safemigrate")
    with connections["other"].cursor() as cursor:
        cursor.execute("SELECT id FROM t WHERE note = 'drawn'")
        assert cursor.fetchall() == [(8,)]


def test_a_run_without_a_plan(project: Project, pool: ThreadPoolExecutor) -> None:
    execute("DELETE FROM auth_permission WHERE codename = 'view_group'")
    put_behind()
    assert "Resynced public.auth_permission" in project.migrate(command="safemigrate")
    assert value("SELECT count(*) FROM auth_permission WHERE codename = 'view_group'") == 1


def test_nothing_is_left_behind(project: Project, pool: ThreadPoolExecutor) -> None:
    project.migration(run_python(lambda *_: execute(INSERT)))
    project.migrate("app", command="safemigrate")
    assert pool.submit(lambda: list(connection.execute_wrappers)).result() == []


def test_an_error_is_explained_once(project: Project, pool: ThreadPoolExecutor) -> None:
    given = "INSERT INTO auth_group (id, name) VALUES (1, 'given')"
    project.migration(run_python(lambda *_: execute(given)))
    err = io.StringIO()
    with pytest.raises(IntegrityError):
        project.migrate("app", command="safemigrate", stderr=err)
    assert err.getvalue().count("safemigrate: ") == 1


@pytest.mark.skipif(is_psycopg3, reason="psycopg 3 warns of a connection that nobody has closed")
def test_a_connection_ends_with_its_thread(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has closed it, and there may be hundreds."""

    class InThreads(migrate.Command):
        def handle(self, *args: Any, **options: Any) -> None:
            for _ in range(3):
                thread = Thread(target=super().handle, args=args, kwargs=options)
                thread.start()
                thread.join()
                gc.collect()
            eventually(lambda: value(SESSIONS) == 1)

    project.migrate()
    monkeypatch.setitem(management.get_commands(), "migrate", InThreads())
    for command in ("migrate", "safemigrate"):
        project.migration(run_python(lambda *_: execute(INSERT)))
        project.migrate("app", command=command)
