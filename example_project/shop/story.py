"""The acts of the demo: a database in the state of the article, and commands run on it for real."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.conf import settings
from django.core.management import call_command

from shop.models import Product
from shop.sequences import sequences, set_back

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

THROUGH = "shop_product_tags"
LEFT_BEHIND = ("django_content_type", "auth_permission", THROUGH)
RESYNC = "SELECT setval('django_migrations_id_seq', (SELECT max(id) FROM django_migrations))"


@dataclass(frozen=True)
class Run:
    """What a command answered."""

    status: int
    output: str
    error: str

    @property
    def last_words(self) -> str:
        """The error without the frames of its traceback."""
        before, traceback, after = self.error.rpartition("Traceback (most recent call last):\n")
        if not traceback:
            return before + after
        lines = after.splitlines()
        while lines and lines[0].startswith(" "):
            del lines[0]
        return "\n".join([traceback + "  …", *lines])


def manage(database: str, *arguments: str) -> Run:
    """Run manage.py on another database of the same server."""
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own arguments
        [sys.executable, "manage.py", *arguments],
        cwd=settings.BASE_DIR,
        env={**os.environ, "SHOP_DATABASE": database},
        capture_output=True,
        check=False,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
    )
    return Run(done.returncode, done.stdout.rstrip(), done.stderr.rstrip())


def migrate_to_the_last_release() -> None:
    """Apply the twenty migrations that the shop had before it took orders."""
    for target in (["admin"], ["auth"], ["sessions"], ["shop", "0002"]):
        call_command("migrate", *target, verbosity=0)


def restore_without_sequences(connection: BaseDatabaseWrapper) -> None:
    """Leave the ids of django_migrations at 1 to 17 and 23 to 25, and four sequences behind."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_migrations SET id = id + 5 WHERE id > 17")
        cursor.execute("SELECT setval('django_migrations_id_seq', 22)")
    for sequence in sequences(connection):
        if sequence.table in LEFT_BEHIND:
            set_back(connection, sequence)


def resync_all_but_the_tags(connection: BaseDatabaseWrapper) -> None:
    """Leave behind only the sequence of the table that says which product has which tag."""
    for sequence in sequences(connection):
        if sequence.is_behind and sequence.table != THROUGH:
            with connection.cursor() as cursor:
                cursor.execute("SELECT setval(%s::regclass, %s)", [sequence.name, sequence.largest])


def on_sale() -> int:
    """Count the products that the fourth migration of the shop put on sale."""
    return Product.objects.filter(tags__name="on sale").count()
