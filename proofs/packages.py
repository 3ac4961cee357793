"""Run safemigrate together with other packages that touch ``migrate``, for real.

    python proofs/packages.py [PACKAGE ...]

For each a virtualenv is made (and kept in a cache) and the project beside this file is migrated
halfway on PostgreSQL (that of DATABASE_URL, or an embedded one). Then its database is cloned: on
the healthy twin the rest is migrated by ``migrate``, on the other, where every sequence gives 1, by
safemigrate. Exit status, output, schema and rows must be the same. Needs the extra ``demo``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import DRIVERS, ROOT, server, virtualenv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTICE = re.compile(r".*  Resynced |\d+ sequences? (was|were) behind and |\[.*\] *Resynced ")
VARYING = re.compile(r" \(\d+\.\d+s\)|(?<=Postgres process ID: )\d+")
TENANTS = 20
# How long a table of theirs is kept, from when the migration waits for it.
BUSY, KEPT = ("tenant_3", "tenant_7"), 4.0
PROJECTS = ROOT / "benchmarks" / "projects"

SEQUENCES = """
    SELECT s.oid::regclass::text, quote_ident(a.attname), d.refobjid::regclass::text
    FROM pg_class AS s
    JOIN pg_depend AS d ON d.objid = s.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
    JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE s.relkind = 'S'
"""
# Times differ between any two runs.
COLUMNS = """
    SELECT table_schema, table_name,
           string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position)
               FILTER (WHERE data_type NOT LIKE 'timestamp%'),
           string_agg(concat_ws(' ', column_name, data_type, is_nullable, column_default), ', '
                      ORDER BY ordinal_position)
    FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
    WHERE table_schema NOT IN ('pg_catalog', 'information_schema') AND table_type = 'BASE TABLE'
    GROUP BY table_schema, table_name
"""
CATALOGUE = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid > 0
    UNION ALL SELECT schemaname, indexname, indexdef FROM pg_indexes
    UNION ALL SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
    FROM pg_trigger WHERE NOT tgisinternal
    ORDER BY 1, 2
"""

Rows = list[tuple[Any, ...]]


class FindingError(Exception):
    """Something that is not as it is with ``migrate`` on the healthy twin."""


@dataclass(frozen=True)
class Database:
    """A database and the project that is run on it."""

    settings: dict[str, Any]
    python: str
    package: str

    def manage(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.python_run("-W", "error", "-m", "django", *args, **environment)

    def python_run(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *args],
            cwd=PROJECTS,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "settings",
                "PACKAGE": self.package,
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(map(str, (PROJECTS, ROOT))),
                "TEST_DATABASE": json.dumps(self.settings),
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, *args: str, **environment: str) -> str:
        """Run a command that has to go well; return its stdout."""
        done = self.manage(*args, **environment)
        if done.returncode:
            raise FindingError(f"{' '.join(args)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def query(self, sql: str, params: Any = None) -> Rows:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(sql, params)
            return list(cursor.fetchall()) if cursor.description else []

    def connect(self) -> Any:
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        given = {name: self.settings.get(key) for name, key in names.items()}
        return psycopg2.connect(
            dbname=self.settings["NAME"],
            **{name: value for name, value in given.items() if value},
            **self.settings.get("OPTIONS", {}),
        )

    def clone(self, suffix: str) -> Database:
        name = f"{self.settings['NAME']}_{suffix}"
        clone = Database({**self.settings, "NAME": name}, self.python, self.package)
        clone.create(template=self.settings["NAME"])
        return clone

    def create(self, template: str = "template0") -> None:
        self.drop()
        self._maintain(f'CREATE DATABASE "{self.settings["NAME"]}" TEMPLATE "{template}"')

    def drop(self) -> None:
        self._maintain(f'DROP DATABASE IF EXISTS "{self.settings["NAME"]}" WITH (FORCE)')

    def _maintain(self, sql: str) -> None:
        Database({**self.settings, "NAME": "postgres"}, "", "").query(sql)

    def put_behind(self) -> None:
        for sequence, *_ in self.query(SEQUENCES):
            self.query("SELECT setval(%s::regclass, 1, false)", [sequence])

    def put_right(self) -> None:
        """Let every sequence give the key after its table's largest, as a resync does."""
        for sequence, column, table in self.query(SEQUENCES):
            following = f"(SELECT COALESCE(max({column}), 0) + 1 FROM {table})"
            self.query(f"SELECT setval(%s::regclass, {following}, false)", [sequence])

    def contents(self) -> dict[str, Any]:
        """Return all the rows of all the tables, and the definitions of everything."""
        found: dict[str, Any] = {"catalogue": self.query(CATALOGUE)}
        for schema, table, columns, definition in self.query(COLUMNS):
            rows = self.query(f'SELECT {columns} FROM "{schema}"."{table}"')
            found[f"{schema}.{table}"] = (definition, columns, sorted(rows, key=repr))
        return found


@dataclass(frozen=True)
class Package:
    """A package, how a database is filled with it, and what is tried then."""

    name: str
    requirements: tuple[str, ...]
    fill: Callable[[Database], None]
    trials: dict[str, Callable[[Database], None]]


def migrate_halfway(database: Database) -> None:
    database.must("migrate", "-v0", STAGE="before")


def make_tenants(database: Database) -> None:
    database.must("migrate_schemas", "--shared", "-v0", STAGE="before")
    code = (
        "import django; django.setup()\n"
        "from customers.models import Client\n"
        "Client(schema_name='public', name='public').save()\n"
        f"for i in range({TENANTS}):\n"
        "    Client(schema_name=f'tenant_{i}', name=str(i)).save(verbosity=0)\n"
    )
    done = database.python_run("-c", code, STAGE="before")
    if done.returncode:
        raise FindingError(done.stderr)


# --- What is tried --------------------------------------------------------------------------------


def the_law(
    base: Database,
    *,
    theirs: tuple[str, ...] = ("migrate",),
    ours: tuple[str, ...] = ("safemigrate",),
    environment: dict[str, str] | None = None,
    is_told_in_turn: bool = True,
    simplify: Callable[[dict[str, Any]], None] = lambda contents: None,
) -> None:
    """Hold ``ours`` with every sequence behind against ``theirs`` with every sequence right."""
    healthy, ill = base.clone("healthy"), base.clone("ill")
    healthy.put_right()
    ill.put_behind()
    expected, actual = healthy.manage(*theirs), ill.manage(*ours, **environment or {})
    _same("the exit status", (actual.returncode, expected.returncode), (0, 0), actual.stderr)
    if is_told_in_turn:
        _same("the output", _lines(actual.stdout), _lines(expected.stdout))
    if not any(NOTICE.match(line) for line in actual.stdout.splitlines()):
        raise FindingError(f"Nothing was told of a resync:\n{actual.stdout}")
    mine, other = ill.contents(), healthy.contents()
    for contents in (mine, other):
        simplify(contents)
    for name in sorted(mine.keys() | other.keys()):
        _same(name, mine.get(name), other.get(name))
    healthy.drop()
    ill.drop()


def _lines(text: str) -> list[str]:
    return [VARYING.sub("", line) for line in text.splitlines() if not NOTICE.match(line)]


def _same(what: str, actual: Any, expected: Any, detail: str = "") -> None:
    if actual != expected:
        raise FindingError(f"{what} differs:\n  is      {actual}\n  instead {expected}\n{detail}")


def forget_numbers(contents: dict[str, Any]) -> None:
    """Number the keys of things and of events anew: a statement that is repeated draws twice."""
    for column, names in {
        "thing": {"id", "pgh_obj_id"},
        "event": {"pgh_id"},
    }.items():
        tables = [name for name in contents if name.startswith("public.tracked_thing")]
        where = {
            name: [i for i, each in enumerate(contents[name][1].split(", ")) if each in names]
            for name in tables
        }
        values = {row[i] for name in tables for row in contents[name][2] for i in where[name]} - {
            None
        }
        number = {value: f"{column} {n}" for n, value in enumerate(sorted(values))}
        for name in tables:
            definition, columns, rows = contents[name]
            anew = [
                tuple(number.get(v, v) if i in where[name] else v for i, v in enumerate(row))
                for row in rows
            ]
            contents[name] = (definition, columns, sorted(anew, key=repr))


def the_warning(base: Database, *, theirs_first: bool) -> None:
    environment = {"THEIRS": "first" if theirs_first else "last"}
    done = base.manage("check", **environment)
    _same("the warning", "safemigrate.W001" in done.stderr, theirs_first, done.stderr)
    text = base.must("safemigrate", "--help", **environment)
    _same("whose command it is", "--max-retries" in text, not theirs_first)


def read_only(base: Database) -> None:
    """Where nothing may be written nothing is, and the error is theirs."""
    ill = base.clone("ill")
    ill.put_behind()
    before, drawn = ill.contents(), ill.query("SELECT * FROM pg_sequences ORDER BY 1, 2")
    expected = ill.manage("migrate", DJANGO_READ_ONLY="1")
    actual = ill.manage("safemigrate", DJANGO_READ_ONLY="1")
    _same("the exit status", actual.returncode, expected.returncode, actual.stderr)
    last = [done.stderr.splitlines()[-1] for done in (actual, expected)]
    _same("the error", *last)
    _same("what is there", ill.contents(), before)
    _same("the sequences", ill.query("SELECT * FROM pg_sequences ORDER BY 1, 2"), drawn)
    ill.drop()


def no_subprocesses(base: Database) -> None:
    """Processes of their own can't be healed from here, and that is said."""
    done = base.manage("safemigrate", "--executor=subprocess")
    said = "subprocess" in done.stderr and "Traceback" not in done.stderr
    _same("the refusal", (done.returncode, said), (1, True), done.stderr)


def tenants_locks(base: Database, *options: str, is_told: bool = True) -> None:
    """Where others write to a table of two tenants, each is given up and migrated after."""
    healthy, busy = base.clone("healthy"), base.clone("busy")
    for database in (healthy, busy):
        database.put_right()
    expected = healthy.manage("migrate", *options)
    stalls: dict[str, float] = {}
    with ExitStack() as stack:
        for schema in BUSY:
            stack.enter_context(_writing(busy, schema, stalls))
        actual = busy.manage("safemigrate", "--lock-timeout=1", *options)
    _same("the exit status", (actual.returncode, expected.returncode), (0, 0), actual.stderr)
    for schema in BUSY:
        told = f"ShareRowExclusiveLock on {schema}.shop_product, blocked by pid " in actual.stderr
        _same(f"what is told of {schema}", told, is_told, actual.stderr)
        _same(f"that {schema} was met", stalls[schema] > 0.2, True, str(stalls))
        _same(f"a stall in {schema}", stalls[schema] > KEPT / 2, False, str(stalls))
    mine, other = busy.contents(), healthy.contents()
    for name in sorted(mine.keys() | other.keys()):
        _same(name, mine.get(name), other.get(name))
    healthy.drop()
    busy.drop()


def tenants_locks_in_processes(base: Database) -> None:
    tenants_locks(base, MULTIPROCESSING, is_told=False)


@contextmanager
def _writing(database: Database, schema: str, stalls: dict[str, float]) -> Iterator[None]:
    """Keep a table from when the block begins until it was waited for; note others' stalls."""
    table, is_over = f"{schema}.shop_product", Event()
    keeper, writer = database.connect(), database.connect()
    writer.autocommit = True
    with keeper.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")

    def keep() -> None:
        with closing(keeper):
            waiting = "SELECT 1 FROM pg_locks WHERE relation = %s::regclass AND NOT granted"
            while not is_over.wait(0.05) and not database.query(waiting, [table]):
                pass
            is_over.wait(KEPT)

    def write() -> None:
        with closing(writer), writer.cursor() as cursor:
            while not is_over.wait(0.05):
                before = time.monotonic()
                cursor.execute(f"UPDATE {table} SET name = name WHERE false")
                stalls[schema] = max(stalls.get(schema, 0.0), time.monotonic() - before)

    threads = [Thread(target=keep), Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


THEIR_TESTS = """
import pytest
from shop.models import Tag


@pytest.mark.django_db
def test_what_the_migrations_left():
    assert Tag.objects.count() == 10
"""


def their_tests(base: Database) -> None:
    """Let pytest-django make its test database by the overriding migrate."""
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder) / "test_tags.py"
        test.write_text(THEIR_TESTS)
        done = base.python_run("-m", "pytest", "-q", "-Werror", "-p", "no:cacheprovider", str(test))
    _same("the exit status", done.returncode, 0, done.stdout + done.stderr)
    _same("what was told", "esync" in done.stdout + done.stderr, False, done.stdout)


OURS_FIRST = {"OVERRIDE": "safemigrate.override"}
MULTIPROCESSING = "--executor=multiprocessing"
PACKAGES = [
    Package(
        "django-tenants",
        ("django-tenants",),
        make_tenants,
        {
            "standard executor": the_law,
            "multiprocessing executor": partial(
                the_law,
                theirs=("migrate", MULTIPROCESSING),
                ours=("safemigrate", MULTIPROCESSING),
                is_told_in_turn=False,
            ),
            "safemigrate.override": partial(the_law, ours=("migrate",), environment=OURS_FIRST),
            "one tenant": partial(
                the_law,
                theirs=("migrate", "--schema=tenant_3"),
                ours=("safemigrate", "--schema=tenant_3"),
            ),
            "subprocess executor": no_subprocesses,
            "lock timeout": tenants_locks,
            "lock timeout, multiprocessing executor": tenants_locks_in_processes,
        },
    ),
    Package(
        "django-pgmigrate",
        ("django-pgmigrate", "typing_extensions"),
        migrate_halfway,
        {"the law": the_law},
    ),
    Package(
        "django-pg-zero-downtime-migrations",
        ("django-pg-zero-downtime-migrations",),
        migrate_halfway,
        {"the law": the_law},
    ),
    Package(
        "django-pghistory",
        ("django-pghistory", "django-pgtrigger", "typing_extensions"),
        migrate_halfway,
        {"events by triggers": partial(the_law, simplify=forget_numbers)},
    ),
    Package(
        "django-safemigrate",
        ("django-safemigrate",),
        migrate_halfway,
        {
            "the law": the_law,
            "listed below": partial(the_warning, theirs_first=False),
            "listed above": partial(the_warning, theirs_first=True),
        },
    ),
    Package(
        "django-read-only",
        ("django-read-only",),
        migrate_halfway,
        {"the law": the_law, "read-only": read_only},
    ),
    Package("pytest-django", ("pytest-django",), migrate_halfway, {"its tests": their_tests}),
]


def main() -> int:
    names = [package.name for package in PACKAGES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(names))
    parser.add_argument("--django", default="5.2", metavar="X.Y")
    parser.add_argument("--driver", default="psycopg2", choices=list(DRIVERS))
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    if unknown := set(options.packages) - set(names):
        parser.error(f"unknown: {', '.join(unknown)}")
    chosen = [each for each in PACKAGES if each.name in (options.packages or names)]
    with server() as settings:
        differing = sum(_try(package, settings, options) for package in chosen)
    tried = sum(len(package.trials) for package in chosen)
    print(f"{tried} trials with {len(chosen)} packages; {differing} differ.")
    return 1 if differing else 0


def _try(package: Package, settings: dict[str, Any], options: argparse.Namespace) -> int:
    django = f"Django=={options.django}.*"
    needed = [*package.requirements, *DRIVERS[options.driver], django, "tenacity"]
    name = f"{package.name}-{options.django}-{options.driver}"
    python = virtualenv(options.python, name, needed)
    base = Database({**settings, "NAME": f"packages_{os.getpid()}"}, python, package.name)
    base.create()
    package.fill(base)
    outcomes = {title: _outcome(trial, base) for title, trial in package.trials.items()}
    for title, outcome in outcomes.items():
        print(f"{package.name}, {title}: {outcome or 'the same'}", flush=True)
    base.drop()
    return sum(map(bool, outcomes.values()))


def _outcome(trial: Callable[[Database], None], base: Database) -> str:
    try:
        trial(base)
    except FindingError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
