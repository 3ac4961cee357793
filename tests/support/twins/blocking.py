"""Somebody who locks tables for moments, one after another, while a project is migrated."""

from __future__ import annotations

import random
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from django.db import Error, connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

MODES = ["ACCESS SHARE", "ROW EXCLUSIVE", "SHARE", "ACCESS EXCLUSIVE"]
LONGEST = 0.1
TABLES = """
    SELECT c.oid::regclass::text FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = ANY (
        SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'archive'))
"""


@contextmanager
def blocking() -> Iterator[None]:
    """Lock the tables of the default connection's database for the block, two at a time."""
    stop = Event()
    thread = Thread(target=_block, args=(connection.copy(), stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _block(blocker: BaseDatabaseWrapper, stop: Event) -> None:
    blocker.inc_thread_sharing()
    choose = random.Random(0)
    with blocker.cursor() as cursor:
        while not stop.wait(choose.uniform(0, LONGEST / 10)):
            cursor.execute(TABLES)
            tables = [name for (name,) in cursor.fetchall()]
            try:
                cursor.execute("BEGIN; SET LOCAL lock_timeout = '50ms'")
                for table in choose.sample(tables, min(2, len(tables))):
                    cursor.execute(f"LOCK TABLE {table} IN {choose.choice(MODES)} MODE")
                    stop.wait(choose.uniform(0, LONGEST))
            except Error:  # the table is gone, or it is the migration's
                pass
            cursor.execute("ROLLBACK")
    blocker.close()
