"""See every PostgreSQL sequence that is behind, and move it past the keys it feeds.

``--json`` prints one document; its keys are here to stay::

    {"database": "default",          the alias
     "vendor": "postgresql",
     "sequences": [{
        "schema": "public",
        "sequence": "shop_order_id_seq",
        "columns": [{"schema": "public", "table": "shop_order", "column": "id"}],
        "status": "resynced",        or right, behind, unknown (could not be looked at),
                                     exempt (can't be behind: computed default, CYCLE, …)
        "next_value": 22,            before anything was done; null where it was not read
        "largest_key": 25,           null where there is none
        "new_next_value": 26,        null where nothing was moved
        "percent_used": 0,           of its range, once it is in sync; null where it was not read
        "reason": null,              why it is behind still, unknown or exempt
        "advice": null,              what to do about that
        "sql": null                  what a DBA could type, where it is behind
     }],
     "lost": [{                      what models need and columns have lost
        "schema": "public",
        "table": "shop_order",
        "column": "id",
        "status": "lost default",    or foreign sequence, lost key
        "reason": "…",
        "sql": ["…"]                 what puts it back
     }],
     "summary": {"in sync": 11, "behind": 0, "resynced": 1, "unknown": 0, "exempt": 0}}
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, get_args

from django.core.management.base import BaseCommand, CommandError, CommandParser, no_translations
from django.db import DEFAULT_DB_ALIAS, connections

from safemigrate.management import losses
from safemigrate.management.commands.safemigrate import whole_number
from safemigrate.sequences import expected
from safemigrate.sequences.state import Status, Terms
from safemigrate.sequences.sweep import (
    all_schemas,
    current_schemas,
    feeds_in,
    feeds_of_apps,
    survey,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.sequences.catalogue import Feed
    from safemigrate.sequences.expected import Loss
    from safemigrate.sequences.state import Finding

HEADINGS = ("Sequence", "Column", "Next value", "Largest key", "")
NUMERIC = (2, 3)
# After so many seconds someone at a terminal wants to know how far it is.
PATIENCE = 2.0


class Progress:
    """One line on a terminal, kept up to date once it takes longer; nothing anywhere else."""

    def __init__(self, stream: Any, total: int) -> None:
        self.stream = stream
        self.total = total
        self.started = time.monotonic()
        self.shown = ""

    def show(self, done: int) -> None:
        if self.stream.isatty() and time.monotonic() - self.started >= PATIENCE:
            self._replace(f"Looked at {done} of {self.total} sequences")

    def clear(self) -> None:
        if self.shown:
            self._replace("")

    def _replace(self, text: str) -> None:
        self.stream.write(f"\r{text.ljust(len(self.shown))}{'' if text else chr(13)}", ending="")
        self.stream.flush()
        self.shown = text


class Command(BaseCommand):
    help = (
        "Moves every PostgreSQL sequence that is behind past the largest key it feeds, never "
        "backward, and says what was found. Exits with 1 if a sequence is behind afterwards or "
        "could not be looked at."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "app_label",
            nargs="*",
            help="Only the tables of these apps. Default: every table of the current schemas, "
            "Django's or not.",
        )
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            help='The database to look at. Default: "default".',
        )
        where = parser.add_mutually_exclusive_group()
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
        what.add_argument("--check", action="store_true", help="Report only.")
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
            help="Read also a table of more than 1 MiB whole where no index leads with the key.",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="Move a sequence also where its table is fed by an enabled subscription, where "
            "that would leave less than a tenth of its range, and look where another role's "
            "functions could be run by that.",
        )

    @no_translations
    def handle(self, *app_labels: str, **options: Any) -> None:
        labels = app_labels or options["app_label"]
        connection = self._connection(options["database"])
        self.options = options
        self.counts: Counter[Status] = Counter()
        self.lost: list[Loss] = []
        if connection.vendor == "unknown":
            connection.ensure_connection()  # where no database is configured, Django says so
        if connection.vendor != "postgresql":
            self._tell_other_vendor(connection)
            return
        self.used: list[str] = []
        self.lost = self._lost(connection, labels)
        feeds = self._feeds(connection, labels)
        findings = self._findings(connection, feeds)
        if options["as_json"]:
            self._print_json(connection, findings)
        elif options["dry_run"]:
            self._print_sql(findings)
        else:
            self._print_table(findings)
            self._print_losses(connection)
        may_stay = options["dry_run"] and not options["check"]
        if self.counts["unknown"] or ((self.counts["behind"] or self.lost) and not may_stay):
            sys.exit(1)

    def _lost(self, connection: BaseDatabaseWrapper, labels: Iterable[str]) -> list[Loss]:
        try:
            needs = expected.needs_of_apps(connection, labels)
        except LookupError as error:
            raise CommandError(str(error)) from error
        found = expected.losses(connection, needs, self._schemas(connection))
        if self.options["dry_run"] or not self.options["restore_defaults"]:
            return found
        return losses.restored(connection, found, self._tell_restored)

    def _tell_restored(self, text: str) -> None:
        if self.options["verbosity"] and not self.options["as_json"]:
            self.stdout.write(text)

    def _print_losses(self, connection: BaseDatabaseWrapper) -> None:
        if self.options["verbosity"]:
            for line in (*self.used, *losses.lines(self.lost, connection.alias)):
                self.stdout.write(self.style.WARNING(line))

    def _connection(self, alias: str) -> BaseDatabaseWrapper:
        if alias not in connections:
            raise CommandError(
                f"There is no database {alias!r} in the settings, only {', '.join(connections)}."
            )
        return connections[alias]

    def _feeds(self, connection: BaseDatabaseWrapper, labels: Iterable[str]) -> list[list[Feed]]:
        schemas = self.options["schemas"]
        if labels:
            if schemas or self.options["all_schemas"]:
                raise CommandError("Give either app labels or schemas, not both.")
            try:
                return feeds_of_apps(connection, labels)
            except LookupError as error:
                raise CommandError(str(error)) from error
        return feeds_in(connection, self._schemas(connection))

    def _schemas(self, connection: BaseDatabaseWrapper) -> list[str]:
        schemas: list[str] = self.options["schemas"] or []
        if not (schemas or self.options["all_schemas"]):
            return current_schemas(connection)
        there = all_schemas(connection)
        if unknown := [name for name in schemas if name not in there]:
            raise CommandError(
                f"There is no schema {', '.join(map(repr, unknown))}, only {', '.join(there)}."
            )
        return schemas or there

    def _findings(
        self, connection: BaseDatabaseWrapper, feeds: list[list[Feed]]
    ) -> Iterator[Finding]:
        progress = Progress(self.stderr, len(feeds))
        done = 0
        try:
            for chunk in survey(
                connection,
                feeds,
                Terms(self.options["headroom"], self.options["scan"], self.options["force"]),
                move=not (self.options["check"] or self.options["dry_run"]),
            ):
                self.counts.update(finding.status for finding in chunk)
                self.used += filter(None, map(losses.usage, chunk))
                yield from chunk
                done += len(chunk)
                progress.show(done)
        finally:
            progress.clear()

    # As a table.

    def _print_table(self, findings: Iterable[Finding]) -> None:
        verbosity = self.options["verbosity"]
        lines = [
            (finding, _cells(finding))
            for finding in findings
            if verbosity > 1 or finding.status != "in sync"
        ]
        if lines and verbosity:
            rows = [HEADINGS, *(cells for _, cells in lines)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            self.stdout.write(self.style.MIGRATE_HEADING(_line(HEADINGS, widths)))
            for finding, cells in lines:
                self.stdout.write(self._styled(finding, _line(cells, widths)))
        if verbosity:
            self.stdout.write(self.style.MIGRATE_HEADING(self._summary()))

    def _styled(self, finding: Finding, line: str) -> str:
        style = {"resynced": self.style.SUCCESS, "behind": self.style.WARNING}
        return style.get(finding.status, str)(line)

    def _summary(self) -> str:
        total = sum(self.counts.values())
        sequences = "sequence feeds" if total == 1 else "sequences feed"
        parts: dict[Status, str] = {
            "in sync": "in sync",
            "resynced": "behind and resynced",
            "behind": "behind",
            "unknown": "not looked at",
            "exempt": "exempt",
        }
        found = [f"{self.counts[key]} {text}" for key, text in parts.items() if self.counts[key]]
        return f"{total} {sequences} a key{': ' + ', '.join(found) if found else ''}."

    # As SQL.

    def _print_sql(self, findings: Iterable[Finding]) -> None:
        for line in losses.script(self.lost, is_asked=self.options["restore_defaults"]):
            self.stdout.write(line)
        for finding in findings:
            if finding.status == "in sync":
                continue
            reason = f": {finding.obstacle}" if finding.obstacle else ""
            about = str(finding) if finding.is_behind else f"{finding.sequence} was left alone"
            self.stdout.write(f"-- {_one_line(about + reason)}")
            if finding.repair:
                comment = "-- " if finding.obstacle else ""
                self.stdout.write(f"{comment}{finding.repair}")
        self.stdout.write(f"-- {self._summary()}")

    # As JSON.

    def _print_json(self, connection: BaseDatabaseWrapper, findings: Iterable[Finding]) -> None:
        sequences = [_document(finding) for finding in findings]
        self.stdout.write(
            json.dumps(
                {
                    "database": connection.alias,
                    "vendor": connection.vendor,
                    "sequences": sequences,
                    "lost": [losses.document(loss) for loss in self.lost],
                    "summary": {status: self.counts[status] for status in get_args(Status)},
                },
                indent=2,
            )
        )

    def _tell_other_vendor(self, connection: BaseDatabaseWrapper) -> None:
        if self.options["as_json"]:
            self._print_json(connection, [])
        elif self.options["verbosity"]:
            self.stdout.write(
                f"{'-- ' if self.options['dry_run'] else ''}{connection.display_name} has no "
                "sequences that could be behind: nothing to do."
            )


def _cells(finding: Finding) -> tuple[str, ...]:
    done = finding.status
    text: str = done
    if finding.moved_to is not None:
        text = f"resynced to {finding.moved_to + finding.sequence.increment}"
    elif finding.obstacle:
        text = f"{'behind; ' if finding.is_behind else ''}left alone: {finding.remedy}"
    return (
        str(finding.sequence),
        ", ".join(map(str, finding.sequence.keys)),
        "" if finding.next_value is None else str(finding.next_value),
        "" if finding.largest is None else str(finding.largest),
        _one_line(text),
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.rjust(width) if i in NUMERIC else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"  {'  '.join(padded)}".rstrip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _document(finding: Finding) -> dict[str, Any]:
    sequence, obstacle = finding.sequence, finding.obstacle
    return {
        "schema": sequence.schema,
        "sequence": sequence.name,
        "columns": [
            {"schema": key.schema, "table": key.table, "column": key.column}
            for key in sequence.keys
        ],
        "status": finding.status,
        "next_value": finding.next_value,
        "largest_key": finding.largest,
        "new_next_value": None
        if finding.moved_to is None
        else finding.moved_to + sequence.increment,
        "percent_used": expected.percent_used(finding),
        "reason": obstacle.reason if obstacle else None,
        "advice": (obstacle.advice or None) if obstacle else None,
        "sql": (finding.repair or None) if finding.is_behind else None,
    }
