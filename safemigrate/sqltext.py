"""What is read of a whole text: its verb, whether it is a single statement, and names."""

from __future__ import annotations

import re
import string

# Here and in what else is read of long texts no alternatives are repeated for each character, which
# would take memory for each.

# A name as it is written, quoted or not; and what may stand between two words: to PostgreSQL the
# blanks of Unicode are letters.
NAME = r'(?:"(?:[^"]|"")[^"]*(?:""[^"]*)*"|[^\W\d][\w$]*)'
NAMES = re.compile(NAME)
GAP = r"(?:[ \t\n\r\f\v]|--[^\n\r]*[\n\r]|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
VERB = re.compile(rf"{GAP}*\(*(?P<verb>[a-z]+)", re.IGNORECASE)
SEVERAL = re.compile(r";\s*\S")
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def verb_of_one_statement(sql: str) -> str:
    """Return the first word of ``sql``, in lower case; empty if it may hold several statements.

    A semicolon says so, even in a literal: without one no COMMIT can follow.
    """
    start = VERB.match(sql)
    is_one = ";" not in sql or not SEVERAL.search(sql)  # the first is ten times as fast
    return start["verb"].lower() if start and is_one else ""


def unquoted(name: str) -> str:
    """Return a name as the server knows it; it folds ASCII letters only."""
    if name.startswith('"'):
        return name[1:-1].replace('""', '"')
    return name.translate(ASCII_LOWER)
