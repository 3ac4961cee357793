"""Change the package in one place at a time: do the tests notice?

    python proofs/mutants.py [--wing heal] [--sample 20] [--minutes 10] [--tests 60] [--keep FILE]

Works on copies. Each mutant turns one comparison or condition round, adds 1 to a small number, or
takes a tenth of a larger one; what only forbids (frozen=, strict=) is left out. Of the tests of its
wing that run this line, one then must fail: of those --tests that are likely to, so a survivor may
be one that another test would have noticed. Which tests run which lines is learnt first, by
running them all; with --keep this is kept in a file, and read from it the next time. Prints what
became of each, and the score. The server is DATABASE_URL's, or an embedded one.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from coverage import CoverageData

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server, url_of

if TYPE_CHECKING:
    from collections.abc import Iterable

TESTS = {
    "heal": ["tests/heal", "tests/whole/test_together.py"],
    "sequences": [
        "tests/sequences",
        "tests/heal/test_attacks_rechecks.py",
        "tests/heal/test_resync.py",
        "tests/management/test_resyncsequences.py",
        "tests/test_checks.py",
    ],
    "locking": ["tests/locking"],
}
OPPOSITE: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
# Arguments that only forbid what nobody does.
FORBIDDING = {"frozen", "strict"}
AT_ONCE = 2
# A mutant that never ends is noticed as well: pytest leaves where one test takes so many seconds.
LONGEST = 90
IN_TIME = ["-o", f"faulthandler_timeout={LONGEST}", "-o", "faulthandler_exit_on_timeout=true"]


class Mutant(NamedTuple):
    path: Path
    node: int
    first: int
    last: int


def mutants(wing: str) -> list[Mutant]:
    found = []
    for path in sorted((ROOT / "safemigrate" / wing).glob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        left_out = {
            id(node.value)
            for node in nodes
            if isinstance(node, ast.keyword) and node.arg in FORBIDDING
        }
        for number, node in enumerate(nodes):
            if is_mutable(node) and id(node) not in left_out:
                head = node.test if isinstance(node, ast.If) else node
                lines = head.lineno, head.end_lineno or head.lineno  # type: ignore[attr-defined]
                found.append(Mutant(path.relative_to(ROOT), number, *lines))
    return found


def is_mutable(node: ast.AST) -> bool:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return False
        case ast.Compare() | ast.BoolOp() | ast.If() | ast.IfExp():
            return True
        case ast.Constant(value=bool() | int()):
            return True
    return False


def mutate(node: ast.AST) -> None:
    match node:
        case ast.Compare():
            node.ops[0] = OPPOSITE[type(node.ops[0])]()  # type: ignore[assignment]
        case ast.BoolOp():
            node.op = OPPOSITE[type(node.op)]()  # type: ignore[assignment]
        case ast.If() | ast.IfExp():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value)):
            node.value = value // 10 if value > 2 else value + 1


@dataclass
class Copy:
    """A copy of the repository, to be changed and tested."""

    folder: Path
    url: str

    def __post_init__(self) -> None:
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(".*"))

    def killer(self, mutant: Mutant, tests: list[str]) -> str:
        """Return the test that fails, or what else has become of the run; empty if all pass."""
        path = self.folder / mutant.path
        original = path.read_text()
        tree = ast.parse(original)
        mutate(list(ast.walk(tree))[mutant.node])
        path.write_text(ast.unparse(tree))
        try:
            if self.passes("-x", "-n0", *IN_TIME, self.listed(tests)):
                return ""
        finally:
            path.write_text(original)
        printed = self.printed.read_text(errors="replace")
        failure = re.search(
            r"^(?:FAILED |ERROR |(?=Timeout))(.+?)(?: - .*)?$", printed, re.MULTILINE
        )
        return failure[1] if failure else printed.strip().rpartition("\n")[2] or "silence"

    def listed(self, tests: Iterable[str]) -> str:
        """Return an argument that stands for ``tests``, in this order."""
        chosen = self.folder / "chosen"
        chosen.write_text("\n".join(tests))
        return f"@{chosen}"

    @property
    def printed(self) -> Path:
        return self.folder / "printed"

    def passes(self, *arguments: str, **environment: str) -> bool:
        with (
            self.printed.open("w") as printed,
            subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-m", "not search", *arguments],
                cwd=self.folder,
                env={
                    **os.environ,
                    "DATABASE_URL": self.url,
                    "PYTHONPATH": str(self.folder),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    **environment,
                },
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                return process.wait() == 0
            finally:
                kill_group(process.pid)


def kill_group(number: int) -> None:
    """End what a test has started and left behind."""
    with suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


class Runs:
    """Which tests run which lines, and which of them have killed a mutant."""

    def __init__(self, copy: Copy, wing: str, data: Path) -> None:
        self.killers: dict[Path, list[str]] = defaultdict(list)
        if not data.exists():
            options = ["-n2", "--cov=safemigrate", "--cov-context=test", "--cov-report="]
            if not copy.passes(*options, *TESTS[wing], COVERAGE_FILE=str(data)):
                raise SystemExit("The tests fail on the package as it is.")
        self._data = CoverageData(str(data))
        self._data.read()
        tests = {test_of(context) for context in self._data.measured_contexts()} - {""}
        if not copy.passes("--collect-only", "-n0", copy.listed(tests)):
            raise SystemExit(f"Tests have been renamed or removed: remove {data}.")

    def of(self, mutant: Mutant) -> list[str]:
        """List the tests that run a mutant's lines, those that are likely to notice first in front.

        What is run on import, or in a process that a test starts, has no test for its context; then
        all that run the module come last.
        """
        by_line = self._by_line(mutant.path)
        lines = range(mutant.first, mutant.last + 1)
        within = set().union(*(by_line.get(line, {""}) for line in lines))
        chosen = set().union(*by_line.values()) if "" in within else within
        # A test that runs what few others run is likely to notice.
        rarity: defaultdict[str, float] = defaultdict(float)
        for tests in by_line.values():
            for test in tests:
                rarity[test] += 1 / len(tests)
        # Those of the module's own file, one of each function first, and the others take turns.
        kinds: Counter[str] = Counter()
        own, others = [], []
        for test in sorted(chosen - {""}, key=lambda test: -rarity[test]):
            kind = test.partition("[")[0]
            if f"test_{mutant.path.stem}.py" in kind:
                own.append((kinds[kind], test))
                kinds[kind] += 1
            else:
                others.append(test)
        own_tests = [test for _, test in sorted(own, key=lambda each: each[0])]
        turns = [test for pair in zip_longest(own_tests, others) for test in pair if test]
        killers = [test for test in self.killers[mutant.path] if test in chosen]
        return sorted(dict.fromkeys(killers + turns), key=lambda test: test not in within)

    def _by_line(self, module: Path) -> dict[int, set[str]]:
        (path,) = (each for each in self._data.measured_files() if each.endswith(str(module)))
        found = self._data.contexts_by_lineno(path)
        return {line: {test_of(each) for each in found[line]} for line in found}


def test_of(context: str) -> str:
    return context.rpartition("|")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wing", choices=TESTS, default="sequences")
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=60)
    parser.add_argument("--keep", type=Path)
    choices = parser.parse_args()
    every = mutants(choices.wing)
    sample = random.Random(choices.seed).sample(every, min(choices.sample, len(every)))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, server() as settings:
        copies = [Copy(Path(folder) / str(number), url_of(settings)) for number in range(AT_ONCE)]
        data = choices.keep or Path(folder) / "coverage"
        runs = Runs(copies[0], choices.wing, data.absolute())
        idle: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            idle.put(copy)
        end = time.monotonic() + 60 * choices.minutes

        def examine(mutant: Mutant) -> None:
            if time.monotonic() > end:
                return
            tests = runs.of(mutant)
            copy = idle.get()
            killer = copy.killer(mutant, tests[: choices.tests])
            idle.put(copy)
            if killer in tests:
                runs.killers[mutant.path].insert(0, killer)
            outcome = f"killed by {killer}" if killer else f"survived ({len(tests)} tests run it)"
            counts[outcome.split(maxsplit=1)[0]] += 1
            print(f"{mutant.path}:{mutant.first}, node {mutant.node}: {outcome}", flush=True)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(examine, sample))
    print(f"{choices.wing}: {len(every)} mutants, of which {counts.total()} tried: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
