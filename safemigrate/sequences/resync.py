from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .catalogue import table_of
from .state import Finding, look, looking, resync, settle

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True)
class Feeding:
    exists: bool
    columns: tuple[str, ...]
    findings: list[Finding]
    why_not: str


def resync_constraint(
    connection: BaseDatabaseWrapper, schema: str | None, table: str, constraint: str, *, move: bool
) -> Feeding:
    with looking(connection) as cursor:
        if schema is None:
            quoted = table.replace('"', '""')
            oid = settle(cursor, f'"{quoted}"')
            found = None if oid is None else table_of(cursor, oid=oid)
        else:
            settle(cursor)
            found = table_of(cursor, schema=schema, table=table)
        if found is None:
            return Feeding(False, (), [], "gone")
        columns = found.indexes.get(constraint, ())
        findings = [
            resync(cursor, each) if move else look(cursor, [each])[0]
            for each in found.feeders(columns)
        ]
        return Feeding(
            bool(columns), columns, findings, "" if findings else "No sequence feeds it."
        )
