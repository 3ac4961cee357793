"""What the shop's sequences would give next, and the way to put them behind on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


@dataclass(frozen=True)
class Sequence:
    """A sequence and the key column that it feeds."""

    name: str
    table: str
    largest: int | None
    next: int

    @property
    def is_behind(self) -> bool:
        return self.largest is not None and self.next <= self.largest


FED_COLUMNS = """
SELECT
    pg_catalog.pg_get_serial_sequence(
        pg_catalog.format('%%I.%%I', n.nspname, t.relname), a.attname
    ),
    pg_catalog.format('%%I.%%I', n.nspname, t.relname),
    pg_catalog.format('%%I', a.attname),
    t.relname
FROM pg_catalog.pg_class AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE t.relkind IN ('r', 'p')
    AND n.nspname = pg_catalog.current_schema()
    AND pg_catalog.pg_get_serial_sequence(
        pg_catalog.format('%%I.%%I', n.nspname, t.relname), a.attname
    ) IS NOT NULL
    AND (%(table)s IS NULL OR t.relname = %(table)s)
ORDER BY t.relname, a.attnum
"""


def sequences(connection: BaseDatabaseWrapper, table: str | None = None) -> list[Sequence]:
    """Return the sequences of every table in the current schema, or of one table."""
    with connection.cursor() as cursor:
        cursor.execute(FED_COLUMNS, {"table": table})
        fed = cursor.fetchall()
        found = []
        for name, relation, column, relname in fed:
            cursor.execute(
                f"SELECT pg_catalog.max(t.{column}),"
                f" (SELECT s.last_value + s.is_called::integer FROM {name} AS s)"
                f" FROM {relation} AS t"
            )
            found.append(Sequence(name, relname, *cursor.fetchone()))
    return found


def set_back(connection: BaseDatabaseWrapper, sequence: Sequence) -> None:
    """Make the sequence give 1 next, whatever its table holds."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.setval(%s::regclass, 1, false)", [sequence.name])
