"""
What safemigrate costs a real product's whole runs, side by side with migrate, alternating.

    python benchmarks/product.py [--project wagtail] [--driver psycopg] [--pairs 9]

The site that ``wagtail start`` makes is migrated from an empty database, and again with nothing to
do, each in a process of its own. Prints medians in seconds, and the median of the pairs' ratios
with its quartiles. The server is DATABASE_URL's, or the embedded one; the product's packages are
installed in a virtualenv of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import DRIVERS, server, url_of
from tests.support.products import PACKAGES, product

COMMANDS = ("migrate", "safemigrate")
RUNS = ("from empty", "nothing to do")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default="wagtail", choices=list(PACKAGES))
    parser.add_argument("--driver", default="psycopg2", choices=list(DRIVERS))
    parser.add_argument("--pairs", type=int, default=9)
    choices = parser.parse_args()
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, server() as settings:
        project, url = product(choices.project, choices.driver, Path(folder)), url_of(settings)
        for number in range(choices.pairs + 1):
            for command in COMMANDS if number % 2 else reversed(COMMANDS):
                database = f"{command}_{number}"
                administer(url, f"CREATE DATABASE {database}")
                for run in RUNS:
                    start = time.perf_counter()
                    project.manage(url, database, command)
                    times.setdefault((run, command), []).append(time.perf_counter() - start)
                administer(url, f"DROP DATABASE {database}")
    for run in RUNS:
        plain, ours = (times[run, command][1:] for command in COMMANDS)  # the first warms up
        low, middle, high = quantiles([b / a for a, b in zip(plain, ours, strict=True)], n=4)
        print(
            f"{choices.project}, {run}: {median(plain):.2f} and {median(ours):.2f} s, ratio of "
            f"{choices.pairs} pairs {middle:.3f} [{low:.3f}, {high:.3f}]"
        )


def administer(url: str, sql: str) -> None:
    import psycopg2

    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(sql)
    connection.close()


if __name__ == "__main__":
    main()
