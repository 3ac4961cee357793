"""Change the package in one place at a time: do the tests notice?

    python proofs/mutants.py [--wing heal] [--sample 20] [--minutes 10] [--seed 0]

Works on a copy. Each mutant turns one comparison, condition or small number round; the tests of its
wing then must fail. Prints the survivors and the score.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "heal": ["tests/heal", "tests/whole/test_together.py"],
    "sequences": ["tests/sequences"],
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
# A mutant that never ends is noticed as well.
LONGEST = 180


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


def is_noticed(mutant: Mutant, copy: Path, tests: list[str]) -> bool:
    path = copy / mutant.path
    original = path.read_text()
    tree = ast.parse(original)
    mutate(list(ast.walk(tree))[mutant.node])
    path.write_text(ast.unparse(tree))
    try:
        return not passes(copy, tests)
    finally:
        path.write_text(original)


def passes(copy: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "2", "-m", "not search", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    ) as process:
        try:
            return process.wait(LONGEST) == 0
        except subprocess.TimeoutExpired:
            process.terminate()
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
    end = time.monotonic() + 60 * choices.minutes
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        if not passes(copy, TESTS[choices.wing]):
            raise SystemExit("The tests fail on the package as it is.")
        for mutant in sample:
            if time.monotonic() > end:
                break
            noticed = is_noticed(mutant, copy, TESTS[choices.wing])
            counts["killed" if noticed else "survived"] += 1
            if not noticed:
                print(f"survived: {mutant.path}:{mutant.line}, node {mutant.node}", flush=True)
    print(f"{choices.wing}: {len(every)} mutants, of which {counts.total()} tried: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
