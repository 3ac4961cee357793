"""Whether a database is the example's own, to be played with, or somebody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.management.base import CommandError

from mysite.database import EMBEDDED
from shop.scratch import MARK

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from django.db.backends.base.base import BaseDatabaseWrapper

COMMENT_ON_THIS = """
SELECT pg_catalog.shobj_description(d.oid, 'pg_database')
FROM pg_catalog.pg_database AS d
WHERE d.datname = pg_catalog.current_database()
"""


def add_this_database(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--this-database",
        action="store_true",
        help="Go on although the example did not make the database that DATABASE_URL names.",
    )


def where(connection: BaseDatabaseWrapper) -> str:
    """Say which database it is, as the connection has it."""
    connection.ensure_connection()
    info = connection.connection.info
    if connection.settings_dict["ENGINE"] == EMBEDDED:
        return f'Database "{info.dbname}" on the example\'s own server'
    return f'Database "{info.dbname}" on {info.host}:{info.port}'


def only_ours(connection: BaseDatabaseWrapper, *, hint: str) -> None:
    """Refuse a database that the example did not make."""
    if connection.settings_dict["ENGINE"] == EMBEDDED:
        return
    if connection.vendor != "postgresql":
        raise CommandError("Give a postgres:// DATABASE_URL: this is about PostgreSQL's sequences.")
    with connection.cursor() as cursor:
        cursor.execute(COMMENT_ON_THIS)
        if cursor.fetchone() != (MARK,):
            raise CommandError(f"{where(connection)}: the example did not make it. {hint}")
