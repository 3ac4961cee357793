"""Check every PostgreSQL sequence, and resync those that are behind the keys they feed."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser, no_translations
from django.db import DEFAULT_DB_ALIAS, Error, connections

from safemigrate import driver
from safemigrate.interrupt import end_by, ending_on_signals
from safemigrate.management import losses
from safemigrate.management.arguments import whole_number
from safemigrate.management.findings import Tally
from safemigrate.management.formats import Format, Json, Sql, annotation
from safemigrate.management.output import write_to
from safemigrate.management.progress import Progress
from safemigrate.management.table import Table
from safemigrate.printing import command_line, one_line, option, printable
from safemigrate.sequences.losses import find_losses
from safemigrate.sequences.needs import needs_of_apps
from safemigrate.sequences.scope import (
    current_schemas,
    feeds_in,
    feeds_of,
    missing_schemas,
    place_of_table,
    tables_of_app,
)
from safemigrate.sequences.state import Terms
from safemigrate.sequences.sweep import survey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.sequences.feeds import Feed
    from safemigrate.sequences.finding import Finding
    from safemigrate.sequences.needs import Loss

# Exit statuses; 2 is argparse's own for what can't be meant.
BEHIND, WRONG, UNKNOWN, DOWN = 1, 2, 3, 4


class Command(BaseCommand):
    help = (
        "Moves every PostgreSQL sequence that is behind past the largest key it feeds, never "
        "backward, and says what was found. Exits with 1 if a sequence is behind afterwards or a "
        "table has lost something, with 2 if the command line is wrong, with 3 if something could "
        "not be checked, and with 4 if the server can't be reached."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "app_label",
            nargs="*",
            help="Only the tables of these apps. Default: every table of the current schemas, "
            "Django's or not, and those of models that name another schema.",
        )
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help='The database to check. Default: "default".',
        )
        where = parser.add_mutually_exclusive_group()
        where.add_argument(
            "--table",
            action="append",
            dest="tables",
            metavar="TABLE",
            help="Only this table, written as table or schema.table; can be given more than once.",
        )
        where.add_argument(
            "--schema",
            action="append",
            dest="schemas",
            metavar="SCHEMA",
            help="Every table of this schema; can be given more than once.",
        )
        where.add_argument(
            "--all-schemas", action="store_true", help="Every table of every schema."
        )
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--check",
            action="store_true",
            help="Report only, and end with the command that moves what is behind.",
        )
        what.add_argument(
            "--restore-defaults",
            action="store_true",
            help="First give the models' primary keys back the identity or default that they have "
            "lost, one table at a time, past the largest key.",
        )
        how = parser.add_mutually_exclusive_group()
        how.add_argument(
            "--dry-run",
            action="store_true",
            help="Change nothing; print SQL that a DBA could run.",
        )
        how.add_argument(
            "--json", action="store_true", dest="as_json", help="Print one JSON document."
        )
        parser.add_argument(
            "--headroom",
            type=whole_number,
            default=0,
            metavar="N",
            help="Leave N values free past the largest key; a sequence that has fewer is behind.",
        )
        parser.add_argument(
            "--scan",
            action="store_true",
            help="Check also tables of more than 1 MiB without an index on the key, by reading "
            "them in full.",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Overrule the safeguards: an enabled subscription, a jump that leaves less than a "
            "tenth of the range or uses up most of it, another role's functions, numbers that may "
            "restart on purpose, a trigger that may fill a key.",
        )

    @no_translations
    def handle(self, *args: Any, **options: Any) -> None:
        self.options = options
        self.labels: list[str] = options["app_label"]
        self.tally = Tally(_whole_number(options["headroom"]))
        self.progress: Progress | None = None
        self.format = self._format()
        with self._concluding():
            self._check_labels()
            self._check(connections[options["database"]])
        if status := self._status():
            sys.exit(status)

    def _check(self, connection: BaseDatabaseWrapper) -> None:
        if connection.vendor == "unknown":
            connection.ensure_connection()  # where no database is configured, Django says so
        self.tally.vendor = connection.vendor
        if connection.vendor != "postgresql":
            self.tally.other_vendor = connection.display_name
            return
        try:
            with ending_on_signals():
                self.schemas = self._schemas(connection)
                self.tally.lost = self._lost(connection)
                self.format.begin(self.tally.lost)
                for loss in self.tally.lost:
                    self._annotate("Lost by a table", loss)
                self._go_through(connection, self._feeds(connection))
        except Error as error:
            raise _failure(connection, error) from error

    def _status(self) -> int:
        counts = self.tally.counts
        may_stay_behind = self.options["dry_run"] and not self.options["check"]
        if (counts["behind"] or self.tally.lost) and not may_stay_behind:
            return BEHIND
        return UNKNOWN if counts["unknown"] else 0

    # What to check.

    def _check_labels(self) -> None:
        named = ("tables", "schemas", "all_schemas")
        if self.labels and any(self.options[each] for each in named):
            raise CommandError(
                "App labels can't be combined with --table, --schema or --all-schemas.",
                returncode=WRONG,
            )
        try:
            for label in self.labels:
                apps.get_app_config(label)
        except LookupError as error:
            raise CommandError(str(error), returncode=WRONG) from error

    def _feeds(self, connection: BaseDatabaseWrapper) -> list[list[Feed]]:
        if self.labels:
            return feeds_in(connection, tables=self._tables_of_apps(connection))
        if tables := self.options["tables"]:
            with _refusing_unknown_tables():
                return feeds_of(connection, tables)
        if self.options["schemas"] or self.options["all_schemas"]:
            return feeds_in(connection, self.schemas)
        return feeds_of(connection)

    def _lost(self, connection: BaseDatabaseWrapper) -> list[Loss]:
        """List what is lost; with --restore-defaults what is lost after it."""
        found = self._find_lost(connection)
        if self.options["restore_defaults"] and self._may_change():
            failures = losses.restore_all(connection, found, self._tell)
            found = [  # another session may have restored some
                loss._replace(failure=failures.get(loss.place, "")) if loss.is_restorable else loss
                for loss in self._find_lost(connection)
            ]
        return found

    def _may_change(self) -> bool:
        return not (self.options["check"] or self.options["dry_run"])

    def _find_lost(self, connection: BaseDatabaseWrapper) -> list[Loss]:
        needs = needs_of_apps(connection, self.labels)
        force = self.options["force"] and self.options["restore_defaults"]
        if tables := self.options["tables"]:
            with _refusing_unknown_tables():
                places = {place_of_table(connection, name) for name in tables}
            schemas = [schema for schema, _ in places]
            found = find_losses(connection, needs, schemas, force=force)
            found = [loss for loss in found if (loss.schema, loss.table) in places]
        else:
            found = find_losses(connection, needs, self.schemas, force=force)
            if named := self.options["schemas"]:  # a model may name another one itself
                found = [loss for loss in found if loss.schema in named]
        return found

    def _tables_of_apps(self, connection: BaseDatabaseWrapper) -> list[int]:
        found = []
        for label in self.labels:
            tables = tables_of_app(connection, label)
            if not tables:
                self._tell(f"The app {label!r} has no tables in this database.")
            found += tables
        return found

    def _schemas(self, connection: BaseDatabaseWrapper) -> list[str] | None:
        """Return the schemas to check, or None for all of them."""
        if self.options["all_schemas"]:
            return None
        if named := self.options["schemas"]:
            if missing := missing_schemas(connection, named):
                raise CommandError(
                    f"There is no schema {', '.join(map(repr, missing))}.", returncode=WRONG
                )
            return list(named)
        current = current_schemas(connection)
        if current or self.labels or self.options["tables"]:
            return current
        raise CommandError(
            "No schema is current (search_path). Give --schema or --all-schemas.",
            returncode=WRONG,
        )

    def _go_through(self, connection: BaseDatabaseWrapper, feeds: list[list[Feed]]) -> None:
        options = self.options
        terms = Terms(self.tally.headroom, options["scan"], options["force"])
        self.progress = Progress(self.stderr, len(feeds))
        try:
            for finding in survey(connection, feeds, terms, move=self._may_change()):
                self.tally.add(finding)
                self.format.add(finding)
                if finding.is_behind:
                    self._annotate("Sequence behind", finding)
                self.progress.show(self.tally.counts.total())
        finally:
            self.progress.clear()

    # What is told.

    def _format(self) -> Format:
        verbosity = self.options["verbosity"]
        if self.options["as_json"]:
            return Json(self._write, verbosity, database=self.options["database"])
        if self.options["dry_run"]:
            return Sql(self._write, verbosity, restores=self.options["restore_defaults"])
        return Table(
            self._write,
            verbosity,
            style=self.style,
            to_type=self._to_type() if self.options["check"] else "",
            to_restore=self._to_type("--restore-defaults"),
        )

    def _to_type(self, *more: str) -> str:
        """Return the command that moves what this one has checked, or does ``more``."""
        options = self.options
        words = [*more, *self.labels]
        words += option("--headroom", str(options["headroom"])) if options["headroom"] else []
        for name, values in (("table", options["tables"]), ("schema", options["schemas"])):
            for value in values or ():
                words += option(f"--{name}", value)
        words += [
            f"--{name.replace('_', '-')}"
            for name in ("all_schemas", "scan", "force")
            if options[name]
        ]
        return printable(command_line(options["database"], *words))

    def _write(self, line: str) -> None:
        if self.progress:
            self.progress.clear()
        write_to(self.stdout, line)

    def _tell(self, text: str) -> None:
        """Tell of something that is no finding."""
        if self.options["verbosity"] and not self.options["as_json"]:
            self._write(f"{'-- ' if self.options['dry_run'] else ''}{text}")

    def _annotate(self, title: str, what: Finding | Loss) -> None:
        if os.environ.get("GITHUB_ACTIONS") == "true":
            self.stderr.write(annotation(title, what), style_func=str)

    # How it ends.

    @contextmanager
    def _concluding(self) -> Iterator[None]:
        """Print what there is to print whatever ends the block, and say in one line what did."""
        try:
            yield
        except KeyboardInterrupt as error:
            self.format.end(self.tally, self._interrupted())
            self.stderr.write(self._interrupted(), style_func=str)
            if getattr(self, "_called_from_command_line", False):
                end_by(error)
            raise
        except Exception as error:
            self.format.end(self.tally, one_line(str(error)))
            raise
        self.format.end(self.tally)

    def _interrupted(self) -> str:
        done = self.tally.counts.total()
        if self.progress is None:
            return "Interrupted before any sequence was checked."
        next_one = "; the next one may have been moved, too" if self._may_change() else ""
        return f"Interrupted after {done} of {self.progress.total} sequences{next_one}."


def _whole_number(value: object) -> int:
    try:
        return whole_number(value)  # call_command() does not ask the parser
    except ArgumentTypeError as error:
        raise CommandError(f"headroom: {error}", returncode=WRONG) from error


@contextmanager
def _refusing_unknown_tables() -> Iterator[None]:
    try:
        yield
    except LookupError as error:
        raise CommandError(error.args[0], returncode=WRONG) from error


def _failure(connection: BaseDatabaseWrapper, error: Error) -> CommandError:
    """Return what Django prints in one line."""
    reason = one_line(str(error))
    if driver.is_closed(connection):
        text = f'The database "{connection.alias}" can\'t be reached: {reason}'
        return CommandError(text, returncode=DOWN)
    text = f'The database "{connection.alias}" could not be checked: {reason}'
    return CommandError(text, returncode=UNKNOWN)
