"""Whether a text is one statement, by PostgreSQL's own lexical rules."""

from __future__ import annotations

import pytest

from safemigrate.sqltext import words_of_one_statement


@pytest.mark.parametrize(
    "sql", ["SELECT 1 -- a comment\r; COMMIT", "SELECT 1 -- a comment\n; COMMIT", "BEGIN; COMMIT"]
)
def test_several(sql: str) -> None:
    assert words_of_one_statement(sql) is None


@pytest.mark.parametrize(
    "sql", ["COMMIT -- ; BEGIN\r", "COMMIT /* ; BEGIN */ ;", "COMMIT -- ; BEGIN"]
)
def test_one(sql: str) -> None:
    assert words_of_one_statement(sql) == ["commit"]
