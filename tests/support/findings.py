"""What a check finds of a whole database, and what is said of what it leaves alone."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, connection, transaction

from safemigrate import Note, healing
from safemigrate.sequences.scope import feeds_in
from safemigrate.sequences.state import Terms
from safemigrate.sequences.sweep import survey
from tests.support.databases import execute
from tests.support.locks import logged_in_as

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safemigrate.sequences.finding import Finding


# Roles are the whole server's, and another run of these tests may be there.
POOR = f"poor_{os.getpid()}"


def found(*, move: bool = False, terms: Terms | None = None) -> list[Finding]:
    feeds = feeds_in(connection, None)
    return list(survey(connection, feeds, terms or Terms(), move=move))


@contextmanager
def role(*grants: str) -> Iterator[None]:
    """Be another role for a while."""
    execute(f"CREATE ROLE {POOR} LOGIN")
    for grant in grants:
        execute(f"GRANT {grant} TO {POOR}")
    try:
        with logged_in_as(POOR):
            yield
    finally:
        execute(f"DROP OWNED BY {POOR}; DROP ROLE {POOR}")


def collide(sql: str = "INSERT INTO t (note) VALUES ('new')") -> tuple[list[Note], IntegrityError]:
    """Meet a collision that can't be healed; return what was told, and the error."""
    notes: list[Note] = []

    def tell(event: Any) -> None:
        assert isinstance(event, Note), event
        notes.append(event)

    with pytest.raises(IntegrityError) as caught, healing(tell=tell), transaction.atomic():
        execute(sql)
    assert getattr(caught.value.__cause__, "diag").constraint_name == "t_pkey"  # noqa: B009
    assert not connection.in_atomic_block
    return notes, caught.value


def typed(note: Note, start: str) -> str:
    """Return the statement that a note says to type."""
    text = note.text[note.text.index(start) :]
    return text[: text.index(";") + 1]
