"""What is read of a whole text: its words, and whether it is a single statement.

Its words are read only of a statement that has failed, and by PostgreSQL's own lexical rules.
sqlparse, which comes with Django, takes the ``\\'`` of a standard string for an escaped quote and
ends a nested comment too early, so that a COMMIT could hide from it.
"""

from __future__ import annotations

import re

# Here and in what else is read of long texts no alternatives are repeated for each character, which
# would take memory for each.

# A name as it is written, quoted or not.
NAME = r'(?:"(?:[^"]|"")[^"]*(?:""[^"]*)*"|[^\W\d][\w$]*)'

# What a semicolon may be part of without ending a statement; anything else is skipped. A doubled
# quote counts as the end of one literal and the beginning of another.
_LITERAL = re.compile(
    r"""
      --[^\n\r]*
    | (?P<comment> /\* )
    | (?P<escapes> [eE]' )
    | '[^']*'
    | "[^"]*"
    | (?<![\w$]) \$(?P<tag>(?:[^\W\d]\w*)?)\$ .*? \$(?P=tag)\$
    | (?P<end> ; )
    | (?P<word> [^\W\d][\w$]* )
    | (?P<stray> ['"] )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
# A literal goes on after a gap with an end of a line in it.
_GOES_ON = r"'[ \t\f\v]*[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*[\n\r])*'"
_ESCAPE_OR_END = re.compile(rf"\\.|''|{_GOES_ON}|(?P<end>')", re.DOTALL)


def words_of_one_statement(sql: str) -> list[str] | None:
    """Return the words of ``sql``, in lower case, outside of its literals and quoted names.

    Returns None if it holds several statements, or if their ends cannot be found.
    """
    words: list[str] = []
    has_ended = False
    position = 0
    while match := _LITERAL.search(sql, position):
        kind, position = match.lastgroup, match.end()
        if kind == "comment":
            position = _end_of_comment(sql, position)
        elif kind == "escapes":
            position = _end_of_escapes(sql, position)
        if kind == "stray" or position < 0 or (has_ended and kind not in ("comment", "end")):
            is_line_comment = kind is None and match[0].startswith("--")
            if not is_line_comment:
                return None
        has_ended |= kind == "end"
        if kind == "word":
            words.append(match[0].lower())
    return words or None


def _end_of_comment(sql: str, position: int) -> int:
    """Return the end of the comment that is open at ``position``, or -1 if it has none."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, position)
        if edge is None:
            return -1
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position


def _end_of_escapes(sql: str, position: int) -> int:
    """Return the end of the literal with escapes that is open at ``position``, or -1."""
    ends = (each.end() for each in _ESCAPE_OR_END.finditer(sql, position) if each["end"])
    return next(ends, -1)
