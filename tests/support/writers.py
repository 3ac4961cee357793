"""Writers in processes of their own, resyncers among them, and what all of them saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import connection

from tests.support.databases import execute, rows, value

ROOT = Path(__file__).parents[2]

# Tables whose sequences are behind by a jump, behind by a walk, and right.
TABLES = """
    CREATE TABLE far (id bigserial PRIMARY KEY, writer int);
    INSERT INTO far SELECT n, 0 FROM generate_series(1, 200000) AS n;
    CREATE TABLE near (id bigserial PRIMARY KEY, writer int);
    INSERT INTO near SELECT n, 0 FROM generate_series(1, 300) AS n;
    CREATE TABLE cached (id bigserial PRIMARY KEY, writer int);
    ALTER SEQUENCE cached_id_seq CACHE 10;
    INSERT INTO cached SELECT n, 0 FROM generate_series(1, 5000) AS n;
    CREATE TABLE healthy (id bigserial PRIMARY KEY, writer int);
    CREATE TABLE healthy_cached (id bigserial PRIMARY KEY, writer int);
    ALTER SEQUENCE healthy_cached_id_seq CACHE 10;
"""
HEALTHY = ("healthy", "healthy_cached")
EVERY = ("far", "near", "cached", *HEALTHY)

PRELUDE = """
import json, os, sys, time
import django
from django.conf import settings
settings.configure(DATABASES={"default": json.loads(os.environ["TEST_DATABASE"])}, USE_TZ=True)
django.setup()
from django.db import IntegrityError, connection
number, seconds = int(sys.argv[1]), float(sys.argv[2])
connection.ensure_connection()
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
"""
# Draws first, as INSERT does, so that it knows the value that collided.
WRITER = """
tables = json.loads(sys.argv[3])
given = {table: [] for table in tables}
collisions = {table: [] for table in tables}
others = []
with connection.cursor() as cursor:
    while time.monotonic() < end:
        for table in tables:
            cursor.execute(f"SELECT nextval('{table}_id_seq')")
            (key,) = cursor.fetchone()
            given[table].append(key)
            try:
                cursor.execute(f"INSERT INTO {table} VALUES ({key}, {number})")
            except IntegrityError:
                collisions[table].append(key)
            except Exception as error:
                others.append(repr(error))
print(json.dumps([given, collisions, others]))
"""
# One as the command does, the other as healing does: it resyncs whatever it meets, in sync or not.
RESYNCER = """
from safemigrate.sequences.catalogue import sequences_of
from safemigrate.sequences.resync import resync_if_behind
from safemigrate.sequences.checking import checking
from safemigrate.sequences.scope import feeds_in
from safemigrate.sequences.sweep import survey

def one_by_one():
    with checking(connection) as cursor:
        sequences = sequences_of(cursor, feeds)
    for sequence in sequences:
        with checking(connection) as cursor:
            yield resync_if_behind(cursor, sequence)

feeds = feeds_in(connection, ["public"])
looks, moved, reasons = 0, [], []
while time.monotonic() < end:
    for each in one_by_one() if number else survey(connection, feeds, move=True):
        looks += 1
        if each.moved_to is not None:
            moved.append([each.sequence.name, each.next_value, each.moved_to])
        if each.obstacle:
            reasons.append(str(each.obstacle))
print(json.dumps([looks, moved, reasons]))
"""
WATCHER = """
tables = json.loads(sys.argv[3])
seen, back = {}, []
with connection.cursor() as cursor:
    while time.monotonic() < end:
        for table in tables:
            cursor.execute(f"SELECT last_value FROM {table}_id_seq")
            (now,) = cursor.fetchone()
            if now < seen.get(table, now):
                back.append([table, seen[table], now])
            seen[table] = now
print(json.dumps(back))
"""


@dataclass
class Seen:
    """What the processes reported, together."""

    writes: int = 0
    looks: int = 0
    twice: dict[str, list[int]] = field(default_factory=dict)
    caused: dict[str, list[int]] = field(default_factory=dict)
    collisions: dict[str, int] = field(default_factory=dict)
    went_back: list[Any] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    obstacles: Counter[str] = field(default_factory=Counter)
    moved: list[Any] = field(default_factory=list)


def run(seconds: float, *, writers: int = 8, resyncers: int = 2, resyncer: str = RESYNCER) -> Seen:
    """Let writers, resyncers and a watcher loose on TABLES at once; return what they saw."""
    execute(TABLES)
    old = {table: value(f"SELECT coalesce(max(id), 0) FROM {table}") for table in EVERY}
    tables = json.dumps(EVERY)
    started = [
        *(_start(WRITER, number, seconds, tables) for number in range(1, writers + 1)),
        *(_start(resyncer, number % 2, seconds, tables) for number in range(resyncers)),
        _start(WATCHER, 0, seconds, tables),
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    printed = [json.loads(process.communicate(timeout=seconds + 60)[0]) for process in _go(started)]
    seen = Seen(went_back=printed[-1])
    for looks, moved, reasons in printed[writers:-1]:
        seen.looks += looks
        seen.moved += moved
        seen.obstacles.update(reasons)
    for table in EVERY:
        given = Counter(key for each in printed[:writers] for key in each[0][table])
        collided = [key for each in printed[:writers] for key in each[1][table]]
        seen.writes += given.total()
        seen.twice[table] = [key for key, times in given.items() if times > 1]
        # A key of the old rows collides because the sequence was behind, and only then.
        seen.collisions[table] = len(collided)
        seen.caused[table] = [key for key in collided if key > old[table]]
    seen.errors = [error for each in printed[:writers] for error in each[2]]
    assert (
        value("SELECT sum(deadlocks) FROM pg_stat_database WHERE datname = current_database()") == 0
    )
    assert rows("SELECT 1 FROM healthy LIMIT 1") == [(1,)]
    return seen


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    database = json.dumps(connection.settings_dict, default=str)
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TEST_DATABASE": database},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _go(processes: list[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes
