"""Read the heads of statements: which columns of which tables they are about to write.

Reading only saves work. It tells which tables the run has disturbed, or given another sequence, so
that the others need no second check, and which keys a statement that failed had given itself. If a
text is misread, there is one check too many, or the run ends as ``migrate`` ends on a database in
sync. Hence there is no lexer: of an INSERT nothing is read after VALUES but the ON CONFLICT at its
end, and literals are not distinguished from the statement around them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from safemigrate.sqltext import GAP, NAME, NAMES, VERB, unquoted, verb_of_one_statement

if TYPE_CHECKING:
    from collections.abc import Iterator

# Texts up to this length are cached; longer ones (bulk inserts) are seldom sent twice.
REMEMBERED_LENGTH = 20_000

TABLE = rf"(?P<table>{NAME}(?:\s*\.\s*{NAME})*)"
COLUMNS = r'(?:\((?P<columns>[^()"]*(?:"[^"]*"[^()"]*)*)\))?'

# A MERGE is read as an INSERT that may give any column.
INSERT = re.compile(
    rf"(?:insert|merge){GAP}+into{GAP}+(?:only{GAP}+)?{TABLE}(?:{GAP}+as{GAP}+{NAME})?"
    rf"{GAP}*{COLUMNS}",
    re.IGNORECASE,
)
UPDATE = re.compile(
    rf"update{GAP}+(?:only{GAP}+)?{TABLE}(?:{GAP}*\*)?(?:{GAP}+(?:as{GAP}+)?{NAME})?"
    rf"{GAP}+(?=set\b)",
    re.IGNORECASE,
)
ASSIGNMENT = re.compile(
    rf"(?:\bset\b|,){GAP}*(?:({NAME})[^=,;()]*|\(([^()]*)\){GAP}*)=", re.IGNORECASE
)
ALTER = re.compile(
    rf"alter{GAP}+table{GAP}+(?:if{GAP}+exists{GAP}+)?(?:only{GAP}+)?{TABLE}"
    rf"(?:{GAP}+rename{GAP}+to{GAP}+(?P<new>{NAME}))?",
    re.IGNORECASE,
)
# What gives a column a sequence.
FEEDING = re.compile(rf"\bnextval\b|\bas{GAP}+identity\b", re.IGNORECASE)
# A list of columns ends before its parenthesis; a query in parentheses begins with one of these.
QUERY = re.compile(r"\s*(?:select|with|values|table)\b", re.IGNORECASE)
# A SELECT of a function alone, or from one: it may do anything.
CALL = re.compile(rf"select{GAP}+(\*{GAP}+from{GAP}+)?{NAME}(?:\.{NAME})*\(", re.IGNORECASE)
FROM = re.compile(r"\bfrom\b", re.IGNORECASE)

READING = frozenset(
    """
    abort begin close commit declare end fetch move release rollback savepoint set show start
    """.split()
)
# What Django's atomic() sends has a new name each time, and would only crowd the cache.
SAVEPOINTS = ("SAVEPOINT ", "RELEASE SAVEPOINT ", "ROLLBACK TO SAVEPOINT ")
# Statements that may hold others within themselves, or are read to the end of the text like those.
NESTING = frozenset("with explain prepare merge copy create update".split())
# Statements that may make a column unique, or take away what has kept a sequence behind.
ALTERING = frozenset("alter call create do drop grant".split())
DRAWING = re.compile(r"\b(?:default|nextval|select)\b", re.IGNORECASE)
CONFLICT = re.compile(
    rf"\bon{GAP}+conflict\b(?P<target>{GAP}*(?:\((?P<columns>[^()]*)\)|\(|on\b))?", re.IGNORECASE
)
# It stands after the rows, of which there may be megabytes.
LONGEST_CONFLICT = 2_000
# One of these may make room for the row first.
REMOVAL = re.compile(r"\b(?:delete|update|truncate)\b", re.IGNORECASE)


class Write(NamedTuple):
    """The columns of one table that a statement writes; None for all of them.

    ``table`` is the name as it is written, ``name`` the last part of it as the server knows it.
    """

    table: str
    name: str
    columns: frozenset[str] | None


class Heads(NamedTuple):
    """The INSERTs and UPDATEs that a text holds, and whether it may insert, or alter, at all.

    ``leading`` are the INSERTs that find the tables as they are when the text is sent: those of the
    first statement, unless it is only explained, prepared or written into a function, or has an ON
    CONFLICT by which its rows may be left out. ``is_counted`` says that the server's count of rows
    is that of the values drawn: the text is one INSERT, which leaves out no row.
    ``altered`` are tables, each with its new name, or None where another sequence feeds it now.
    """

    inserts: tuple[Write, ...] = ()
    updates: tuple[Write, ...] = ()
    may_insert: bool = True
    leading: frozenset[Write] = frozenset()
    may_alter: bool = True
    is_counted: bool = False
    altered: tuple[tuple[str, str | None], ...] = ()


NOTHING = Heads(may_insert=False, may_alter=False)
UNREAD = Heads()


def read(sql: str) -> Heads:
    """Read the heads of ``sql``, which may be several statements; never raises."""
    if sql.startswith(SAVEPOINTS) and ";" not in sql:
        return NOTHING
    return _read_and_remember(sql) if len(sql) <= REMEMBERED_LENGTH else _read(sql)


def lone_write(sql: str) -> Write | None:
    """Return what the only INSERT or UPDATE of a text writes."""
    heads = read(sql)
    writes = heads.inserts + heads.updates
    return writes[0] if len(writes) == 1 else None


def may_draw(sql: str) -> bool:
    """Tell whether a column that is named may be filled from a sequence all the same."""
    return DRAWING.search(sql) is not None


def _read(sql: str) -> Heads:
    inserts: dict[Write, None] = {}
    updates: dict[Write, None] = {}
    altered: list[tuple[str, str | None]] = []
    leading: frozenset[Write] = frozenset()
    may_insert = may_alter = False
    for place, (verb, start) in enumerate(_starts(sql)):
        inserts |= dict.fromkeys(_inserts(sql, verb, start))
        may_insert = may_insert or _may_insert(verb, sql, start)
        if verb in ALTERING:
            may_alter = True
            altered += _altered(sql, verb, start)
        if place == 0 and _inserts_at_once(verb, sql, start):
            leading = frozenset(each for each in inserts if not _may_give_way(sql, each))
        if verb in NESTING:
            updates = dict.fromkeys(_updates(sql, start))
            may_alter = may_alter or ";" in sql
            break  # what comes after it has been read along with it
    if not (inserts or updates or may_insert):
        return NOTHING
    return Heads(
        inserts=tuple(inserts),
        updates=tuple(updates),
        may_insert=may_insert,
        leading=leading,
        may_alter=may_alter,
        is_counted=verb_of_one_statement(sql) == "insert" and not CONFLICT.search(sql, _tail(sql)),
        altered=tuple(altered),
    )


_read_and_remember = lru_cache(maxsize=512)(_read)


def _starts(sql: str) -> Iterator[tuple[str, int]]:
    """Yield the verb of each statement and where it stands; of equal INSERTs in a row, one."""
    position = 0
    head = ""
    while True:
        if not (head and sql.startswith(head, position)) and (start := VERB.match(sql, position)):
            verb = start["verb"].lower()
            yield verb, start.start("verb")
            insert = INSERT.match(sql, start.start("verb")) if verb == "insert" else None
            head = sql[position : insert.end()] if insert else ""
        position = sql.find(";", position) + 1
        if not position:
            return


def _heads(head: re.Pattern[str], sql: str, verb: str, start: int) -> Iterator[re.Match[str]]:
    """Yield the heads of that kind of a statement and of those within it."""
    heads = head.finditer(sql, start) if verb in NESTING else [head.match(sql, start)]
    return filter(None, heads)


def _inserts(sql: str, verb: str, start: int) -> Iterator[Write]:
    for head in _heads(INSERT, sql, verb, start):
        yield _write(head["table"], _columns(head["columns"]))


def _updates(sql: str, start: int) -> Iterator[Write]:
    heads: Iterator[Any] = chain(UPDATE.finditer(sql, start), [None])
    for head, following in pairwise(heads):
        end = following.start() if following else len(sql)
        yield _write(head["table"], _assigned(sql, head.end(), end))


def _altered(sql: str, verb: str, start: int) -> Iterator[tuple[str, str | None]]:
    for head in _heads(ALTER, sql, verb, start):
        name = _last_name(head["table"])
        end = sql.find(";", head.end())
        if head["new"]:
            yield name, unquoted(head["new"])
        elif FEEDING.search(sql, head.end(), len(sql) if end < 0 else end):
            yield name, None


def _write(table: str, columns: frozenset[str] | None) -> Write:
    return Write(table, _last_name(table), columns)


def _last_name(table: str) -> str:
    return unquoted(NAMES.findall(table)[-1])


def _columns(written: str | None) -> frozenset[str] | None:
    if written is None or QUERY.match(written):
        return None
    return frozenset(map(unquoted, NAMES.findall(written)))


def _assigned(sql: str, start: int, end: int) -> frozenset[str]:
    lists = {match[1] or match[2] for match in ASSIGNMENT.finditer(sql, start, end)}
    return frozenset(unquoted(each) for names in lists for each in NAMES.findall(names))


def _may_insert(verb: str, sql: str, start: int) -> bool:
    if verb != "select":
        return verb not in READING
    call = CALL.match(sql, start)
    if call is None or call[1]:
        return call is not None
    end = sql.find(";", call.end())
    return not FROM.search(sql, call.end(), len(sql) if end < 0 else end)


def _inserts_at_once(verb: str, sql: str, start: int) -> bool:
    return verb == "insert" or (verb in {"with", "merge"} and not REMOVAL.search(sql, start))


def _may_give_way(sql: str, insert: Write) -> bool:
    """Tell whether a row that is there may keep one out by a value that the INSERT gives itself.

    An expression or a constraint's name may stand for such values.
    """
    conflict = CONFLICT.search(sql, _tail(sql))
    if not (conflict and conflict["target"] and insert.columns):
        return False
    return conflict["columns"] is None or insert.columns.issuperset(
        map(unquoted, NAMES.findall(conflict["columns"]))
    )


def _tail(sql: str) -> int:
    return max(0, len(sql) - LONGEST_CONFLICT)
