"""Let PostgreSQL's own parser judge what safemigrate reads of a statement's text.

    python proofs/statements.py [--examples 20000] [--log postgresql.csv ...]

The texts are PostgreSQL's regression tests, as pglast's source release carries them, sqlglot's
fixtures, what servers have noted of statements (``log_destination=csvlog``, ``log_statement=all``),
and texts made at random. Of each, alone and joined to its neighbour, ``sqltext``'s
``verb_of_one_statement`` must not take several statements for one; and ``heal.statements.read``
must name the tables and columns that the parser finds. Prints the counts; the exit status is 0 if
nothing disagrees. Then prints how long both take to read texts of three sizes, and how much memory.
Needs the extra ``proofs``; what it downloads is kept in a cache.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pglast import ast, parse_sql, split
from pglast.enums import CmdType
from pglast.parser import ParseError
from pglast.visitors import Skip, Visitor

from safemigrate.heal import statements
from safemigrate.sqltext import verb_of_one_statement
from tests.support.environments import CACHE, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECES = [
    *("COMMIT", "BEGIN", "SELECT", "1", "a", "U&", "e", "E", "x", "$", "$$", "$t$", "$1", "é"),
    *("'", "''", '"', '""', "\\", "\\'", "--", "/*", "*/", "\n", "\r", ";", " ", "(", ")", "%s"),
    *("INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "DELETE FROM t", "\0", "\u00a0", "\f"),
]
# What literals begin with, hold, and are followed by.
BEGINNINGS = ["'", "'", "E'", "e'", "U&'"]
CONTENTS = ["a", "''", "\\'", "\\\\", ";", "--", "/*", "$$", '"', "\n", "; COMMIT; SELECT "]
BETWEEN = [", ", "||", "\n", " \r", "\n -- '\n", " /* ' */ "]

SENT = re.compile(r"(?:statement|execute [^:]*): ")
SIZES = (10_000, 1_000_000, 10_000_000)
# A text's beginning, what is repeated until it is long enough, and its end.
SHAPES = {
    "INSERT of a long literal": ("INSERT INTO t (a) VALUES ('", "x, y = (z", "')"),
    "INSERT of a literal with escapes": ("INSERT INTO t (a) VALUES (E'", r"x, y = \'z", "')"),
    "INSERT of many rows": ("INSERT INTO t (a) VALUES (1)", ", (NULL), ('x')", ""),
    "UPDATE with a long literal": ("UPDATE t SET a = '", "x, y = (z", "'"),
    "DO with a long body": ("DO $$ BEGIN ", "PERFORM f(1); INSERT INTO t VALUES (1); ", "END $$"),
    "many INSERTs into two tables": (
        "",
        "INSERT INTO t VALUES (1); INSERT INTO u VALUES (1);\n",
        "",
    ),
    "many UPDATEs": ("", "UPDATE t SET a = 1, b = 2 WHERE id = 3;\n", ""),
    "many CREATEs": ("", "CREATE TABLE t (id int, name text);\n", ""),
    "many SELECTs of a function": ("", "SELECT setval('s', 1);\n", ""),
}

Target = tuple[str, str, frozenset[str] | None]

# Those that may write, or hold what does.
WRITING = (
    *(ast.InsertStmt, ast.UpdateStmt, ast.MergeStmt, ast.SelectStmt, ast.DeleteStmt),
    *(ast.CopyStmt, ast.ExplainStmt, ast.PrepareStmt, ast.RuleStmt),
)


class Targets(Visitor):  # type: ignore[misc]
    """Collects the tables and columns that INSERT, UPDATE and MERGE name, at the top and in CTEs.

    In a subquery's CTE the parser takes them, and the server does not.
    """

    def __init__(self) -> None:
        self.found: set[Target] = set()

    def visit_RangeSubselect(self, _: object, __: object) -> object:  # noqa: N802 - pglast's
        return Skip

    def visit_InsertStmt(self, _: object, node: ast.InsertStmt) -> None:  # noqa: N802 - pglast's
        columns = frozenset(each.name for each in node.cols) if node.cols else None
        self.found.add(("insert", node.relation.relname, columns))

    def visit_UpdateStmt(self, _: object, node: ast.UpdateStmt) -> None:  # noqa: N802 - pglast's
        columns = frozenset(each.name for each in node.targetList)
        self.found.add(("update", node.relation.relname, columns))

    def visit_MergeStmt(self, _: object, node: ast.MergeStmt) -> None:  # noqa: N802 - pglast's
        for clause in node.mergeWhenClauses:
            columns = frozenset(each.name for each in clause.targetList or ())
            if clause.commandType == CmdType.CMD_INSERT:
                self.found.add(("insert", node.relation.relname, columns or None))
            elif clause.commandType == CmdType.CMD_UPDATE:
                self.found.add(("update", node.relation.relname, columns))


def by_the_parser(sql: str) -> set[Target]:
    targets = Targets()
    for raw in parse_sql(sql):
        if isinstance(raw.stmt, WRITING):
            targets(raw)
    return targets.found


def by_reading(sql: str) -> set[Target]:
    heads = statements.read(sql)
    return {
        (kind, each.name, each.columns)
        for kind, writes in (("insert", heads.inserts), ("update", heads.updates))
        for each in writes
    }


def from_regression_tests() -> Iterator[str]:
    """Give PostgreSQL's regression statements; psql's own commands are no SQL."""
    for path in sorted(_source("pglast").glob("libpg_query/test/sql/**/*.sql")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        text = "\n".join(line for line in lines if not line.startswith("\\"))
        try:
            yield from split(text)
        except ParseError:
            yield from _by_semicolons(text)


def _by_semicolons(text: str) -> Iterator[str]:
    """Split a file that isn't SQL from end to end; each piece is judged as it is."""
    yield from text.split(";\n")


def from_sqlglot() -> Iterator[str]:
    for path in sorted(_source("sqlglot").glob("tests/fixtures/**/*.sql")):
        text = path.read_text(encoding="utf-8")
        yield from _by_semicolons(text)
        yield from text.splitlines()


def from_logs(paths: list[Path]) -> Iterator[str]:
    """Give the different statements that servers were sent."""
    found: dict[str, None] = {}
    for path in paths:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for record in csv.reader(file):
                if sent := SENT.match(record[13]):
                    found[record[13][sent.end() :]] = None
    yield from found


def _source(package: str) -> Path:
    folder = CACHE / f"source-of-{package}"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as download:
            options = ["-q", "--no-binary", ":all:", "--no-deps", "--dest", download, package]
            subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
            (archive,) = Path(download).glob("*.tar.gz")
            unpack(archive, folder)
    return folder


def made(examples: int, seed: int) -> Iterator[str]:
    """Give texts of what a lexer can stumble over."""
    chance = random.Random(seed)
    for _ in range(examples):
        pieces = chance.choices(PIECES, k=chance.randint(1, 14))
        yield "".join(pieces)
        yield "SELECT 1 " + "".join(pieces) + "; COMMIT"
        yield f"INSERT INTO t VALUES ({_literals(chance)}); COMMIT; SELECT {_literals(chance)}"


def _literals(chance: random.Random) -> str:
    text = ""
    for _ in range(chance.randint(1, 3)):
        text += chance.choice(BEGINNINGS) + "".join(
            chance.choices(CONTENTS, k=chance.randint(0, 4))
        )
        text += "'" + chance.choice(BETWEEN)
    return text + "'x'"


def covers(read: Target, written: Target) -> bool:
    """Tell whether what was read names all that is written; fields of composites may be added.

    An INSERT of any column says as much as an UPDATE, as of a MERGE.
    """
    kind, table, columns = read
    same_kind, same_table, wanted = written
    is_within = columns is None or (kind == same_kind and wanted is not None and columns >= wanted)
    return table == same_table and is_within


class Judge:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.disagreements: list[str] = []
        self.missed: list[str] = []

    def judge(self, sql: str) -> None:
        self.counts["texts"] += 1
        try:
            number = len(parse_sql(sql))
        except (ParseError, ValueError, RecursionError):
            self.counts["not SQL to the parser"] += 1
            return
        taken_for_one = bool(verb_of_one_statement(sql))
        self.counts["several" if number > 1 else "one" if number else "none"] += 1
        if number > 1 and taken_for_one:
            self.disagreements.append(f"{number} statements, taken for one: {sql!r}")
        if number == 1 and not taken_for_one:
            self.counts["one, taken for several (harmless)"] += 1
        if number == 1:
            self.compare_targets(sql)

    def compare_targets(self, sql: str) -> None:
        """Count what was read too much, which costs a check; tell what was missed."""
        expected, found = by_the_parser(sql), by_reading(sql)
        self.counts["tables written"] += len(expected)
        self.counts["read too much (harmless)"] += bool(found - expected)
        if missed := {each for each in expected if not any(covers(read, each) for read in found)}:
            self.counts["missed"] += 1
            self.missed.append(f"{missed}, but read {found or None}: {sql!r}")


def main() -> int:
    csv.field_size_limit(1 << 30)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, nargs="*", default=[])
    choices = parser.parse_args()
    wrong = 0
    for name, texts in {
        "PostgreSQL's regression tests": list(from_regression_tests()),
        "sqlglot's fixtures": list(from_sqlglot()),
        "logged": list(from_logs(choices.log)),
    }.items():
        judge = Judge()
        for text in texts:
            judge.judge(text)
        for first, second in pairwise(texts):
            judge.judge(f"{first}; {second}")
        wrong += tell(name, judge)
    judge = Judge()
    for text in made(choices.examples, choices.seed):
        judge.judge(text)
    wrong += tell("made at random", judge)
    measure_reading()
    return 1 if wrong else 0


def tell(name: str, judge: Judge) -> int:
    print(f"{name}: {dict(judge.counts)}; {len(judge.disagreements)} disagreements")
    for each in [*judge.disagreements[:20], *judge.missed[:20]]:
        print(f"  {each[:400]}")
    return len(judge.disagreements) + len(judge.missed)


def measure_reading() -> None:
    """Print the milliseconds of the faster of two readings, and the memory of a third."""
    print("ms and kB for texts of " + ", ".join(f"{size:,}" for size in SIZES) + " characters")
    for shape, (beginning, repeated, end) in SHAPES.items():
        # Without what is remembered of short texts.
        for reader in (statements._read, verb_of_one_statement):
            figures = []
            for size in SIZES:
                sql = beginning + repeated * (size // len(repeated)) + end
                figures.append(f"{_milliseconds(reader, sql):9.1f} {_kilobytes(reader, sql):7.0f}")
            print(f"{shape:33}{reader.__name__.strip('_'):23}" + " |".join(figures))


def _milliseconds(reader: Callable[[str], object], sql: str) -> float:
    times = []
    for _ in range(2):
        before = time.perf_counter()
        reader(sql)
        times.append(time.perf_counter() - before)
    return min(times) * 1000


def _kilobytes(reader: Callable[[str], object], sql: str) -> float:
    tracemalloc.start()
    try:
        reader(sql)
        return tracemalloc.get_traced_memory()[1] / 1000
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    sys.exit(main())
