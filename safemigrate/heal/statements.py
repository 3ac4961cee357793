"""Read the text of a statement: what it inserts, what it may change, whether it can be repeated.

Written for PostgreSQL's own lexical rules. sqlparse, which Django brings, takes the ``\\'`` of a
standard string for an escaped quote and ends a nested comment early, so that a COMMIT can hide from
it; and it is some 25 times slower, for text that the ORM sends thousands of times.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import pairwise
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Texts up to this length are remembered once read; longer ones (bulk inserts) seldom come twice.
CACHED_LENGTH = 20_000

TOKEN = re.compile(
    r"""
      (?P<blank>    \s+ | --[^\n]* )
    | (?P<exotic>   [uU]&" )
    | (?P<comment>  /\* )
    | (?P<string>   [eE]'(?:[^'\\]|\\.|'')*' | (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*'
                  | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$ )
    | (?P<quoted>   "(?:[^"]|"")+" )
    | (?P<word>     [^\W\d][\w$]* )
    | (?P<value>    %%|%s|%\(\w*\)s|\d[\w.]* )
    | (?P<stray>    ['"] )
    | (?P<mark>     . )
    """,
    re.VERBOSE | re.DOTALL,
)
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
COMMENT_EDGE = re.compile(r"/\*|\*/")

# What may stand before a parenthesis and writes nothing: SQL's own words, types, and the functions
# of PostgreSQL that data migrations use. Any other name may be a function that does.
PURE = frozenset(
    """
    abs age all and any array array_agg array_cat array_length array_position array_remove
    array_to_string as asc ascii avg between bigint bit bool_and bool_or boolean btrim by
    cardinality case cast ceil ceiling char char_length character chr clock_timestamp coalesce
    col_description concat concat_ws conflict cos count cume_dist current_setting
    current_timestamp currval date date_part date_trunc decimal decode default dense_rank desc
    digest distinct div do else encode end every except exists exp extract false filter
    first_value floor format format_type from gen_random_uuid generate_series generate_subscripts
    greatest group grouping has_column_privilege has_schema_privilege has_sequence_privilege
    has_table_privilege having ilike in initcap insert int integer intersect interval into is
    isfinite join json_agg json_array_elements json_build_array json_build_object json_object_agg
    jsonb_agg jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array
    jsonb_build_object jsonb_each jsonb_each_text jsonb_object_agg jsonb_object_keys
    jsonb_path_query jsonb_set jsonb_strip_nulls jsonb_typeof justify_days key lag last_value
    lastval lateral lead least left length like limit ln localtime localtimestamp log lower lpad
    ltrim make_date make_interval make_time make_timestamp make_timestamptz materialized max md5
    min mod nextval not now nth_value ntile null nullif numeric obj_description octet_length
    offset on or order over overlay partition percent_rank percentile_cont percentile_disc pi
    plainto_tsquery position power precision quote_ident quote_literal quote_nullable radians
    random range rank regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table repeat replace returning reverse right round row row_number row_to_json
    rows rpad rtrim select set set_masklen setweight sha256 sign similarity sin some split_part
    sqrt statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array strpos
    substr substring sum tan then time timestamp timestamptz timezone to_char to_date to_json
    to_jsonb to_number to_regclass to_timestamp to_tsquery to_tsvector transaction_timestamp
    translate trim true trunc ts_headline ts_rank tsvector unaccent union unnest upper using uuid
    values var_pop var_samp varchar variance varying version when where width_bucket window with
    within xmin
    """.split()
)
# Names directly before a parenthesis that are no calls: column lists of tables, CTEs and aliases.
BEFORE_A_NAME = frozenset({"into", "as", "with", "recursive", "table", "update", "join"})

TRANSACTION = frozenset("begin start commit end rollback abort savepoint release prepare".split())
NEVER_IN_AUTOCOMMIT = frozenset({"call", "do"})
READABLE = frozenset("insert update delete merge select with values table (".split())
VERBS = frozenset("insert merge update delete then".split())
HARMLESS = frozenset(
    "comment analyze vacuum grant revoke lock show listen notify unlisten deallocate".split()
)
DEFINITIONS = frozenset("create alter drop truncate reindex cluster security reassign".split())
# With one of these a definition concerns more than the tables that it names.
FAR_REACHING = ("schema", "attach", "inherit", "nextval")
ACTIONS = ("alter", "add", "drop", "rename", "set", "column")
ADDITION = ["alter", "add"]
# With one of these a new table may have rows, or a sequence that isn't new.
NOT_PLAIN = ("exists", "like", "inherits", "partition", "nextval")
NUMBERED = frozenset("serial serial2 serial4 serial8 smallserial bigserial identity".split())
RENUMBERING = NUMBERED | {"rename"}
# Session settings that change which table a name means, or which trigger fires.
MEANINGFUL_SETTINGS = frozenset(
    """
    search_path schema role session_authorization authorization session_replication_role all
    """.split()
)


@dataclass(frozen=True)
class Insert:
    """One INSERT: its table, quoted, and what it says of each column.

    ``columns`` is None where the statement has no column list, ``width`` where the number of
    values isn't in the text. ``always_default`` and ``ever_default`` are positions.
    """

    table: str
    columns: tuple[str, ...] | None = None
    width: int | None = None
    always_default: frozenset[int] = frozenset()
    ever_default: frozenset[int] = frozenset()

    def leaves(self, column: str, columns: tuple[str, ...]) -> bool:
        """Tell whether any row leaves ``column``, of a table of ``columns``, to its default."""
        position = self._position(column, columns)
        return position is None or position in self.ever_default

    calls_for_look = leaves

    def names(self, column: str, columns: tuple[str, ...]) -> bool:
        """Tell whether any row gives a value of its own for ``column``."""
        position = self._position(column, columns)
        return position is not None and position not in self.always_default

    def _position(self, column: str, columns: tuple[str, ...]) -> int | None:
        named = columns if self.columns is None else self.columns
        position = named.index(column) if column in named else None
        if position is not None and self.width is not None and position >= self.width:
            return None
        return position


@dataclass(frozen=True)
class Change:
    """One UPDATE, DELETE or TRUNCATE: its table, quoted, and the columns that an UPDATE sets."""

    table: str
    columns: tuple[str, ...] = ()

    def calls_for_look(self, column: str, columns: tuple[str, ...]) -> bool:
        """Tell whether ``column`` of its rows is gone after it, and might be given once more."""
        return column in columns and not self.columns


@dataclass(frozen=True)
class Creation:
    """One CREATE TABLE of an empty table, and its columns that get a new sequence with it.

    ``columns`` is None once an ALTER TABLE may have changed their order.
    """

    table: str
    columns: tuple[str, ...] | None
    fed: frozenset[str]

    def is_named_by(self, insert: Insert) -> bool:
        """Tell whether the INSERT may give a value of its own for a column with a sequence."""
        if insert.columns is None and self.columns is None:
            return True
        return any(insert.names(column, self.columns or ()) for column in self.fed)

    def altered(self, words: frozenset[str]) -> Creation | None:
        """Return what is left of it after an ALTER TABLE of these words, if it stays numbered."""
        return None if words & (self.fed | RENUMBERING) else replace(self, columns=None)


@dataclass(frozen=True)
class Statement:
    """What can be read from a text; the defaults describe one that does nothing of note."""

    inserts: tuple[Insert, ...] = ()
    changes: tuple[Change, ...] = ()
    # Names of tables that it defines, alters or drops.
    redefines: frozenset[str] = frozenset()
    # The words of an ALTER TABLE.
    alters: frozenset[str] | None = None
    # What it creates; nothing is said of that where it stands among other statements.
    creates: Creation | None = None
    # Whatever was known of any table may not hold after it.
    ends_trust: bool = False
    # It may insert into tables that its text does not name.
    may_write_elsewhere: bool = False
    controls_transaction: bool = False
    never_in_autocommit: bool = False

    @property
    def targets(self) -> tuple[Insert | Change, ...]:
        """The tables that it names, with what it does to them."""
        return (*self.inserts, *self.changes)

    def __or__(self, other: Statement) -> Statement:
        return Statement(
            inserts=self.inserts + other.inserts,
            changes=self.changes + other.changes,
            redefines=self.redefines | other.redefines,
            ends_trust=self.ends_trust or other.ends_trust,
            may_write_elsewhere=self.may_write_elsewhere or other.may_write_elsewhere,
            controls_transaction=self.controls_transaction or other.controls_transaction,
            never_in_autocommit=self.never_in_autocommit or other.never_in_autocommit,
        )


UNREADABLE = Statement(ends_trust=True, may_write_elsewhere=True)


def read(sql: str) -> Statement:
    """Read ``sql``, which may be several statements; never raises."""
    return _read_and_remember(sql) if len(sql) <= CACHED_LENGTH else _read(sql)


@lru_cache(maxsize=512)
def bare_name(table: str) -> str:
    """Return a table's own name from a quoted one, without its schema and quotes."""
    return _unquoted(list(_tokens(table))[-1])


class _Token(NamedTuple):
    kind: str
    text: str

    def is_name(self) -> bool:
        return self.kind in ("word", "quoted")

    def quoted(self) -> str:
        return f'"{self.text}"' if self.kind == "word" else self.text


_END = _Token("end", "")


def _unquoted(token: _Token) -> str:
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text


def _tokens(sql: str) -> Iterator[_Token]:
    position = 0
    while match := TOKEN.match(sql, position):
        kind, text, position = str(match.lastgroup), match[0], match.end()
        if kind == "comment":
            position = _comment_end(sql, position)
        elif kind in ("stray", "exotic"):
            raise ValueError(f"{text} at {match.start()}")
        elif kind == "tag":
            yield _Token("string", text)
        elif kind != "blank":
            yield _Token(kind, _folded(text) if kind == "word" else text)


def _folded(word: str) -> str:
    """Fold as the server does: ASCII letters only."""
    return word.lower() if word.isascii() else word.translate(ASCII_LOWER)


def _comment_end(sql: str, position: int) -> int:
    depth = 1
    while depth:
        edge = COMMENT_EDGE.search(sql, position)
        if edge is None:
            raise ValueError("unterminated comment")
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position


def _read(sql: str) -> Statement:
    try:
        tokens = list(_tokens(sql))
    except ValueError:
        return UNREADABLE
    statements = []
    start = 0
    for end in [i for i, token in enumerate(tokens) if token.text == ";"] + [len(tokens)]:
        if end > start:
            statements.append(_Reader(tokens[start:end]).statement())
        start = end + 1
    return reduce(or_, statements) if statements else Statement()


_read_and_remember = lru_cache(maxsize=512)(_read)


@dataclass
class _Reader:
    """A cursor over the tokens of one statement."""

    tokens: list[_Token]
    at: int = field(default=0)

    def statement(self) -> Statement:
        verb = self.tokens[0].text
        if verb in READABLE:
            return self._readable(verb)
        if verb in TRANSACTION and not (verb == "prepare" and self._word(1) != "transaction"):
            return Statement(controls_transaction=True, ends_trust=verb == "rollback")
        if verb in DEFINITIONS:
            return self._definition()
        if verb in ("set", "reset", "discard"):
            return Statement(ends_trust=verb == "discard" or self._is_meaningful_setting())
        if verb in HARMLESS:
            return Statement()
        return replace(UNREADABLE, never_in_autocommit=verb in NEVER_IN_AUTOCOMMIT)

    # Helpers that look without moving, and that move.

    def _peek(self, ahead: int = 0) -> _Token:
        index = self.at + ahead
        return self.tokens[index] if 0 <= index < len(self.tokens) else _END

    def _word(self, index: int) -> str:
        return self.tokens[index].text if index < len(self.tokens) else ""

    def _skip(self, *words: str) -> None:
        while self._peek().kind == "word" and self._peek().text in words:
            self.at += 1

    def _take(self, *words: str) -> bool:
        """Move past ``words`` if they are what comes next."""
        found = all(self._peek(i).text == word for i, word in enumerate(words))
        if found:
            self.at += len(words)
        return found

    def _name(self) -> str | None:
        """Move past a name, qualified or not, and return it with all its parts quoted."""
        if not self._peek().is_name():
            return None
        parts = [self._peek().quoted()]
        self.at += 1
        while self._peek().text == "." and self._peek(1).is_name():
            parts.append(self._peek(1).quoted())
            self.at += 2
        return ".".join(parts)

    # Statements that insert, update, delete or select.

    def _readable(self, verb: str) -> Statement:
        inserts: list[Insert] = []
        changes: list[Change] = []
        merged: str | None = None
        unreadable = False
        for position in self._verbs():
            self.at = position
            if self._take("insert", "into"):
                insert = self._insert(self._name())
                unreadable |= insert is None
                inserts += [insert] if insert else []
            elif self._take("merge", "into"):
                self._skip("only")
                merged = self._name()
                unreadable |= merged is None
            elif self._take("then", "insert"):
                insert = self._insert(merged)
                inserts += [insert] if insert else []
            else:
                change = self._change(merged, inserts)
                changes += [change] if change else []
        writes = bool(inserts or changes)
        opaque = unreadable or self._calls_unknown() or self._selects_into()
        return Statement(
            inserts=tuple(inserts),
            changes=tuple(changes),
            ends_trust=opaque,
            may_write_elsewhere=opaque or merged is not None or (verb == "with" and writes),
        )

    def _verbs(self) -> Iterator[int]:
        for i, token in enumerate(self.tokens):
            if token.kind == "word" and token.text in VERBS:
                yield i

    def _insert(self, table: str | None) -> Insert | None:
        if table is None:
            return None
        if self._take("as"):
            self._name()
        columns = self._columns() if self._peek().text == "(" else None
        if self._take("overriding", "user", "value"):
            return Insert(table, columns=())
        self._take("overriding", "system", "value")
        if self._take("default", "values"):
            return Insert(table, columns=())
        if self._take("values"):
            return Insert(table, columns, *self._rows())
        return Insert(table, columns)

    def _columns(self) -> tuple[str, ...] | None:
        """Read a column list; None where the parenthesis holds a query instead."""
        if self._peek(1).text in ("select", "with", "values", "("):
            return None
        columns = []
        depth = 0
        while self._peek() is not _END:
            token, before = self._peek(), self._peek(-1)
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            self.at += 1
            if depth == 0:
                break
            if depth == 1 and token.is_name() and before.text in ("(", ","):
                columns.append(_unquoted(token))
        return tuple(columns)

    def _rows(self) -> tuple[int, frozenset[int], frozenset[int]]:
        """Read ``(…), (…)``: the number of values, the positions always and ever DEFAULT."""
        always: frozenset[int] | None = None
        ever: frozenset[int] = frozenset()
        width = 0
        while self._peek().text == "(":
            size, defaults = self._row()
            width = max(width, size)
            always = defaults if always is None else always & defaults
            ever |= defaults
            if not self._take(","):
                break
        return width, always or frozenset(), ever

    def _row(self) -> tuple[int, frozenset[int]]:
        defaults = set()
        position = depth = 0
        while self._peek() is not _END:
            token = self._peek()
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
            if depth == 1 and token.text == ",":
                position += 1
            if depth == 1 and token.kind == "word" and token.text == "default":
                defaults.add(position)
            self.at += 1
            if depth == 0:
                break
        return position + 1, frozenset(defaults)

    def _change(self, merged: str | None, inserts: list[Insert]) -> Change | None:
        if self._take("delete", "from"):
            self._skip("only")
            table = self._name()
            return Change(table) if table else None
        if self._take("then", "delete"):
            return Change(merged) if merged else None
        if self._take("then", "update", "set"):
            return Change(merged, self._assignments()) if merged else None
        if inserts and self._peek(-1).text == "do" and self._take("update", "set"):
            return Change(inserts[-1].table, self._assignments())
        if self._peek(-1).text in ("for", "key", "do", "on", "before", "after", "or", "then"):
            return None
        if self._take("update"):
            self._skip("only")
            table = self._name()
            while self._peek() is not _END and not self._take("set"):
                self.at += 1
            return Change(table, self._assignments()) if table else None
        return None

    def _assignments(self) -> tuple[str, ...]:
        columns = []
        depth = 0
        expecting = True
        while self._peek() is not _END:
            token = self._peek()
            if depth == 0 and token.text in ("from", "where", "returning", "when"):
                break
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            if token.text == "=" and depth == 0:
                expecting = False
            elif token.text == "," and depth == 0:
                expecting = True
            elif expecting and token.is_name() and self._peek(1).text != ".":
                columns.append(_unquoted(token))
            self.at += 1
        return tuple(columns)

    def _calls_unknown(self) -> bool:
        return any(
            token.is_name() and follower.text == "(" and self._is_unknown_call(i)
            for i, (token, follower) in enumerate(pairwise(self.tokens))
        )

    def _is_unknown_call(self, index: int) -> bool:
        token = self.tokens[index]
        first = index
        while first >= 2 and self.tokens[first - 1].text == ".":
            first -= 2
        schema = self.tokens[first].text if first < index else ""
        before = self.tokens[first - 1] if first else _END
        if before.kind == "word" and before.text in BEFORE_A_NAME:
            return False
        if schema not in ("", "pg_catalog"):
            return True
        return not (_unquoted(token) in PURE or token.text.startswith("pg_"))

    def _selects_into(self) -> bool:
        return any(
            token.text == "into" and before.text not in ("insert", "merge")
            for before, token in pairwise(self.tokens)
            if token.kind == "word"
        )

    # Statements that define.

    def _definition(self) -> Statement:
        verb = self.tokens[0].text
        self.at = 1
        self._skip("global", "local", "temporary", "temp", "unlogged", "unique")
        if self._take("index"):
            return Statement()
        is_of_tables = self._take("table")
        if verb == "truncate":
            self._skip("only")
            return Statement(ends_trust=True, changes=tuple(map(Change, self._names())))
        if not is_of_tables:
            return Statement(ends_trust=True)
        self._skip("if", "not", "exists", "only")
        names = self._names()
        if not names or any(self._has(word) for word in FAR_REACHING):
            return Statement(ends_trust=True)
        if verb == "alter" and self._adds_foreign_key():
            return Statement()
        if renamed := self._renamed():
            names.append(renamed)
        return Statement(
            redefines=frozenset(bare_name(name) for name in names),
            alters=frozenset(map(_unquoted, self.tokens[2:])) if verb == "alter" else None,
            creates=self._creation(names[0]) if verb == "create" else None,
        )

    def _adds_foreign_key(self) -> bool:
        actions = [token.text for token in self.tokens if token.text in ACTIONS]
        return self._take("add", "constraint") and self._has("foreign") and actions == ADDITION

    def _creation(self, table: str) -> Creation | None:
        if self._peek().text != "(" or any(self._has(word) for word in NOT_PLAIN):
            return None
        columns: list[str] = []
        fed: set[str] = set()
        depth = 0
        while self._peek() is not _END:
            token, before = self._peek(), self._peek(-1)
            depth += {"(": 1, ")": -1}.get(token.text, 0)
            self.at += 1
            if depth == 0:
                break
            if depth == 1 and before.text in ("(", ",") and token.is_name():
                columns.append(_unquoted(token))
            elif depth == 1 and token.kind == "word" and token.text in NUMBERED:
                fed.add(columns[-1])
        return Creation(table, tuple(columns), frozenset(fed)) if self._peek() is _END else None

    def _names(self) -> list[str]:
        names = []
        while name := self._name():
            names.append(name)
            if not self._take(","):
                break
        return names

    def _has(self, word: str) -> bool:
        return any(token.kind == "word" and token.text == word for token in self.tokens)

    def _renamed(self) -> str | None:
        if self._take("rename", "to"):
            return self._name()
        return None

    def _is_meaningful_setting(self) -> bool:
        self.at = 1
        self._skip("session", "local")
        return self._peek().text in MEANINGFUL_SETTINGS
