"""Change the package in one place at a time: do the tests notice?

    python proofs/mutants.py [--wing heal] [--sample 20] [--minutes 10] [--seed 0]

Works on a copy. Each mutant turns one comparison, condition or small number round; the tests of its
wing then must fail: first those of the changed module, and where these pass the others. Prints the
survivors and the score. The server is DATABASE_URL's, or an embedded one.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server, url_of

TESTS = {
    "heal": ["tests/heal", "tests/whole/test_together.py"],
    "sequences": ["tests/sequences", "tests/heal/test_attacks_rechecks.py"],
    "locking": ["tests/locking"],
}
# The tests that notice most, by module; of the others those that bear its name.
CLOSEST = {
    "heal/disturbed": ["tests/heal/test_attacks_rechecks.py", "tests/heal/test_wrapper.py"],
    "heal/collisions": ["tests/heal/test_block.py", "tests/heal/test_wrapper.py"],
    "sequences/catalogue": ["tests/sequences/test_feeds.py", "tests/sequences/test_zoo.py"],
    "sequences/state": ["tests/sequences/test_resync.py", "tests/sequences/test_sweep.py"],
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
# A mutant that never ends is noticed as well: after so many times what the tests take as they are.
LONGEST = 4


class Mutant(NamedTuple):
    path: Path
    node: int
    line: int


def mutants(wing: str) -> list[Mutant]:
    return [
        Mutant(path.relative_to(ROOT), number, getattr(node, "lineno", 0))
        for path in sorted((ROOT / "safemigrate" / wing).glob("*.py"))
        for number, node in enumerate(ast.walk(ast.parse(path.read_text())))
        if is_mutable(node)
    ]


def is_mutable(node: ast.AST) -> bool:
    match node:
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
            node.value = value + 1


@dataclass
class Copy:
    """A copy of the repository, to be changed and tested."""

    folder: Path
    url: str
    wing: str
    limits: dict[tuple[str, ...], float] = field(default_factory=dict)

    def is_noticed(self, mutant: Mutant) -> bool:
        for tests in (self.closest(mutant), TESTS[self.wing]):
            self.learn_limit(tests)
            if not self.survives(mutant, tests):
                return True
        return False

    def learn_limit(self, tests: list[str]) -> None:
        """Measure once how long tests take of the package as it is."""
        if tuple(tests) not in self.limits:
            began = time.monotonic()
            if not self.passes(tests):
                raise SystemExit(f"{tests} fail on the package as it is.")
            self.limits[tuple(tests)] = LONGEST * (time.monotonic() - began)

    def survives(self, mutant: Mutant, tests: list[str]) -> bool:
        path = self.folder / mutant.path
        original = path.read_text()
        tree = ast.parse(original)
        mutate(list(ast.walk(tree))[mutant.node])
        path.write_text(ast.unparse(tree))
        try:
            return self.passes(tests)
        finally:
            path.write_text(original)

    def closest(self, mutant: Mutant) -> list[str]:
        module = f"{self.wing}/{mutant.path.stem}"
        tests = CLOSEST.get(module, [f"tests/{self.wing}/test_{mutant.path.stem}.py"])
        return [each for each in tests if (self.folder / each).exists()] or TESTS[self.wing]

    def passes(self, tests: list[str]) -> bool:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n2", "-m", "not search", *tests]
        environment = {
            **os.environ,
            "DATABASE_URL": self.url,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                return process.wait(self.limits.get(tuple(tests))) == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wing", choices=TESTS, default="sequences")
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    choices = parser.parse_args()
    every = mutants(choices.wing)
    sample = random.Random(choices.seed).sample(every, min(choices.sample, len(every)))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, server() as settings:
        copy = Copy(Path(folder) / "copy", url_of(settings), choices.wing)
        shutil.copytree(ROOT, copy.folder, ignore=shutil.ignore_patterns(".*"))
        end = time.monotonic() + 60 * choices.minutes
        for mutant in sample:
            if time.monotonic() > end:
                break
            noticed = copy.is_noticed(mutant)
            counts["killed" if noticed else "survived"] += 1
            if not noticed:
                print(f"survived: {mutant.path}:{mutant.line}, node {mutant.node}", flush=True)
    print(f"{choices.wing}: {len(every)} mutants, of which {counts.total()} tried: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
