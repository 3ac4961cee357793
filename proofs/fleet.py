"""
What the migration lock is worth, and what it costs.

    python proofs/fleet.py [--rounds 50] [--processes 8] [--kills 50] [--runs 40]

Starts several processes at once, round after round, with ``migrate`` and with ``safemigrate``, on
an empty database and on one whose sequences are all behind, and counts those that fail. Then twice
as many at once, where the one that holds the migration lock is killed at some moment. Then runs
``safemigrate`` where nothing is to be done, with the lock and with ``--no-lock``, and compares the
statements on the wire and the time. The server is DATABASE_URL's, or the embedded one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = f"fleet_{os.getpid()}"
TEMPLATE = f"{NAME}_behind"
LATER = 0.05  # seconds at most, from when the run has got so far that its holder is to be killed
# Its name holds the number of its process.
HOLDER = """
SELECT split_part(split_part(session.application_name, ' ', 2), '_', 1)
  FROM pg_locks AS lock
  JOIN pg_stat_activity AS session USING (pid)
 WHERE lock.locktype = 'advisory' AND lock.granted AND session.datname = %s
   AND session.application_name LIKE 'safemigrate %%'
"""
MODEL = """
from django.db import migrations, models
class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Item", [
            ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField())]),
    ]
"""
SETTINGS = """
from tests.settings import *
DATABASES["default"]["NAME"] = {name!r}
MIGRATION_MODULES = {{"app": "fleet_migrations"}}
"""
# Prints the milliseconds of each run; what connects is a new connection, as at a process's start.
TIMED = """
import json, sys, time, django
django.setup()
from django.core.management import call_command
from django.db import connection
def run(**options):
    connection.close()
    before = time.perf_counter()
    call_command("safemigrate", verbosity=0, **options)
    return (time.perf_counter() - before) * 1000
runs = int(sys.argv[1])
pairs = [(run(), run(no_lock=True)) for _ in range(runs + 3)][3:]
print(json.dumps(pairs))
"""
ONCE = """
import sys, django
django.setup()
from django.core.management import call_command
call_command("safemigrate", verbosity=0, no_lock=sys.argv[1] == "no_lock")
"""


class Wire:
    """A socket before the server's that counts the statements that pass through it."""

    def __init__(self, folder: Path, target: str | tuple[str, int]) -> None:
        self.statements = 0
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            family = socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET
            server = socket.socket(family)
            server.connect(self._target)
            threading.Thread(target=self._count, args=[client, server], daemon=True).start()
            threading.Thread(target=self._pass, args=[server, client], daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        while received := source.recv(65536):
            target.sendall(received)
        target.close()

    def _count(self, source: socket.socket, target: socket.socket) -> None:
        """Pass on message by message; the first one has no type."""
        stream = source.makefile("rb")
        kind = b""
        while head := stream.read(4):
            body = stream.read(int.from_bytes(head, "big") - 4)
            self.statements += kind in (b"Q", b"E")  # a query, or the execution of a prepared one
            target.sendall(kind + head + body)
            kind = stream.read(1)
        target.close()


def url(settings: dict[str, Any], **changed: str) -> str:
    """Return the URL of a server, with another NAME or another HOST."""
    settings = {name: quote(str(text), safe="") for name, text in {**settings, **changed}.items()}
    port = f":{settings['PORT']}" if settings["PORT"] else ""
    user = f"{settings['USER']}:{settings['PASSWORD']}"
    return f"postgresql://{user}@{settings['HOST']}{port}/{settings['NAME']}"


@contextmanager
def project(name: str) -> Iterator[dict[str, str]]:
    """Write a project of one app on the database of that name; give the environment it runs in."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        package = folder / "fleet_migrations"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "0001_item.py").write_text(MODEL)
        (folder / "fleet_settings.py").write_text(SETTINGS.format(name=name))
        yield {
            **os.environ,
            "PYTHONPATH": f"{folder}:{ROOT}",
            "DJANGO_SETTINGS_MODULE": "fleet_settings",
        }


def execute(sql: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)


def create(template: str | None) -> None:
    execute(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
    execute(f"CREATE DATABASE {NAME}" + (f" TEMPLATE {template}" if template else ""))


def create_template() -> None:
    """Make a database that is migrated but for the app's one migration, and all of it behind."""
    from django.core.management import call_command
    from django.db import connection

    from tests.support.databases import binding, put_behind

    execute(f"CREATE DATABASE {TEMPLATE}")
    with binding(connection.alias, TEMPLATE):
        call_command("migrate", verbosity=0)
        put_behind()


def one_round(command: str, processes: int, environment: dict[str, str]) -> tuple[int, str]:
    """Start the processes at once; return how many failed, and the last words of one of them."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "django", command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    words = [process.communicate()[1].strip() for process in started]
    failed = [w for w, process in zip(words, started, strict=True) if process.returncode]
    reasons = [line for text in failed for line in text.splitlines() if "rror: " in line]
    return len(failed), reasons[0] if reasons else ""


def fleet(rounds: int, processes: int, environment: dict[str, str]) -> None:
    print(f"{rounds} rounds of {processes} processes at once")
    print(f"{'database':10}{'command':14}{'rounds with failures':>21}{'processes failed':>18}")
    for database, template in (("empty", None), ("behind", TEMPLATE)):
        for command in ("migrate", "safemigrate"):
            failures, reasons = [], set()
            for _ in range(rounds):
                create(template)
                failed, reason = one_round(command, processes, environment)
                failures.append(failed)
                reasons |= {reason.partition(" DETAIL")[0]} - {""}
            print(f"{database:10}{command:14}{sum(map(bool, failures)):21}{sum(failures):18}")
            for reason in sorted(reasons):
                print(f"    {reason[:110]}")


# --- The holder of the migration lock is killed ---------------------------------------------------


@dataclass
class Killed:
    """What became of the rounds in which a holder was killed."""

    rounds: int = 0
    had_begun: int = 0  # to apply a migration
    failed: int = 0
    unlike: int = 0
    reasons: set[str] = field(default_factory=set)


def kills(rounds: int, processes: int, environment: dict[str, str]) -> None:
    from django.db import connection

    from tests.support.databases import binding

    expected = {template: after_migrate(template, environment) for template in (None, TEMPLATE)}
    with binding(connection.alias, NAME):
        total = applied()
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    killed = Killed()
    for _ in range(10 * rounds):
        if killed.rounds < rounds:
            template = (None, TEMPLATE)[killed.rounds % 2]
            create(template)
            if one_kill(processes, total, environment, moments, killed):
                killed.unlike += state() != expected[template]
    print(f"\n{killed.rounds} rounds of {processes} processes, the holder killed (seed {seed})")
    print(f"{'killed after its first Applying':45}{killed.had_begun:6}")
    print(f"{'other processes that failed':45}{killed.failed:6}")
    print(f"{'databases unlike those of one migrate':45}{killed.unlike:6}")
    for reason in sorted(killed.reasons):
        print(f"    {reason[:110]}")


def one_kill(
    processes: int,
    total: int,
    environment: dict[str, str],
    moments: random.Random,
    killed: Killed,
) -> bool:
    """Start the processes, kill the one that has the lock; return False if none had it then.

    That is after so many of the ``total`` migrations, none included, and a moment more.
    """
    from django.db import connection

    from tests.support.databases import binding

    started = [
        subprocess.Popen(
            [sys.executable, "-u", "-m", "django", "safemigrate"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(processes)
    ]
    running = {process.pid: process for process in started}
    with binding(connection.alias, NAME):
        enough = moments.randrange(applied(), total)
        while any(process.poll() is None for process in started):
            if holder() and applied() >= enough:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, LATER))
        victim = running.get(holder())
    if victim:
        victim.kill()
    words = {process.pid: process.communicate()[0] for process in started}
    if victim is None or victim.returncode != -signal.SIGKILL:
        return False
    killed.rounds += 1
    killed.had_begun += "Applying" in words[victim.pid]
    for process in started:
        if process is not victim and process.returncode:
            killed.failed += 1
            killed.reasons |= {x for x in words[process.pid].splitlines() if "rror: " in x}
    return True


def holder() -> int:
    """Return the process that holds the migration lock, which its session's name tells; or 0."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(HOLDER, [NAME])
        row = cursor.fetchone()
    return int(row[0]) if row else 0


def applied() -> int:
    """Count the migrations that are recorded."""
    from tests.support.databases import value

    if value("SELECT to_regclass('django_migrations')") is None:
        return 0
    return int(value("SELECT count(*) FROM django_migrations"))


def after_migrate(template: str | None, environment: dict[str, str]) -> Any:
    """Migrate once, with every sequence in sync, and return what is there then."""
    from django.db import connection

    from tests.support.databases import binding, set_right

    create(template)
    with binding(connection.alias, NAME):
        set_right()
    failed, reason = one_round("migrate", 1, environment)
    assert not failed, reason
    return state()


def state() -> Any:
    """Return what a run may leave, generated keys aside, and which tables' sequences are behind."""
    from django.db import connection

    from tests.support.databases import behind, binding, rows
    from tests.support.project import COLUMNS, CONSTRAINTS, INDEXES
    from tests.support.twins.running import canonical

    with binding(connection.alias, NAME):
        return [behind(), canonical(), *map(rows, (COLUMNS, CONSTRAINTS, INDEXES))]


def output(code: str, environment: dict[str, str], *args: str) -> Any:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def statements(environment: dict[str, str], folder: Path) -> dict[str, int]:
    """Count the statements of one run with the lock and of one without."""
    from django.db import connection

    settings = connection.settings_dict
    host, port = settings["HOST"] or "localhost", int(settings["PORT"] or 5432)
    target = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
    wire = Wire(folder, target)
    counts = {}
    for lock in ("lock", "no_lock"):
        before = wire.statements
        through_it = url(settings, HOST=str(folder), PORT="")
        output(ONCE, {**environment, "DATABASE_URL": through_it}, lock)
        time.sleep(0.2)
        counts[lock] = wire.statements - before
    return counts


def cost(runs: int, environment: dict[str, str]) -> None:
    create(TEMPLATE)
    with tempfile.TemporaryDirectory() as folder:
        output(ONCE, environment, "lock")
        counts = statements(environment, Path(folder))
    pairs = json.loads(output(TIMED, environment, str(runs)).stdout)
    with_lock, without = (median(each) for each in zip(*pairs, strict=True))
    print(f"\na run with nothing to do, {runs} times each, medians")
    print(f"{'':14}{'statements':>12}{'ms':>10}")
    print(f"{'--no-lock':14}{counts['no_lock']:12}{without:10.1f}")
    print(f"{'lock':14}{counts['lock']:12}{with_lock:10.1f}")
    extra = counts["lock"] - counts["no_lock"]
    print(f"{'its cost':14}{extra:12}{median(a - b for a, b in pairs):10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    with server() as settings:
        host = settings["HOST"] or settings["OPTIONS"].get("host", "")
        os.environ["DATABASE_URL"] = url(settings, HOST=host)
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        measure(options)


def measure(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    import django

    django.setup()
    create_template()
    try:
        with project(NAME) as environment:
            fleet(options.rounds, options.processes, environment)
            kills(options.kills, 2 * options.processes, environment)
            cost(options.runs, environment)
    finally:
        execute(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
        execute(f"DROP DATABASE IF EXISTS {TEMPLATE} WITH (FORCE)")


if __name__ == "__main__":
    main()
