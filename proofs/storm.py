"""Run Django's own migration tests on safemigrate, calm and in a storm.

    python proofs/storm.py [--django 4.2 5.2 6.1] [--driver psycopg2 psycopg]

Django's tests of migrations, signals, content types and permissions run on PostgreSQL (that of
DATABASE_URL, or an embedded one): on Django's ``migrate``, on safemigrate under its name, and on
both with every sequence of the database set to 1 before each ``migrate`` and mended after it. On
safemigrate exactly the tests must fail that fail on Django's own in calm. The exit status is 0 if
so. Needs the extra ``demo``; what it downloads is kept in a cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import (
    CACHE,
    DRIVERS,
    ROOT,
    django_source,
    server,
    unpack,
    virtualenv,
)

LABELS = [
    "migrations",
    "migrate_signals",
    "migrations2",
    "contenttypes_tests",
    "auth_tests.test_management",
]
OTHERS_NEED = ["asgiref", "sqlparse", "tenacity", "tzdata", "tblib"]


@dataclass(frozen=True)
class Weather:
    """Whose ``migrate`` the tests run on, and with which sequences."""

    command: str
    sequences: str

    def __str__(self) -> str:
        names = {"right": "calm", "behind": "storm"}
        return f"{self.command}, {names[self.sequences]}"


PLAIN = Weather("migrate", "right")
PLAIN_STORM = Weather("migrate", "behind")
CALM = Weather("safemigrate", "right")
STORM = Weather("safemigrate", "behind")
# The last is only counted.
WEATHERS = {"calm": CALM, "storm": STORM, "plain-storm": PLAIN_STORM}


@dataclass(frozen=True)
class Result:
    run: int
    skipped: int
    failed: frozenset[str]
    migrates: int
    resyncs: int
    seconds: float


@dataclass(frozen=True)
class Suite:
    """One Django with one driver on one server."""

    source: Path
    python: str
    server: dict[str, Any]

    def run(self, weather: Weather, labels: list[str], *, is_loud: bool) -> Result:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            done = subprocess.run(
                self._command(labels),
                cwd=self.source / "tests",
                env=self._environment(weather, result),
                capture_output=not is_loud,
                text=True,
                check=False,
            )
            if not result.exists():
                sys.exit(f"{weather}: the tests did not run.\n{done.stdout}\n{done.stderr}")
            found = json.loads(result.read_text())
        failed = frozenset(found.pop("failed"))
        return Result(failed=failed, seconds=time.monotonic() - started, **found)

    def _command(self, labels: list[str]) -> list[str]:
        options = ["--settings=storm_settings", "--parallel=1", "--noinput", "-v0"]
        return [self.python, "runtests.py", *options, *labels]

    def _environment(self, weather: Weather, result: Path) -> dict[str, str]:
        name = f"storm_{os.getpid()}"
        databases = {
            alias: {**self.server, "NAME": f"{name}_{alias}"} for alias in ("default", "other")
        }
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (self.source, ROOT, ROOT / "proofs"))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "STORM_COMMAND": weather.command,
            "STORM_DATABASES": json.dumps(databases),
            "STORM_RESULT": str(result),
            "STORM_SEQUENCES": weather.sequences,
        }


def main() -> int:
    options = _options()
    problems = 0
    with server() as settings:
        for version in options.django:
            for driver in options.driver:
                python = virtualenv(
                    options.python, f"storm-{driver}", [*OTHERS_NEED, *DRIVERS[driver]]
                )
                source = _source(version, options.source, options.python)
                suite = Suite(source, python, settings)
                problems += _compare(f"Django {version}, {driver}", suite, options)
    print("No test fails that doesn't fail on migrate." if not problems else f"{problems} differ.")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--django", nargs="+", default=["5.2"], metavar="X.Y")
    parser.add_argument("--driver", nargs="+", default=["psycopg2"], choices=list(DRIVERS))
    parser.add_argument(
        "--python", default=sys.executable, help="Django 6.0 and later need Python 3.12."
    )
    parser.add_argument("--source", type=Path, help="Django's source release, a folder or .tar.gz.")
    parser.add_argument(
        "--weather",
        nargs="+",
        choices=list(WEATHERS),
        default=list(WEATHERS),
        help="What to hold against Django's migrate in calm; plain-storm is only counted.",
    )
    parser.add_argument("--labels", nargs="+", default=LABELS, help="Tests, as to runtests.py.")
    parser.add_argument("--loud", action="store_true", help="Show what the tests print.")
    return parser.parse_args()


def _source(version: str, given: Path | None, python: str) -> Path:
    if given is None:
        return django_source(version, python)
    if given.is_dir():
        return given.resolve()
    folder = CACHE / given.name.removesuffix(".tar.gz")
    if not folder.exists():
        unpack(given, folder)
    return folder


def _compare(name: str, suite: Suite, options: argparse.Namespace) -> int:
    """Run the suite in every weather asked for; return how many tests differ."""
    print(name)
    expected = suite.run(PLAIN, options.labels, is_loud=options.loud)
    _tell(PLAIN, expected, expected)
    differing: set[str] = set()
    for weather in [WEATHERS[each] for each in options.weather]:
        result = suite.run(weather, options.labels, is_loud=options.loud)
        _tell(weather, result, expected)
        if weather is not PLAIN_STORM:
            differing |= result.failed ^ expected.failed
            differing |= {"the number of tests"} if result.run != expected.run else set()
            for test in sorted(result.failed ^ expected.failed):
                print(f"    {'fails' if test in result.failed else 'passes'}: {test}")
    return len(differing)


def _tell(weather: Weather, result: Result, expected: Result) -> None:
    more, fewer = len(result.failed - expected.failed), len(expected.failed - result.failed)
    print(
        f"  {weather!s:<36} {result.run} tests, {result.skipped} skipped, "
        f"{len(result.failed)} failed ({more} more, {fewer} fewer); {result.migrates} migrates, "
        f"{result.resyncs} resyncs, {result.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
