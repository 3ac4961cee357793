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


# Nothing of others is run; the largest key may be in a row that a policy hides; and nobody should
# wait behind the ALTER.
SETTINGS = (
    "SET LOCAL search_path = pg_catalog;",
    "SET LOCAL constraint_exclusion = off;",
    "SET LOCAL row_security = off;",
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';",
)


def restore_all(
    connection: BaseDatabaseWrapper, losses: Iterable[Loss], tell: Callable[[str], None]
) -> dict[tuple[str, str, str], str]:
    """Put back what can be, one table at a time, and tell it; return why the others were not."""
    failures = {}
    for loss in losses:
        if loss.is_restorable:
            try:
                restore(connection, loss)
            except Error as error:
                failures[loss.place] = one_line(str(error))
            else:
                tell(printable(f"{loss}; restored"))
    return failures


def lines(losses: Iterable[Loss], to_restore: str) -> Iterator[str]:
    """Yield what was lost, and what to type; ``to_restore`` is the command that restores it."""
    by_cure: dict[tuple[str, ...], list[Loss]] = {}
    for loss in losses:
        by_cure.setdefault(_cure(loss, to_restore), []).append(loss)
    for cure, lost in by_cure.items():
        yield from (printable(str(loss)) for loss in lost)
        yield from (f"  {printable(line)}" for line in cure)


def _cure(loss: Loss, to_restore: str) -> tuple[str, ...]:
    if loss.failure:
        return (f"once that is out of the way, type: {to_restore}",)
    if loss.is_restorable:
        return (f"type: {to_restore}",)
    return tuple(f"type: {statement}" for statement in loss.sql) or (loss.advice,)


def script(losses: Iterable[Loss], *, is_asked: bool) -> Iterator[str]:
    """Yield as SQL what ``--restore-defaults`` would run; as comments what it would not."""
    for loss in losses:
        yield comment(str(loss))
        if loss.is_restorable and is_asked:
            yield from ("BEGIN;", *SETTINGS, *loss.sql, "COMMIT;")
        else:
            yield from map(comment, loss.sql or [loss.advice])
