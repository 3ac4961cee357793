"""``--json-report``: what it tells of runs that end well, fail, or are ended."""

from __future__ import annotations

import io
import json
import os
import signal
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError
from django.db import IntegrityError, OperationalError, connection, connections, migrations

from safemigrate.locking.lock import KEY
from tests.support.databases import behind, binding, execute, locked, put_behind, rows
from tests.support.models import create
from tests.support.project import Project, run_python
from tests.support.runs import LONG, eventually
from tests.support.sites import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEYS = ["database", "exit_status", "error", "resynced", "retried", "notes", "waited", "blocked_by"]
MIGRATION = """
from django.db import migrations
class Migration(migrations.Migration):
    operations = [migrations.RunSQL("{sql}")]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert list(document) == KEYS
    return document


def test_nothing_to_tell(project: Project, file: Path) -> None:
    project.migrate(command="safemigrate", json_report=str(file))
    assert read(file) == {
        "database": "default",
        "exit_status": 0,
        "error": None,
        "resynced": [],
        "retried": 0,
        "notes": [],
        "waited": [],
        "blocked_by": [],
    }


def test_without_it_nothing_is_written(project: Project, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    project.migrate(command="safemigrate")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verbosity", [0, 1])
def test_what_was_resynced(project: Project, file: Path, verbosity: int) -> None:
    project.migrate("auth")
    put_behind("django_migrations")
    project.migration(create("Tag"))
    project.migrate(command="safemigrate", json_report=str(file), verbosity=verbosity)
    resyncs = {each["sequence"]: each for each in read(file)["resynced"]}
    found = resyncs["django_migrations_id_seq"]
    assert found.pop("after") > found.pop("before") == 1
    assert found == {
        "using": "default",
        "schema": "public",
        "table": "django_migrations",
        "column": "id",
        "sequence": "django_migrations_id_seq",
        "retried": False,
    }


def test_what_was_retried(project: Project, file: Path) -> None:
    def insert(apps: Any, editor: Any) -> None:
        execute("SELECT setval('app_tag_id_seq', 1, false)")
        execute("INSERT INTO app_tag DEFAULT VALUES")

    project.migration(create("Tag"), migrations.RunSQL("INSERT INTO app_tag VALUES (1), (7)"))
    project.migrate()
    project.migration(run_python(insert), atomic=False)
    project.migrate(command="safemigrate", json_report=str(file))
    document = read(file)
    assert document["retried"] == 1
    retried = [each["sequence"] for each in document["resynced"] if each["retried"]]
    assert retried == ["app_tag_id_seq"]


def test_a_run_that_fails(project: Project, file: Path) -> None:
    project.migration(create("Tag"))
    twice = migrations.RunSQL("INSERT INTO app_tag (id) VALUES (1), (1)")
    project.migration(twice, atomic=False)
    with pytest.raises(IntegrityError):
        project.migrate(command="safemigrate", json_report=str(file))
    document = read(file)
    assert document["exit_status"] == 1
    assert document["error"].startswith("IntegrityError: duplicate key value violates")
    assert "\n" not in document["error"]
    (note,) = document["notes"]
    assert note["is_fatal"]
    assert note["text"].startswith("Genuine duplicate in ")


def test_the_exit_status_of_a_check(project: Project, file: Path) -> None:
    project.migration(create("Tag"))
    with pytest.raises(SystemExit):
        project.migrate(command="safemigrate", check_unapplied=True, json_report=str(file))
    assert read(file)["exit_status"] == 1


@pytest.fixture
def held(database: str) -> Iterator[None]:
    """Let a session that is no run of ours hold the migration lock."""
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, hashtext('public'))", [KEY])
        yield


def test_what_was_waited_for(project: Project, held: None, file: Path) -> None:
    with pytest.raises(CommandError, match="Gave up"):
        project.migrate(command="safemigrate", json_report=str(file), lock_wait=1)
    document = read(file)
    assert document["error"].startswith("CommandError: Gave up after 1 s")
    (waited,) = document["waited"]
    assert waited["for"] == "migration lock"
    assert waited["seconds"] > 0
    assert "the migration lock" in waited["reason"]


def test_who_held_a_lock(project: Project, file: Path) -> None:
    project.migration(create("Tag"))
    project.migrate()
    project.migration(migrations.RunSQL("ALTER TABLE app_tag ADD note text"))
    with locked("app_tag"), pytest.raises(OperationalError):
        project.migrate(
            command="safemigrate", json_report=str(file), lock_timeout=0.2, lock_patience=1
        )
    blocked = read(file)["blocked_by"]
    assert {each["relation"] for each in blocked} == {"app_tag"}
    assert {each["mode"] for each in blocked} == {"AccessExclusiveLock"}


def test_a_file_that_can_not_be_written(project: Project, tmp_path: Path) -> None:
    project.migration(create("Tag"))
    with pytest.raises(CommandError, match=r"The report can't be written to .*: Is a directory"):
        project.migrate(command="safemigrate", json_report=str(tmp_path))
    assert rows("SELECT to_regclass('app_tag'), to_regclass('django_migrations')") == [(None, None)]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="only Linux has /dev/full")
@pytest.mark.parametrize("app", ["auth", "nosuch"])
def test_a_disk_that_is_full_does_not_change_how_the_run_ends(project: Project, app: str) -> None:
    error = io.StringIO()
    outcome = nullcontext() if app == "auth" else pytest.raises(CommandError, match="No installed")
    with outcome:
        project.migrate(app, command="safemigrate", json_report="/dev/full", stderr=error)
    assert "The report could not be written: No space left on device." in error.getvalue()


def test_to_a_descriptor(database: str, tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write(settings="")
    with (tmp_path / "report").open("w+") as stream:
        os.set_inheritable(stream.fileno(), True)
        done = site.manage(
            "safemigrate", "--json-report", f"/dev/fd/{stream.fileno()}", pass_fds=[stream.fileno()]
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert read(tmp_path / "report")["exit_status"] == 0


@pytest.mark.parametrize(
    ("ending", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_run_that_is_ended(
    database: str, tmp_path: Path, ending: signal.Signals, status: int
) -> None:
    site = Site(tmp_path)
    site.write(
        settings="INSTALLED_APPS += ['slow']",
        slow__migrations__0001_slow=MIGRATION.format(sql="SELECT pg_sleep(300)"),
    )
    with site.starts("safemigrate", "--json-report", "report.json") as process:
        asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = %s"
        eventually(lambda: rows(asleep, [database]))
        process.send_signal(ending)
        process.communicate(timeout=LONG)
    assert read(tmp_path / "report.json")["exit_status"] == status


def test_a_run_inside_of_a_run_has_its_own(project: Project, file: Path) -> None:
    from django.core.management import call_command

    inner = file.with_name("inner.json")

    def nest(apps: Any, editor: Any) -> None:
        call_command("safemigrate", "contenttypes", json_report=str(inner), verbosity=0)

    project.migration(run_python(nest), atomic=False)
    project.migrate("app", command="safemigrate", json_report=str(file))
    assert read(inner)["exit_status"] == read(file)["exit_status"] == 0
    assert behind() == []
    assert connection.alias == "default"


def test_a_forked_child_that_leaves_the_run_writes_none(project: Project, file: Path) -> None:
    def fork(apps: Any, editor: Any) -> None:
        if not os.fork():
            raise SystemExit(3)
        os.wait()

    process = os.getpid()
    project.migrate()
    project.migration(run_python(fork), atomic=False)
    try:
        project.migrate(command="safemigrate", json_report=str(file))
    finally:
        if os.getpid() != process:
            os._exit(0)
    assert read(file)["exit_status"] == 0
