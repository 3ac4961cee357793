from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from shop import story
from shop.ours import add_this_database, only_ours, where
from shop.scratch import ScratchError, create, inside, scratch_databases
from shop.sequences import Sequence, sequences

if TYPE_CHECKING:
    from argparse import ArgumentParser

STAGE = "safemigrate_demo"
START = "safemigrate_demo_start"


class Command(BaseCommand):
    help = f"Plays a failing deploy, and one that heals, on a database of its own, {STAGE}."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_this_database(parser)

    def handle(self, *, this_database: bool, **options: Any) -> None:
        if not this_database:
            only_ours(connection, hint=f"To use its server for {STAGE}, add --this-database.")
        self.stdout.write(f"{where(connection)}; the demo makes and drops {STAGE}.")
        try:
            with scratch_databases(connection, STAGE, START):
                self.prepare()
                self.plain_migrate_fails()
                self.again_fails_worse()
                self.plain_migrate_loses_rows()
                self.safemigrate_heals()
        except ScratchError as exc:
            raise CommandError(str(exc)) from exc

    def prepare(self) -> None:
        create(connection, START)
        with inside(connection, START):
            story.migrate_to_the_last_release()
            story.restore_without_sequences(connection)
            self.say(
                "A restore brought back the rows with their ids, but did not move the sequences.",
                "django_migrations has 20 rows, ids 1 to 17 and 23 to 25; its sequence is at 22.",
            )
            self.show_sequences()

    def plain_migrate_fails(self) -> None:
        create(connection, STAGE, template=START)
        self.say("The next release adds orders, and puts everything for the garden on sale.")
        self.show("migrate", status=1, words='"django_migrations_pkey"')

    def again_fails_worse(self) -> None:
        self.say("The usual advice: move the sequence past the rows and run migrate again.")
        self.stdout.write(f"=> {story.RESYNC};")
        with inside(connection, STAGE), connection.cursor() as cursor:
            cursor.execute(story.RESYNC)
        self.show("migrate", status=1, words="already exists")
        self.say(
            "Worse: the tables were committed before their row in django_migrations failed.",
            "From now on migrate fails every time, until somebody sorts it out by hand.",
        )

    def plain_migrate_loses_rows(self) -> None:
        create(connection, STAGE, template=START)
        with inside(connection, STAGE):
            story.resync_all_but_the_tags(connection)
        self.say("What if only a many-to-many table's sequence is behind? From the same start:")
        self.show("migrate", status=0)
        self.count_on_sale(expected=0)
        self.say("ON CONFLICT DO NOTHING dropped every row, without an error.")

    def safemigrate_heals(self) -> None:
        create(connection, STAGE, template=START)
        self.say("From the same start, with all four sequences behind:")
        self.show("safemigrate", status=0)
        self.count_on_sale(expected=8)
        with inside(connection, STAGE):
            self.show_sequences()
            if any(sequence.is_behind for sequence in sequences(connection)):
                raise CommandError("Something is still behind.")
        self.say("Every migration is recorded, no row is lost, and every sequence is in sync.")

    def say(self, *lines: str) -> None:
        """Tell the reader something, as a shell's comment."""
        self.stdout.write()
        for line in lines:
            self.stdout.write(self.style.MIGRATE_HEADING(f"# {line}"))

    def show(self, command: str, *, status: int, words: str = "") -> None:
        """Run a command of manage.py on the stage; the story holds only if it ends as expected."""
        self.stdout.write(self.style.MIGRATE_LABEL(f"$ python manage.py {command}"))
        run = story.manage(STAGE, command)
        self.stdout.write(run.output)
        if run.error:
            self.stdout.write(self.style.ERROR(run.last_words))
        if run.status != status or words not in run.error:
            raise CommandError(f"Expected exit status {status}, got {run.status}.\n{run.error}")
        self.stdout.write(self.style.MIGRATE_LABEL(f"(exit status {status})"))

    def count_on_sale(self, *, expected: int) -> None:
        with inside(connection, STAGE):
            found = story.on_sale()
        self.stdout.write(f"Products on sale: {found} of 8")
        if found != expected:
            raise CommandError(f"Expected {expected} products on sale.")

    def show_sequences(self) -> None:
        self.stdout.write()
        self.stdout.write(f"  {'table':<28}{'largest id':>12}{'next id':>10}")
        for sequence in sequences(connection):
            self.stdout.write(f"  {self.row(sequence)}")

    def row(self, sequence: Sequence) -> str:
        largest = "none" if sequence.largest is None else sequence.largest
        row = f"{sequence.table:<28}{largest:>12}{sequence.next:>10}  "
        return row + (
            self.style.ERROR("behind") if sequence.is_behind else self.style.SUCCESS("in sync")
        )
