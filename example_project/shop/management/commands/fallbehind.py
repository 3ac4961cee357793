from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from shop.ours import add_this_database, only_ours, where
from shop.sequences import Sequence, sequences, set_back

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Command(BaseCommand):
    help = "Sets the sequences of tables back to 1, so that there is something to heal."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "tables", metavar="TABLE", nargs="*", help="A table, such as shop_order."
        )
        parser.add_argument("--all", action="store_true", help="Every table that has a sequence.")
        add_this_database(parser)

    def handle(
        self,
        *,
        tables: list[str],
        all: bool,  # noqa: A002 - the option's name
        this_database: bool,
        **options: Any,
    ) -> None:
        if all == bool(tables):
            raise CommandError("Name the tables whose sequences are to fall behind, or give --all.")
        if not this_database:
            only_ours(connection, hint="If you mean it, add --this-database.")
        self.stdout.write(f"{where(connection)}:")
        for sequence in _chosen(tables):
            set_back(connection, sequence)
            self.stdout.write(f"  {_describe(sequence)}")


def _chosen(tables: list[str]) -> list[Sequence]:
    """Return the sequences of the tables, of all of them if none is named."""
    known = sequences(connection)
    names = {sequence.table for sequence in known}
    if unknown := sorted(set(tables) - names):
        raise CommandError(
            f"No table with a sequence is called {', '.join(unknown)}."
            f" There are: {', '.join(sorted(names)) or 'none yet; run migrate first'}."
        )
    return [sequence for sequence in known if not tables or sequence.table in tables]


def _describe(sequence: Sequence) -> str:
    rows = "empty" if sequence.largest is None else f"largest id {sequence.largest}"
    return f"{sequence.table} ({rows}): next id 1, was {sequence.next}"
