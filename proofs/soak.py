"""Migrate again and again while others write, with every sequence set back before each run.

    python proofs/soak.py [SECONDS, 600 by default]

Four writers in processes of their own insert into two tables without a pause for longer than a few
milliseconds. Meanwhile one process sets every sequence to 1, runs ``safemigrate``, which adds a
column to one of the tables and inserts into both and into a many-to-many, and takes that back,
but for the rows. Until a run has resynced them the writers collide, by our own doing. Afterwards
each row that was inserted has to be there, no sequence may have moved back but when it was set
back, no writer may have collided while none was behind, and the memory of the migrating process has
to be what it was. The server is DATABASE_URL's, or the embedded one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITERS = 4
TABLES = ("app_tag", "app_product")
ROWS = 10  # of a run, in each of the tables
GROWTH = 1.1
# Until its standard input ends; a collision is told with when its statement began and ended.
WRITER = """
import json, select, sys, time
import django
django.setup()
from django.db import IntegrityError, connection
connection.settings_dict["NAME"], number, tables = sys.argv[1], sys.argv[2], sys.argv[3:]
written, collided, others = dict.fromkeys(tables, 0), [], []
with connection.cursor() as cursor:
    while not select.select([sys.stdin], [], [], 0.003)[0]:
        for table in tables:
            began = time.monotonic()
            try:
                cursor.execute(f"INSERT INTO {table} (name) VALUES (%s)", [number])
                written[table] += 1
            except IntegrityError:
                collided.append([began, time.monotonic()])
            except Exception as error:
                others.append(repr(error))
print(json.dumps([written, collided, others]))
"""


def add_rows(apps: Any, _: Any) -> None:
    tags, products = (apps.get_model("app", name).objects for name in ("Tag", "Product"))
    for _ in range(ROWS):
        products.create(name="run").tags.add(tags.create(name="run"))


@dataclass
class Watch:
    """Watches sequences between the moments at which they are set back."""

    lock: Lock = field(default_factory=Lock)
    seen: dict[str, int] = field(default_factory=dict)
    went_back: int = 0
    looks: int = 0

    def look(self) -> None:
        from tests.support.databases import rows

        with self.lock:
            for name, now in rows("SELECT sequencename, last_value FROM pg_sequences"):
                self.went_back += (now or 0) < self.seen.get(name, 0)
                self.seen[name] = now or 0
            self.looks += 1

    def go_on(self, is_over: Event) -> None:
        while not is_over.wait(0.01):
            self.look()


@dataclass
class Runs:
    memory: list[int] = field(default_factory=list)  # kB after each run
    calm_since: list[float] = field(default_factory=list)
    calm_until: list[float] = field(default_factory=list)


def soak(project: Any, seconds: float, watch: Watch) -> Runs:
    from tests.support.databases import put_behind

    runs, end = Runs(), time.monotonic() + seconds
    while time.monotonic() < end:
        with watch.lock:
            runs.calm_until.append(time.monotonic())
            put_behind()
            watch.seen.clear()
        project.migrate("app", command="safemigrate")
        runs.calm_since.append(time.monotonic())
        runs.memory.append(memory())
        project.migrate("app", "0001")
    return runs


def memory() -> int:
    """Return how many kB of memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


@contextmanager
def writing(found: list[Any]) -> Iterator[None]:
    """Have the writers write during the block; give what they tell."""
    from django.db import connection

    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, connection.settings_dict["NAME"], str(number), *TABLES],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    try:
        yield
    finally:
        found += [json.loads(process.communicate()[0]) for process in started]


def tell(found: list[Any], runs: Runs, watch: Watch) -> int:
    from tests.support.databases import behind, value

    calm = list(zip(runs.calm_since, [*runs.calm_until[1:], time.monotonic()], strict=True))
    collisions = [times for _, each, _ in found for times in each]
    unexpected = sum(
        any(since < began and ended < until for since, until in calm) for began, ended in collisions
    )
    written = sum(sum(each.values()) for each, _, _ in found)
    lost = len(runs.memory) * ROWS - value("SELECT count(*) FROM app_product_tags")
    for table in TABLES:
        expected = sum(each[table] for each, _, _ in found) + len(runs.memory) * ROWS
        lost += abs(expected - value(f"SELECT count(*) FROM {table}"))
    tenth = len(runs.memory) // 10 or 1
    before, after = median(runs.memory[tenth : 2 * tenth]), median(runs.memory[-tenth:])
    print(f"runs: {len(runs.memory):,}; rows of writers: {written:,}")
    print(f"collisions of writers while sequences were set back: {len(collisions) - unexpected:,}")
    print(f"looks at all sequences: {watch.looks:,}")
    print(f"memory in the second tenth of the runs, and in the last: {before:.0f}, {after:.0f} kB")
    failures = {
        "rows lost, or written twice": lost,
        "times a sequence was seen moving back": watch.went_back,
        "collisions of writers while none was behind": unexpected,
        "other errors of writers": sum(len(others) for _, _, others in found),
        "sequences behind at the end": len(behind()),
    }
    for what, number in failures.items():
        print(f"{what}: {number}")
    return int(any(failures.values()) or after > before * GROWTH)


def main(seconds: float) -> int:
    import django

    django.setup()
    from django.db import migrations, models

    from tests.support.databases import Databases
    from tests.support.models import shop
    from tests.support.project import Project, run_python
    from tests.support.runs import meanwhile

    found: list[Any] = []
    watch = Watch()
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases() as databases,
        databases.bound("default"),
        Project(Path(folder), databases) as project,
    ):
        first = project.migration(*shop())
        project.migrate()
        note = migrations.AddField("product", "note", models.TextField(null=True))
        project.migration(note, run_python(add_rows))
        assert first == "0001_step"
        with writing(found), meanwhile(watch.go_on):
            runs = soak(project, seconds, watch)
        return tell(found, runs, watch)


if __name__ == "__main__":
    with server() as settings:
        os.environ["DATABASE_URL"] = url_of(settings)
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
