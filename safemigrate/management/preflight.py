"""Refuse a run whose migrations could not be recorded, before it has changed anything.

With deferred SQL Django commits a migration's tables first and inserts its row into
``django_migrations`` afterwards, so that a key which nothing fills is found too late.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.core.management.base import CommandError
from django.db import Error, connections

from safemigrate.plans import receiving_plans
from safemigrate.printing import command_line
from safemigrate.sequences.losses import record_that_takes_no_row

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def requiring_record() -> Iterator[None]:
    """Raise CommandError from the block's ``pre_migrate`` where ``django_migrations`` is lost."""

    def require(using: str, plan: Any) -> None:
        connection = connections[using]
        is_recording = any(not is_backwards for _, is_backwards in plan)
        if not is_recording or connection.vendor != "postgresql":
            return
        try:
            schema = record_that_takes_no_row(connection)
        except Error:  # migrate itself will meet it, or not
            return
        if schema is not None:
            raise CommandError(
                f"{schema}.django_migrations.id has no default or identity, as after a restore or "
                "a copy that lost it: no migration could be recorded. Nothing was changed in "
                f"schema {schema}. Type: "
                + command_line(using, "--restore-defaults", schema=schema)
            )

    with receiving_plans(require):
        yield
