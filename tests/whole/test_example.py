"""The example project, as people try it: anywhere, and never on a database of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.support.databases import binding, execute, value

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MARK = "made by manage.py demo, which drops it without asking"


def manage(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(
        [sys.executable, folder / "manage.py", *command],
        env={
            **without,
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=180,
    )


def url_of(name: str) -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Path]:
    """A copy of the example in a path with spaces, with a server of its own."""
    folder = tmp_path / "my projects" / "example_project"
    shutil.copytree(
        ROOT / "example_project", folder, ignore=shutil.ignore_patterns(".*", "__pycache__")
    )
    yield folder
    for record in folder.glob(".postgres/*.path"):
        shutil.rmtree(Path(record.read_text(encoding="utf-8")).parent)


@pytest.fixture
def precious(database: str) -> str:
    """A database of somebody's, with a sequence that is not behind."""
    execute("CREATE TABLE django_migrations (id bigserial PRIMARY KEY)")
    execute("INSERT INTO django_migrations SELECT FROM pg_catalog.generate_series(1, 7)")
    return database


def next_of_precious() -> int:
    return int(value("SELECT last_value FROM django_migrations_id_seq"))


def led_to(precious: str) -> dict[str, str]:
    """Return libpq's variables, exported for another server than the example's."""
    parts = urlsplit(url_of(precious))
    host = value("SELECT pg_catalog.current_setting('unix_socket_directories')")
    return {
        "PGHOST": parts.hostname if parts.port and parts.hostname else host,
        "PGPORT": str(parts.port or 5432),
        "PGUSER": parts.username or "postgres",
        "PGPASSWORD": parts.password or "",
        "PGDATABASE": precious,
        "PGOPTIONS": "-c search_path=nowhere",
    }


def test_a_walk(example: Path, precious: str) -> None:
    """In a path with spaces and the C locale, while PG* leads to a database of somebody's."""
    environment = led_to(precious) | {"LC_ALL": "C"}
    done = manage(example, "check", **environment)
    assert done.returncode == 0, done.stderr
    assert not (example / ".postgres").exists(), "a server nobody asked for"
    for command, said in (
        ("migrate", "Applying shop.0005_order_shop_order_placed_at... OK"),
        ("fallbehind --all", 'Database "postgres" on the example\'s own server:'),
        ("resyncsequences", "resynced to"),
        ("startover", 'Database "postgres" on the example\'s own server is empty again.'),
        ("showmigrations shop", "[ ] 0001_initial"),
        ("safemigrate", "Applying shop.0005_order_shop_order_placed_at... OK"),
    ):
        done = manage(example, *command.split(), **environment)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert next_of_precious() == 7
    assert value("SELECT count(*) FROM pg_class WHERE relname = 'shop_order'") == 0
    for record in example.glob(".postgres/*.path"):
        data = Path(record.read_text(encoding="utf-8"))
        assert not (data / "postmaster.pid").exists(), "a server was left running"


@pytest.mark.parametrize("command", ["fallbehind --all", "demo", "startover"])
def test_a_database_of_somebody_s_is_refused(precious: str, command: str) -> None:
    url = url_of(precious)
    done = manage(ROOT / "example_project", *command.split(), DATABASE_URL=url)
    assert done.returncode == 1
    assert f'Database "{precious}" on ' in done.stderr
    assert "the example did not make it" in done.stderr
    assert next_of_precious() == 7


def test_a_database_of_somebody_s_that_is_meant(precious: str) -> None:
    command = "fallbehind", "--all", "--this-database"
    done = manage(ROOT / "example_project", *command, DATABASE_URL=url_of(precious))
    assert done.returncode == 0, done.stderr
    assert f'Database "{precious}" on ' in done.stdout
    assert next_of_precious() == 1


def test_a_database_that_the_example_made(precious: str) -> None:
    execute(f"COMMENT ON DATABASE {precious} IS '{MARK}'")
    url = url_of(precious)
    done = manage(ROOT / "example_project", "fallbehind", "--all", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert next_of_precious() == 1
    assert manage(ROOT / "example_project", "startover", DATABASE_URL=url).returncode == 0
    with binding("default", precious):
        assert value("SELECT count(*) FROM pg_class WHERE relname = 'django_migrations'") == 0


def test_the_suite_goes_where_it_is_told() -> None:
    """Variables of libpq's, exported for another server, must not lead the tests there."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "tests/test_checks.py"],
        cwd=ROOT,
        env=os.environ | {"PGHOSTADDR": "127.0.0.1", "PGPORT": "1", "PGOPTIONS": "-c nonsense=1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout
