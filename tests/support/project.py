"""A project's migrations, written by a test, and the law that holds for running them."""

from __future__ import annotations

import importlib
import io
import itertools
import re
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db import migrations as django_migrations
from django.db.models.signals import post_migrate, pre_migrate
from django.test import override_settings

from tests.support.databases import Databases, binding, put_behind, rows, set_right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

REGISTRY: dict[str, type[django_migrations.Migration]] = {}
NOTICE = re.compile(r"  Resynced .* from -?\d+ to -?\d+ for |\d+ sequences? (was|were) behind and ")
DURATION = re.compile(r" \(\d+\.\d+s\)$")
_numbers = itertools.count()

COLUMNS = """
    SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY n.nspname, c.relname, a.attnum
"""
CONSTRAINTS = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE conrelid > 0 ORDER BY 1, 2
"""
INDEXES = """
    SELECT schemaname, indexname, indexdef FROM pg_indexes
    WHERE schemaname <> 'pg_catalog' ORDER BY 1, 2
"""
TABLES = """
    SELECT schemaname, tablename FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2
"""


class Project:
    """The migrations of the app ``app``; those of the contrib apps are Django's own."""

    def __init__(self, folder: Path, databases: Databases) -> None:
        self.databases = databases
        self.package = f"migrations_{next(_numbers)}"
        self.folder = folder / self.package
        self._count = 0
        self._settings = override_settings(MIGRATION_MODULES={"app": self.package})

    def __enter__(self) -> Self:
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()
        sys.path.insert(0, str(self.folder.parent))
        self._settings.enable()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._settings.disable()
        sys.path.remove(str(self.folder.parent))
        for name in [name for name in sys.modules if name.startswith(self.package)]:
            del sys.modules[name]

    def begin_with(self, state: str, fill: Callable[[], None] = lambda: None) -> None:
        """Migrate and fill the empty database; what is asked for again is cloned.

        A ``state`` stands for what the project's migrations and ``fill`` make.
        """

        def make() -> None:
            self.migrate()
            fill()

        self.databases.restore(state, make)

    def migration(self, *operations: Any, **attributes: Any) -> str:
        """Add a migration after those there are; return its name."""
        previous = self._last()
        self._count += 1
        name = f"{self._count:04d}_step"
        attributes.setdefault("dependencies", [("app", previous)] if previous else [])
        attributes["operations"] = list(operations)
        bases = attributes.pop("bases", (django_migrations.Migration,))
        REGISTRY[f"{self.package}.{name}"] = type("Migration", bases, attributes)
        (self.folder / f"{name}.py").write_text(
            "from tests.support.project import REGISTRY\n\nMigration = REGISTRY[__name__]\n"
        )
        importlib.invalidate_caches()
        return name

    def _last(self) -> str | None:
        return f"{self._count:04d}_step" if self._count else None

    def migrate(self, *args: Any, command: str = "migrate", **options: Any) -> str:
        """Run ``migrate``, or another command, and return its stdout."""
        out = io.StringIO()
        apps.get_model("contenttypes.ContentType").objects.clear_cache()
        call_command(command, *args, **{"stdout": out, "stderr": out, "no_color": True, **options})
        return out.getvalue()


def run_python(code: Callable[[Any, Any], None], **options: Any) -> django_migrations.RunPython:
    """Make an operation of a function of (apps, schema_editor) that can be taken back."""
    options.setdefault("reverse_code", django_migrations.RunPython.noop)
    return django_migrations.RunPython(code, **options)


@dataclass
class Outcome:
    """All that the law speaks of."""

    lines: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    signals: list[tuple[str, str, list[str]]] = field(default_factory=list)
    error: BaseException | None = None
    tables: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    schema: list[tuple[Any, ...]] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)

    @property
    def failure(self) -> tuple[Any, ...] | None:
        if self.error is None:
            return None
        frame = traceback.extract_tb(self.error.__traceback__)[-1]
        return (
            type(self.error),
            type(self.error.__cause__),
            without_oids(self.error.args),
            (frame.filename, frame.name),
        )

    def forget_keys(self) -> None:
        for name, found in self.tables.items():
            if name.startswith("public.app_"):
                self.tables[name] = sorted((row[1:] for row in found), key=repr)


def without_oids(args: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(re.sub(r"\b\d{5,}\b", "N", str(each)) for each in args)


class Law:
    """The law of equivalence: the same end from a database with sequences behind."""

    def __init__(self, project: Project, databases: Databases) -> None:
        self.project = project
        self.databases = databases

    def holds(
        self,
        *args: Any,
        put_back: Iterable[str] = (),
        to: int = 1,
        spoil: Callable[[], None] | None = None,
        up_to_keys: bool = False,
        ours: dict[str, Any] | None = None,
        **options: Any,
    ) -> Outcome:
        """Run safemigrate on the database, and migrate on its twin; return safemigrate's outcome.

        The sequences of the tables ``put_back`` (all, where there are none) give ``to`` next in
        the database; in the twin every sequence is in sync. ``spoil`` does more harm to the first,
        and ``ours`` are options of safemigrate's own.
        With ``up_to_keys`` the first columns of the app's own tables may differ: a statement that
        was repeated, because a trigger or a function of it collided, has drawn its key twice.
        """
        set_right()
        connection.close()
        twin = self.databases.create(connection.settings_dict["NAME"])
        with binding("default", twin):
            expected = self.run("migrate", *args, **options)
        self.databases.drop(twin)
        put_behind(*put_back, to=to)
        if spoil:
            spoil()
        actual = self.run("safemigrate", *args, **options, **(ours or {}))
        if up_to_keys:
            expected.forget_keys()
            actual.forget_keys()
        for part in ("failure", "lines", "signals", "tables", "schema"):
            mine, theirs = getattr(actual, part), getattr(expected, part)
            assert mine == theirs, f"{part}: {actual.error!r} {actual.notices}"
        return actual

    def run(self, command: str, *args: Any, **options: Any) -> Outcome:
        outcome = Outcome()
        out = io.StringIO()

        def record(signal: Any, sender: Any, plan: Any = (), **kwargs: Any) -> None:
            name = "pre" if signal is pre_migrate else "post"
            outcome.signals.append((name, sender.label, [str(step) for step in plan]))

        pre_migrate.connect(record)
        post_migrate.connect(record)
        try:
            self.project.migrate(*args, command=command, stdout=out, **options)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the law is about any of them
            outcome.error = error
        finally:
            pre_migrate.disconnect(record)
            post_migrate.disconnect(record)
        printed = [DURATION.sub("", line) for line in out.getvalue().splitlines()]
        outcome.notices = [line for line in printed if NOTICE.match(line)]
        outcome.lines = [line for line in printed if not NOTICE.match(line)]
        if connection.in_atomic_block or connection.needs_rollback:
            raise AssertionError("a transaction was left open")
        outcome.schema = [*rows(COLUMNS), *rows(CONSTRAINTS), *rows(INDEXES)]
        outcome.tables = contents()
        return outcome


def contents() -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table, but for the time that a migration was applied at."""
    found = {}
    for schema, table in rows(TABLES):
        columns = "id, app, name" if table == "django_migrations" else "*"
        found[f"{schema}.{table}"] = sorted(
            rows(f'SELECT {columns} FROM "{schema}"."{table}"'), key=repr
        )
    return found
