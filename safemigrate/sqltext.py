"""What is read of a whole text: its verb, and whether it is a single statement."""

from __future__ import annotations

import re

# Here and in what else is read of long texts no alternatives are repeated for each character, which
# would take memory for each.

# A name as it is written, quoted or not; and what may stand between two words.
NAME = r'(?:"(?:[^"]|"")[^"]*(?:""[^"]*)*"|[^\W\d][\w$]*)'
GAP = r"(?:\s|--[^\n\r]*[\n\r]|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
VERB = re.compile(rf"{GAP}*\(*(?P<verb>[a-z]+)", re.IGNORECASE)
SEVERAL = re.compile(r";\s*\S")


def verb_of_one_statement(sql: str) -> str:
    """Return the first word of ``sql``, in lower case; empty if it may hold several statements.

    A semicolon says so, even in a literal: without one no COMMIT can follow.
    """
    start = VERB.match(sql)
    is_one = ";" not in sql or not SEVERAL.search(sql)  # the first is ten times as fast
    return start["verb"].lower() if start and is_one else ""
