"""Tell what tables have lost, and put back what can be put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import Error

from safemigrate.printing import comment, one_line, printable
from safemigrate.sequences.losses import LOCK_TIMEOUT, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.sequences.needs import Loss


# The largest key may be in a row that a policy hides, and nobody should wait behind the ALTER.
SETTINGS = ("SET LOCAL row_security = off;", f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';")


def restore_all(
    connection: BaseDatabaseWrapper, losses: Iterable[Loss], tell: Callable[[str], None]
) -> dict[tuple[str, str, str], str]:
    """Put back what can be, one table at a time, and tell it; return why the others were not."""
    why = {}
    for loss in losses:
        if loss.is_restorable:
            try:
                restore(connection, loss)
            except Error as error:
                why[loss.place] = one_line(str(error))
                tell(printable(f"{loss}; not restored: {why[loss.place]}"))
            else:
                tell(printable(f"{loss}; restored"))
    return why


def lines(losses: Iterable[Loss], to_restore: str) -> Iterator[str]:
    """Yield what was lost, and what to type; ``to_restore`` is the command that restores it."""
    by_cure: dict[tuple[str, ...], list[Loss]] = {}
    for loss in losses:
        by_cure.setdefault(_cure(loss, to_restore), []).append(loss)
    for cure, lost in by_cure.items():
        yield from (printable(str(loss)) for loss in lost)
        yield from (f"  {printable(line)}" for line in cure)


def _cure(loss: Loss, to_restore: str) -> tuple[str, ...]:
    if loss.is_restorable:
        return (f"type: {to_restore}",)
    if loss.sql:
        return tuple(f"type: {statement}" for statement in loss.sql)
    return (
        "make it a smallint, integer or bigint, or run --restore-defaults as the table's owner",
    )


def script(losses: Iterable[Loss], *, is_asked: bool) -> Iterator[str]:
    """Yield as SQL what ``--restore-defaults`` would run; as comments what it would not."""
    for loss in losses:
        yield comment(str(loss))
        is_clean = all(statement.isprintable() for statement in loss.sql)
        if loss.is_restorable and is_asked and is_clean:
            yield from ("BEGIN;", *SETTINGS, *loss.sql, "COMMIT;")
        else:
            yield from map(comment, loss.sql)
