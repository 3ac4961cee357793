"""``resync()``: what an import, or a migration of the project's own, asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import DEFAULT_DB_ALIAS, connections

from safemigrate.report import Audience
from safemigrate.sequences.scope import feeds_of
from safemigrate.sequences.sweep import survey

from .block import wrapper_of

if TYPE_CHECKING:
    from django.db.models import Model

    from safemigrate.sequences.finding import Finding


def resync(*what: type[Model] | str, using: str = DEFAULT_DB_ALIAS) -> list[Finding]:
    """Move the sequences of models and tables past the largest keys they feed, never backward.

    ``what`` are model classes, which stand for their parents' tables and those of their
    many-to-many fields as well, and names of tables, exactly as they are called or as a statement
    would write them (``public.shop_order``). Without any it is every table of the current schemas,
    and those of models that name another schema. Inside a transaction it sees that transaction's
    rows; the sequences stay moved if it is rolled back. On other vendors nothing happens.

    Returns a :class:`Finding` for each sequence, whether or not it was behind. What could not be
    checked or moved has an ``obstacle`` that says why, and a warning in the log. Raises LookupError
    for a table that is not there, before anything is moved.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return []
    feeds = feeds_of(connection, what)
    wrapper = wrapper_of(connection)
    audience = wrapper.audience if wrapper else Audience(using)
    findings = []
    for finding in survey(connection, feeds, move=True):
        audience.tell_of(finding)
        findings.append(finding)
    return findings
