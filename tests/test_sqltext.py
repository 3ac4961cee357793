"""Whether a text is one statement, by PostgreSQL's own lexical rules."""

from __future__ import annotations

import tracemalloc

import pytest

from safemigrate.sqltext import words_of_one_statement


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 -- a comment\r; COMMIT",
        "SELECT 1 -- a comment\n; COMMIT",
        "BEGIN; COMMIT",
        r"SELECT '\'; COMMIT; SELECT '\'",
        # On another line the literal goes on, and so do its escapes.
        "SELECT E'a' \n 'b\\''; COMMIT; SELECT E'\\''",
        "SELECT E'a'\r-- a comment'\n'b\\''; COMMIT; SELECT E'\\''",
        r"SELECT E'\'; COMMIT",
    ],
)
def test_several(sql: str) -> None:
    assert words_of_one_statement(sql) is None


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT -- ; BEGIN\r",
        "COMMIT /* ; BEGIN */ ;",
        "COMMIT -- ; BEGIN",
        "COMMIT 'a''; BEGIN' \"b\"\"; BEGIN\"",
        r"COMMIT E'a''; BEGIN \'; BEGIN \\'",
        r"COMMIT 'a\' ",
    ],
)
def test_one(sql: str) -> None:
    assert words_of_one_statement(sql) == ["commit"]


@pytest.mark.parametrize("text", ["'{}'", "E'{}'", '"{}"', "$${}$$"])
@pytest.mark.parametrize("content", ["x; ", r"\\", "''", '""'])
def test_a_long_literal_takes_no_memory(text: str, content: str) -> None:
    sql = "COMMIT " + text.format(content * 20_000)
    tracemalloc.start()
    try:
        assert words_of_one_statement(sql) == ["commit"]
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
