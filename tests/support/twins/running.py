"""Make the twins of a generated project, run both, compare what the law speaks of."""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import IntegrityError, connection
from django.test import override_settings

from safemigrate.driver import sqlstate
from safemigrate.heal.collisions import VIOLATIONS
from safemigrate.locking.timeouts import is_lock_failure
from safemigrate.report import logger
from tests.support.databases import Databases, binding, execute, rows
from tests.support.project import Law, Outcome
from tests.support.twins.blocking import blocking
from tests.support.twins.projects import APPS, SHAPES, Project, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

SUMMARY = re.compile(r"(\d+) sequences? (?:was|were) behind and resynced; (\d+) statements? ret")

# The oracle works by other means than the package: ownership and identity, in the server.
ORACLE = """
    CREATE SCHEMA oracle;
    CREATE FUNCTION oracle.set_right() RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog AS $$
    DECLARE
        each record;
        largest bigint;
        next_value bigint;
    BEGIN
        FOR each IN
            SELECT d.refobjid::regclass AS relation, a.attname AS name, s.oid::regclass AS sequence
            FROM pg_depend AS d
            JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
            JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
            WHERE d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
        LOOP
            EXECUTE format('SELECT max(%I) FROM %s', each.name, each.relation) INTO largest;
            EXECUTE format('SELECT last_value + is_called::int FROM %s', each.sequence)
            INTO next_value;
            IF largest >= next_value THEN
                PERFORM setval(each.sequence, largest);
            END IF;
        END LOOP;
    END $$
"""
# What the catalogue says beyond Outcome.schema.
MORE_SCHEMA = """
    SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL
    SELECT schemaname || '.' || sequencename, data_type || ' ' || increment_by || ' ' || max_value
    FROM pg_sequences
    UNION ALL
    SELECT tablename, definition FROM pg_rules WHERE schemaname IN ('public', 'archive')
    UNION ALL
    SELECT viewname, definition FROM pg_views WHERE schemaname IN ('public', 'archive')
    UNION ALL
    SELECT p.proname, p.prosrc FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace
    ORDER BY 1, 2
"""
SEQUENCES = """
    SELECT s.oid, s.oid::regclass::text FROM pg_class AS s WHERE s.relkind = 'S' ORDER BY 2
"""
FED = """
    SELECT c.oid::regclass::text, a.attname, s.oid::regclass::text
    FROM pg_depend AS d
    JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
    JOIN pg_class AS c ON c.oid = d.refobjid
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    ORDER BY 1, 2
"""
FOREIGN_KEYS = """
    SELECT c.conrelid::regclass::text, a.attname, c.confrelid::regclass::text, b.attname
    FROM pg_constraint AS c
    JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
    JOIN pg_attribute AS b ON b.attrelid = c.confrelid AND b.attnum = c.confkey[1]
    WHERE c.contype = 'f'
"""
TABLES = """
    SELECT c.oid::regclass::text, array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('public', 'archive')
    GROUP BY c.oid ORDER BY 1
"""
PARTS = "SELECT inhrelid::regclass::text FROM pg_inherits"


class BrokenLawError(AssertionError):
    """The law does not hold."""


@dataclass
class Counts:
    """What a search has tried and found."""

    projects: int = 0
    applicable: int = 0
    failing: int = 0
    against_migrate: int = 0
    against_itself: int = 0
    resynced: int = 0
    retried: int = 0
    helped: int = 0
    waited: int = 0
    gave_up: int = 0
    beyond: int = 0
    features: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.projects} projects ({self.applicable} with a history that migrate can apply, "
            f"{self.failing} whose migrate fails by itself, {self.helped} of them helped; "
            f"{self.against_migrate} compared with migrate, {self.against_itself} with safemigrate "
            f"in sync); {self.resynced} sequences resynced, {self.retried} statements retried"
            + (f"; {self._of_locks()}" if self.waited else "")
        )

    def _of_locks(self) -> str:
        return (
            f"{self.waited} waited for locks, {self.gave_up} gave up, {self.beyond} were "
            "beyond its limits"
        )


class Twins:
    """Runs projects; enters the apps they are made of, and the databases they begin with."""

    def __init__(self, databases: Databases, folder: Path, *, is_blocked: bool = False) -> None:
        self.databases = databases
        self.folder = folder
        self.is_blocked = is_blocked
        self.counts = Counts()
        self._number = 0
        self._templates: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for app in APPS:
            (self.folder / app).mkdir()
            (self.folder / app / "__init__.py").touch()
            (self.folder / app / "models.py").touch()
        sys.path.insert(0, str(self.folder))
        self._stack.callback(sys.path.remove, str(self.folder))
        self._stack.enter_context(
            override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, *APPS])
        )
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()
        for name in [name for name in sys.modules if name.split(".")[0] in APPS]:
            del sys.modules[name]

    # A project on disk.

    @contextmanager
    def installed(self, steps: list[Step]) -> Iterator[None]:
        self._number += 1
        package = f"twin_{id(self)}_{self._number}"
        for app in APPS:
            (self.folder / package / app).mkdir(parents=True)
            (self.folder / package / app / "__init__.py").touch()
        for step in steps:
            (self.folder / package / step.app / f"{step.name}.py").write_text(step.source())
        importlib.invalidate_caches()
        modules = {app: f"{package}.{app}" for app in APPS}
        with override_settings(MIGRATION_MODULES=modules):
            yield
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]

    def migrate(self, *args: Any, command: str = "migrate", **options: Any) -> None:
        apps.get_model("contenttypes.ContentType").objects.clear_cache()
        if command == "safemigrate":
            options["no_lock"] = True
        try:
            call_command(command, *args, **{"no_color": True, **options})
        except BaseException:
            end_process()
            raise

    def template(self, contrib: str) -> str:
        if contrib not in self._templates:
            name = self.databases.create()
            with binding("default", name), self.installed([]):
                execute(ORACLE)
                if contrib == "all":
                    self.migrate(verbosity=0)
                elif contrib == "some":
                    self.migrate("auth", "0008", verbosity=0)
            self._templates[contrib] = name
        return self._templates[contrib]

    # One example.

    def hold(self, project: Project) -> None:
        """Raise BrokenLawError where the law does not hold for ``project``."""
        self.counts.projects += 1
        database = self.databases.create(self.template(project.contrib))
        try:
            with binding("default", database):
                if self._prepared(project):
                    self._compare(project, database)
        finally:
            self.databases.drop(database)

    def _prepared(self, project: Project) -> bool:
        """Apply the first migrations of the project and fill its tables."""
        begun = project.steps[: project.applied]
        with self.installed(begun):
            try:
                for app in APPS if begun else ():
                    self.migrate(app, verbosity=0)
            except Exception:  # noqa: BLE001 - a history that plain migrate can't apply is no history
                return False
        execute("; ".join(filling(project.shapes)) or "SELECT 1")
        execute("SELECT oracle.set_right()")
        connection.close()
        return True

    def _compare(self, project: Project, database: str) -> None:
        self.counts.applicable += 1
        self.counts.features.update(project.features)
        template = self.databases.create(database)
        try:
            with self.installed([*project.steps, *project.squashed]):
                expected = self._in_sync("migrate", project, template)
                with binding("default", database):
                    place(project.places, behind=True)
                    before = positions()
                    actual = self._run_blocked() if self.is_blocked else self._run("safemigrate")
                self._count(expected, actual)
                if is_lock_failure(actual.outcome.error or Exception()):
                    self.counts.gave_up += 1
                    return
                # See docs/limits.md and docs/locks.md: no rollback takes a PREPARE back.
                if actual.is_unchecked or "prepared statement" in str(actual.outcome.error):
                    self.counts.beyond += 1
                    return
                if not project.harms_itself or not (
                    expected.has_collided or project.ignores_conflicts
                ):
                    self.counts.against_migrate += 1
                    judge(expected, actual, up_to_keys=self.is_blocked)
                else:
                    # Plain migrate fails here, or loses rows, on every database. What safemigrate
                    # makes of it must not depend on where the sequences were.
                    self.counts.against_itself += 1
                    other = self._in_sync("safemigrate", project, template)
                    judge(other, actual, up_to_keys=self.is_blocked)
        finally:
            self.databases.drop(template)
        if not project.sets_back:
            for oid, (name, value) in before.items():
                if oid in actual.positions and actual.positions[oid][1] < value:
                    now = actual.positions[oid][1]
                    raise BrokenLawError(f"{name} was moved back, from {value} to {now}")

    def _in_sync(self, command: str, project: Project, template: str) -> Seen:
        """Run the command on the twin whose sequences are in sync."""
        name = self.databases.create(template)
        try:
            with binding("default", name):
                place(project.places, behind=False)
                with collisions() as met:
                    seen = self._run(command)
                seen.has_collided = bool(met) or isinstance(seen.outcome.error, IntegrityError)
                return seen
        finally:
            self.databases.drop(name)

    def _run(self, command: str, **options: Any) -> Seen:
        law = Law(self, self.databases)  # type: ignore[arg-type]
        outcome = law.run(command, **options)
        if self.is_blocked:  # a retry draws new keys, by which a partition is chosen
            parts = {name for (name,) in rows(PARTS)}
            outcome.tables = {
                table: [(row,) for row in found]
                for table, found in canonical().items()
                if table not in parts
            }
        return Seen(outcome, rows(MORE_SCHEMA), positions())

    def _run_blocked(self) -> Seen:
        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            with blocking():
                seen = self._run("safemigrate", lock_timeout=0.02, retry_python=True)
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
        self.counts.waited += any(text.startswith("Waiting for ") for text in told)
        seen.is_unchecked = any("could not be checked" in text for text in told)
        return seen

    def _count(self, expected: Seen, actual: Seen) -> None:
        resynced, retried = actual.healed()
        self.counts.resynced += resynced
        self.counts.retried += retried
        self.counts.failing += expected.outcome.error is not None
        self.counts.helped += bool(expected.outcome.error) and actual.outcome.error is None


def judge(expected: Seen, actual: Seen, *, up_to_keys: bool = False) -> None:
    """Raise BrokenLawError where the two differ in anything that the law speaks of."""
    parts: dict[str, Callable[[Seen], Any]] = {
        "failure": lambda seen: seen.failure(up_to_keys=up_to_keys),
        "lines": lambda seen: seen.outcome.lines,
        "signals": lambda seen: seen.outcome.signals,
        "rows": lambda seen: seen.outcome.tables,
        "schema": lambda seen: (seen.outcome.schema, seen.more_schema),
    }
    for part, of in parts.items():
        mine, theirs = of(actual), of(expected)
        if mine != theirs:
            raise BrokenLawError(
                f"{part} differ\nbehind:  {difference(mine, theirs)}\n"
                f"in sync: {difference(theirs, mine)}\n"
                f"error: {actual.outcome.error!r}, not {expected.outcome.error!r}\n"
                f"notes: {getattr(actual.outcome.error, '__notes__', [])}\n"
                + "\n".join(actual.outcome.notices)
            )


def end_process() -> None:
    """Drop the connection as the end of a process would.

    Django leaves a transaction open, for good, where deferred SQL fails.
    """
    if connection.connection is not None:
        connection.connection.close()
        connection.connection = None
    connection.in_atomic_block = connection.needs_rollback = False


def difference(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return {
            key: difference(value, theirs.get(key))
            for key, value in mine.items()
            if theirs.get(key) != value
        }
    if isinstance(mine, list) and isinstance(theirs, list):
        return [each for each in mine if each not in theirs] or f"(in another order) {mine}"
    return mine


@dataclass
class Seen:
    """What a run left."""

    outcome: Outcome
    more_schema: list[tuple[Any, ...]]
    positions: dict[int, tuple[str, int]]
    is_unchecked: bool = False
    # Whether a statement of the run has met a duplicate, even if the migration expected that.
    has_collided: bool = False

    def healed(self) -> tuple[int, int]:
        for notice in self.outcome.notices:
            if match := SUMMARY.match(notice):
                return int(match[1]), int(match[2])
        return 0, 0

    def failure(self, *, up_to_keys: bool) -> tuple[Any, ...] | None:
        if self.outcome.failure is None:
            return None
        kind, cause, args, frame = self.outcome.failure
        args = [re.sub(r'"s\d+_x\d+"', "a savepoint", each) for each in args]
        if up_to_keys:
            args = [re.sub(r"\d+", "a number", each) for each in args]
        return kind, cause, args, frame


@contextmanager
def collisions() -> Iterator[list[IntegrityError]]:
    """Collect the duplicates that the connection's statements meet."""
    met: list[IntegrityError] = []

    def watch(execute: Callable[..., Any], *call: Any) -> Any:
        try:
            return execute(*call)
        except IntegrityError as error:
            if sqlstate(error) in VIOLATIONS:
                met.append(error)
            raise

    with connection.execute_wrapper(watch):
        yield met


def filling(shapes: list[int]) -> list[str]:
    """Return the statements that give every table of the project rows, with holes or without."""
    statements = ["SET session_replication_role = replica"]
    fed = {(table, column) for table, column, _ in rows(FED)}
    number = 0
    for name, columns in rows(TABLES):
        bare = name.strip('"')
        if bare.startswith(("auth_", "django_")) and bare != "auth_group":
            continue
        shape = SHAPES[shapes[number % len(shapes)]]
        number += 1
        key = next((column for column in columns if (name, column) in fed), None)
        label = "name" if bare == "auth_group" else "label"
        if key and label in columns:
            statements += [
                # A trigger may have written a row, and not every key is unique yet.
                f"INSERT INTO {name} (\"{key}\", {label}) SELECT {value}, 'old {bare} {value}' "
                f'WHERE NOT EXISTS (SELECT FROM {name} WHERE "{key}" = {value}) '
                "ON CONFLICT DO NOTHING"
                for value in shape
            ]
        elif key and len(columns) == 3:
            statements += _links(name, key, columns, shape)
    return [*statements, "RESET session_replication_role"]


def _links(name: str, key: str, columns: list[str], shape: tuple[int, ...]) -> list[str]:
    one, two = (column for column in columns if column != key)
    targets = {
        column: (table, pk) for source, column, table, pk in rows(FOREIGN_KEYS) if source == name
    }
    if set(targets) != {one, two}:
        return []
    (left, left_key), (right, right_key) = targets[one], targets[two]
    keys = f"(ARRAY{list(shape)}::int[])[row_number() OVER (ORDER BY a, b)]"
    lefts, rights = (
        f'SELECT "{left_key}" AS a FROM {left}',
        f'SELECT "{right_key}" AS b FROM {right}',
    )
    insert = f'INSERT INTO {name} ("{key}", "{one}", "{two}") SELECT {keys}, a, b'
    rest = f"LIMIT {len(shape)} ON CONFLICT DO NOTHING"
    return [f"{insert} FROM ({lefts}) AS x, ({rights}) AS y {rest}"]


def place(places: list[str], *, behind: bool) -> None:
    """Put the sequences where the project has them; on the healthy twin none is behind.

    One that was drawn from in vain stays where it is: no resync could know of that gap.
    """
    found = rows(
        " UNION ALL ".join(
            f"(SELECT {number}, {literal(sequence)}, coalesce(max({_quoted(column)}), 0), "
            f"(SELECT last_value + is_called::int FROM {sequence}) FROM {table})"
            for number, (table, column, sequence) in enumerate(rows(FED))
        )
        or "SELECT 1 WHERE false"
    )
    statements = ["SELECT 1"]
    for number, sequence, largest, next_value in found:
        where = places[number % len(places)]
        if next_value > largest + 1:
            continue
        value = {"one": 1, "middle": largest // 2 or 1, "last": largest or 1}.get(where)
        if where == "ahead":
            value = largest + 5
        if value and (behind or where == "ahead"):
            statements.append(f"SELECT setval({literal(sequence)}::regclass, {value}, false)")
    execute("; ".join(statements))


def positions() -> dict[int, tuple[str, int]]:
    """Return for each sequence, by oid, its name and the value that it would give next."""
    found = rows(
        " UNION ALL ".join(
            f"SELECT {oid}, {literal(name)}, last_value + is_called::int FROM {name}"
            for oid, name in rows(SEQUENCES)
        )
        or "SELECT 1 WHERE false"
    )
    return {oid: (name, value) for oid, name, value in found}


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(name: str) -> str:
    return f'"{name}"'


def canonical() -> dict[str, list[str]]:
    """Return all rows, each generated key replaced by what its row says."""
    fed = {(table, column) for table, column, _ in rows(FED)}
    links = {(source, column): (target, pk) for source, column, target, pk in rows(FOREIGN_KEYS)}
    contents: dict[str, list[dict[str, Any]]] = {table: [] for table, _ in rows(TABLES)}
    everything = " UNION ALL ".join(
        f"SELECT {literal(table)}, to_jsonb(t)::text FROM {table} AS t" for table in contents
    )
    for table, row in rows(everything or "SELECT 1 WHERE false"):
        contents[table].append(json.loads(row))

    def says(table: str, row: dict[str, Any], depth: int = 3) -> tuple[Any, ...]:
        values = []
        for column, value in row.items():
            if column == "applied" or (table, column) in fed:
                continue
            if (table, column) not in links or value is None or not depth:
                values.append((column, None if (table, column) in links else value))
                continue
            target, pk = links[table, column]
            there = next((each for each in contents[target] if each[pk] == value), None)
            values.append((column, there and says(target, there, depth - 1)))
        return tuple(values)

    return {
        table: sorted(repr(says(table, row)) for row in found) for table, found in contents.items()
    }
