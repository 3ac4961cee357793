"""Somebody who locks tables for moments, one after another, while a project is migrated."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from django.db import Error, connection

from tests.support.runs import meanwhile

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager
    from threading import Event

    from django.db.backends.base.base import BaseDatabaseWrapper

MODES = ["ACCESS SHARE", "ROW EXCLUSIVE", "SHARE", "ACCESS EXCLUSIVE"]
LONGEST = 0.1
TABLES = """
    SELECT c.oid::regclass::text FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = ANY (
        SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'archive'))
"""


def blocking(seed: int = 0, spared: Collection[str] = ()) -> AbstractContextManager[None]:
    """Lock the tables of the default connection's database for the block, two at a time."""
    blocker = connection.copy()
    blocker.inc_thread_sharing()
    return meanwhile(partial(_block, blocker, random.Random(seed), spared))


def _block(
    blocker: BaseDatabaseWrapper, chance: random.Random, spared: Collection[str], is_over: Event
) -> None:
    with blocker.cursor() as cursor:
        while not is_over.wait(chance.uniform(0, LONGEST / 10)):
            cursor.execute(TABLES)
            tables = [name for (name,) in cursor.fetchall() if name not in spared]
            try:
                cursor.execute("BEGIN; SET LOCAL lock_timeout = '50ms'")
                for table in chance.sample(tables, min(2, len(tables))):
                    cursor.execute(f"LOCK TABLE {table} IN {chance.choice(MODES)} MODE")
                    is_over.wait(chance.uniform(0, LONGEST))
            except Error:  # the table is gone, or it is the migration's
                pass
            cursor.execute("ROLLBACK")
    blocker.close()
