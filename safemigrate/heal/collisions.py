"""Read an IntegrityError: is it a unique violation, and of which table's constraint?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db import IntegrityError

    from .statements import Statement

UNIQUE_VIOLATION = "23505"
NOT_NULL_VIOLATION = "23502"
PRIMARY_KEY_IN_TEXT = re.compile(r'"((?:[^"]|"")+)_pkey"')


@dataclass(frozen=True)
class Collision:
    """A unique violation as the server reported it; ``schema`` is None where only text was left."""

    schema: str | None
    table: str
    constraint: str


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a driver's error, psycopg2's or psycopg 3's."""
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


def collision_of(error: IntegrityError) -> Collision | None:
    """Return what ``error`` collided with, or None where it is no unique violation.

    The error object is asked, not its text: messages are translated and names are cut. Only an
    error that carries no diagnostics at all is searched for the ``"…_pkey"`` of PostgreSQL's
    default naming.
    """
    cause = error.__cause__
    state = sqlstate(cause)
    if state not in (UNIQUE_VIOLATION, None):
        return None
    diag: Any = getattr(cause, "diag", None)
    if diag is not None and diag.table_name:
        return Collision(diag.schema_name, diag.table_name, diag.constraint_name)
    if match := PRIMARY_KEY_IN_TEXT.search(str(error)):
        table = match[1].replace('""', '"')
        return Collision(None, table, f"{table}_pkey")
    return None


def explanation(error: BaseException, statement: Statement) -> str:
    """Say in one line why ``error`` is not a sequence's doing, or an empty string if unknown."""
    diag = getattr(error.__cause__, "diag", None)
    state = sqlstate(error.__cause__)
    schema, table = getattr(diag, "schema_name", None), getattr(diag, "table_name", None)
    if state == NOT_NULL_VIOLATION:
        column = getattr(diag, "column_name", None)
        if any(insert.leaves(str(column), ()) for insert in statement.inserts if insert.columns):
            return (
                f"{schema}.{table}.{column} has no default any more (lost in a restore or a copy). "
                "No sequence is behind: give the column its sequence or identity back."
            )
    if state != UNIQUE_VIOLATION:
        return ""
    if schema == "pg_catalog":
        return "Two sessions defined the same thing at once: let one migrate at a time."
    if not statement.inserts and not statement.changes:
        return f"{schema}.{table} holds duplicates of its own, so no unique index can be made."
    return f"What collided in {schema}.{table} was given by the statement, not by a sequence."
