"""
Migrations that meet a lock: safemigrate beside what else there is; a Markdown table.

    python proofs/locks.py [SECONDS ..., 1 5 30 60 if none] [--tools NAME ...] [--blockers NAME ...]
        [--driver psycopg]

In each trial somebody keeps the table ``busy`` for so many seconds, a bystander reads a row of it
ten times a second, and a migration adds a column to it and then runs some Python. The packages are
installed in a virtualenv of their own. The server is DATABASE_URL's, or the embedded one. The
back-off is what the command's main thread was sleeping for when the table was free again; a
migration is applied when others see its column. The goal is that of the last line: its exit status
says whether safemigrate has reached it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import DRIVERS, ROOT, server, virtualenv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCK_TIMEOUT = 1.0
# Beyond that a bystander is stalled; and a migration is late, once its back-off is over.
TOLERANCE, LATEST = 0.1, 1.0
DATABASE, OURSELVES = "safemigrate_locks", "trial"
SESSIONS = f"""
SELECT wait_event_type = 'Lock' FROM pg_stat_activity
 WHERE datname = '{DATABASE}' AND application_name <> '{OURSELVES}'
   AND backend_type = 'client backend'
"""
IS_APPLIED = """
SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('busy') AND attname = 'note'
"""
# The two need typing_extensions without saying so.
PEERS = ["django-pg-migration-tools", "django-pgmigrate", "typing_extensions"]
PACKAGES = ["Django==5.2.*", "tenacity", *PEERS]

SETTINGS = """
import json, os, threading, time
sleep = time.sleep
def noted(seconds):
    if threading.current_thread() is threading.main_thread():
        with open(os.environ["PAUSES"], "a") as file:
            print(time.monotonic(), seconds, file=file)
    sleep(seconds)
time.sleep = noted
DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "shop", *json.loads(os.environ["APPS"])]
SECRET_KEY = "locks"
USE_TZ = True
"""
MODELS = "from django.db import models\nclass Busy(models.Model): pass\n"
TABLE = """
CREATE TABLE busy (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO busy (id) SELECT generate_series(1, 1000)
"""
MIGRATION = """
import os
from django.db import migrations
def note(apps, editor):
    with open(os.environ["RAN"], "a") as file:
        file.write("x")
class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.RunSQL("INSERT INTO busy (id) VALUES (0)"),
        *([migrations.RunPython(note)] if os.environ["PYTHON"] == "first" else []),
        migrations.RunSQL("ALTER TABLE busy ADD note text"),
        *([migrations.RunPython(note)] if os.environ["PYTHON"] == "last" else []),
    ]
"""


@dataclass(frozen=True)
class Tool:
    """A way to migrate: a command, its apps, and a lock_timeout of the role's."""

    name: str
    command: tuple[str, ...] = ("migrate",)
    apps: tuple[str, ...] = ()
    role: str = "0"


OURS = ("safemigrate", f"--lock-timeout={LOCK_TIMEOUT:g}")
TOOLS = [
    Tool("migrate"),
    Tool("migrate, lock_timeout of the role", role="1s"),
    Tool(
        "django-pg-migration-tools",
        (
            "migrate_with_timeouts",
            "--lock-timeout-in-ms=1000",
            "--lock-timeout-max-retries=100",
        ),
        ("django_pg_migration_tools",),
    ),
    Tool("django-pgmigrate", apps=("pglock", "pgactivity", "pgmigrate")),
    Tool("safemigrate", OURS, ("safemigrate",)),
]
RETRYING_PYTHON = Tool("safemigrate --retry-python", (*OURS, "--retry-python"), ("safemigrate",))


@dataclass
class Trial:
    """What was seen, in seconds and numbers."""

    stalls: list[float] = field(default_factory=list)
    has_met: bool = False
    is_applied: bool = False
    applied_at: float = 0.0
    delay: float = 0.0
    over: float = 0.0
    pause: float = 0.0
    pause_left: float = 0.0
    python_runs: int = 0
    ended_sessions: int = 0

    def cells(self) -> list[str]:
        paused = f"{self.pause_left:.2f} of {self.pause:.2f} s" if self.pause else "none"
        applied = f"{max(0.0, self.delay):.2f} s" if self.is_applied else "**failed**"
        over = f"{max(0.0, self.over):.2f} s"
        ended = f"**{self.ended_sessions}**" if self.ended_sessions else "0"
        stall = max(self.stalls)
        shown = f"{stall:.2f} s" if stall <= LOCK_TIMEOUT + TOLERANCE else f"**{stall:.2f} s**"
        return [shown, paused, applied, over, str(self.python_runs), ended]


class Site:
    """A project on disk and its database."""

    def __init__(self, folder: Path, settings: dict[str, Any], python: str) -> None:
        self.folder = folder
        self.settings = settings
        self.python = python
        for name, text in {
            "settings.py": SETTINGS,
            "shop/__init__.py": "",
            "shop/models.py": MODELS,
            "shop/migrations/__init__.py": "",
            "shop/migrations/0001_note.py": MIGRATION,
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def connect(self, name: str = DATABASE) -> Any:
        keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        given = {each: self.settings.get(key) for each, key in keys.items()}
        connection = psycopg2.connect(
            dbname=name,
            application_name=OURSELVES,
            **{each: value for each, value in given.items() if value},
            **self.settings.get("OPTIONS", {}),
        )
        connection.autocommit = True
        return connection

    def renew(self) -> None:
        with closing(self.connect("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {DATABASE}")
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(TABLE)
        done = self.manage(Tool("migrate", ("migrate", "contenttypes")), "last").wait()
        assert done == 0

    def manage(self, tool: Tool, python: str) -> subprocess.Popen[str]:
        database = {**self.settings, "NAME": DATABASE}
        options = {**self.settings.get("OPTIONS", {}), "options": f"-c lock_timeout={tool.role}"}
        database["OPTIONS"] = options
        self.ran().write_text("")
        self.pauses().write_text("")
        return subprocess.Popen(
            [self.python, "-m", "django", *tool.command],
            cwd=self.folder,
            env={
                **os.environ,
                "APPS": json.dumps(tool.apps),
                "DJANGO_SETTINGS_MODULE": "settings",
                "PAUSES": str(self.pauses()),
                "PYTHON": python,
                "PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))),
                "RAN": str(self.ran()),
                "TEST_DATABASE": json.dumps(database),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ran(self) -> Path:
        return self.folder / "ran"

    def pauses(self) -> Path:
        return self.folder / "pauses"


# --- Who holds the table --------------------------------------------------------------------------


def idle_in_transaction(site: Site, seconds: float, ended: list[int]) -> None:
    with _session(site, ended) as cursor:
        cursor.execute("BEGIN; UPDATE busy SET n = 1 WHERE id = 1")
        time.sleep(seconds)
        cursor.execute("COMMIT")


def long_select(site: Site, seconds: float, ended: list[int]) -> None:
    with _session(site, ended) as cursor:
        cursor.execute("SELECT pg_sleep(%s) FROM busy WHERE id = 1", [seconds])


def writers(site: Site, seconds: float, ended: list[int]) -> None:
    """Four writers one after another, whose transactions last as long as two lock timeouts."""
    end = time.monotonic() + seconds
    length = min(seconds, 2 * LOCK_TIMEOUT)

    def write(number: int) -> None:
        time.sleep(number * length / 4)
        with _session(site, ended) as cursor:
            while time.monotonic() < end:
                cursor.execute("BEGIN; UPDATE busy SET n = n + 1 WHERE id = %s", [number + 1])
                time.sleep(min(length, max(0.0, end - time.monotonic())))
                cursor.execute("COMMIT")

    threads = [Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _session(site: Site, ended: list[int]) -> Iterator[Any]:
    """Give a cursor; a session that somebody ends is counted."""
    connection = site.connect()
    try:
        yield connection.cursor()
    except psycopg2.Error:
        ended.append(1)
    finally:
        with suppress(psycopg2.Error):
            connection.close()


BLOCKERS: dict[str, Callable[[Site, float, list[int]], None]] = {
    "idle in transaction": idle_in_transaction,
    "long SELECT": long_select,
    "queue of writers": writers,
}


# --- A trial --------------------------------------------------------------------------------------


def attempt(site: Site, tool: Tool, blocker: str, seconds: float, python: str = "last") -> Trial:
    site.renew()
    trial = Trial()
    ended: list[int] = []
    is_over = Event()
    freed: list[float] = []

    def block() -> None:
        BLOCKERS[blocker](site, seconds, ended)
        freed.append(time.monotonic())

    bystander = Thread(target=partial(_stand_by, site, trial, is_over))
    holder = Thread(target=block)
    watch = Thread(target=partial(_watch, site, trial, holder, is_over))
    process = site.manage(tool, python)
    bystander.start()
    watch.start()
    process.wait()
    end = time.monotonic()
    is_over.set()
    watch.join()
    bystander.join()
    if holder.ident is None:  # the migration was over before it was seen
        return trial
    holder.join()
    trial.delay = (trial.applied_at or end) - freed[0]
    trial.over = end - freed[0]
    for line in site.pauses().read_text().splitlines():
        began, length = map(float, line.split())
        if began <= freed[0] < began + length:
            trial.pause, trial.pause_left = length, began + length - freed[0]
    trial.is_applied = process.returncode == 0
    trial.python_runs = len(site.ran().read_text())
    trial.ended_sessions = len(ended)
    return trial


def _stand_by(site: Site, trial: Trial, is_over: Event) -> None:
    with closing(site.connect()) as connection, connection.cursor() as cursor:
        while not is_over.wait(0.1):
            before = time.monotonic()
            cursor.execute("SELECT n FROM busy WHERE id = 1")
            trial.stalls.append(time.monotonic() - before)


def _watch(site: Site, trial: Trial, holder: Thread, is_over: Event) -> None:
    """Let the table be taken as soon as the migrating session is there; see whether it waits."""
    with closing(site.connect()) as connection, connection.cursor() as cursor:
        while not is_over.wait(0.01):
            cursor.execute(SESSIONS)
            found = cursor.fetchall()
            if found and holder.ident is None:
                holder.start()
            trial.has_met |= any(waits for (waits,) in found)
            cursor.execute(IS_APPLIED)
            if cursor.fetchone() == (1,) and not trial.applied_at:
                trial.applied_at = time.monotonic()


def met(site: Site, tool: Tool, blocker: str, seconds: float, python: str = "last") -> Trial:
    """Return the first trial in which the migration has come while the table was taken."""
    for _ in range(5):
        trial = attempt(site, tool, blocker, seconds, python)
        if trial.has_met:
            return trial
    raise SystemExit(f"{tool.name} has not met the {blocker}.")


def is_reached(trial: Trial) -> bool:
    """Tell whether the goal is: no long stall, soon applied, Python once, nobody's session ended.

    Soon is within a second of the blocker's end, or of the back-off that was under way then.
    """
    return (
        max(trial.stalls) <= LOCK_TIMEOUT + TOLERANCE
        and trial.is_applied
        and trial.delay <= trial.pause_left + LATEST
        and trial.python_runs == 1
        and trial.ended_sessions == 0
    )


def main(settings: dict[str, Any]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="*", type=float, default=[1, 5, 30, 60])
    parser.add_argument("--tools", nargs="+", default=[tool.name for tool in TOOLS])
    parser.add_argument("--blockers", nargs="+", default=list(BLOCKERS))
    parser.add_argument("--driver", default="psycopg2", choices=list(DRIVERS))
    choices = parser.parse_args()
    needed = [*PACKAGES, *DRIVERS[choices.driver]]
    python = virtualenv(sys.executable, f"locks-{choices.driver}", needed)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), settings, python)
        _heading()
        for blocker in choices.blockers:
            for seconds in choices.seconds:
                for tool in TOOLS:
                    if tool.name in choices.tools:
                        trial = met(site, tool, blocker, seconds)
                        _row(f"{blocker}, {seconds:g} s", tool, trial)
                        is_ours = tool.name == "safemigrate"
                        failures += is_ours and not is_reached(trial)
        for tool in (*TOOLS[2:], RETRYING_PYTHON):
            if tool.name in (*choices.tools, RETRYING_PYTHON.name):
                trial = met(site, tool, choices.blockers[0], 5, "first")
                _row("Python before the DDL, 5 s", tool, trial)
    print(f"trials in which safemigrate has not reached the goal: {failures}")
    return int(failures > 0)


def _heading() -> None:
    columns = "blocker", "command", "longest stall", "back-off left", "applied", "command over"
    print(f"| {' | '.join(columns)} | Python ran | ended |")
    print("|---|---|---|---|---|---|---|---|")


def _row(what: str, tool: Tool, trial: Trial) -> None:
    print(f"| {what} | {tool.name} | {' | '.join(trial.cells())} |", flush=True)


if __name__ == "__main__":
    with server() as settings:
        sys.exit(main(settings))
