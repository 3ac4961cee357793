"""On a healthy database compare the statements that ``migrate`` and ``safemigrate`` send.

    python proofs/same_statements.py [--project wagtail] [--driver psycopg] [--major 18]

The example project, or the site that ``wagtail start`` makes, is migrated by each of the two, in
three runs, on a server that logs every statement. Those of the migrating connection must be the
same, in the same order, but for a prologue before the first write, and for the setting that a run
gives back when it ends; both are printed. The exit status is 0 if they are. Needs npm for the
server; the project's packages are installed in a virtualenv of their own.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import server

from tests.support.environments import DRIVERS
from tests.support.products import PACKAGES, product

GIVES_BACK = "set_config('client_connection_check_interval', '0', false)"
COMMANDS = ("migrate", "safemigrate")
# Each with the arguments of its commands.
RUNS = {"auth, from an empty database": ["auth"], "the rest": [], "with nothing to do": []}
RECORD = re.compile(r"^\[(\w+)\|([\w.]+)\] LOG:  (?:statement|execute [^:]*): ", re.MULTILINE)
END = re.compile(r"^\[", re.MULTILINE)
WRITE = re.compile(r"\s*(?:create|alter|insert|update|delete|drop)\b", re.IGNORECASE)
# What differs from run to run: a moment, a UUID, and the thread in the names that Django gives.
VARYING = re.compile(
    r"'\d{4}-\d\d-\d\d[ T][\d:.+]+'(?:::timestamptz)?"
    r"|'[0-9a-f-]{32,36}'::uuid|(?<=\"s)\d+(?=_x)|(?<=_curs_)\d+"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default="example", choices=list(PACKAGES))
    parser.add_argument("--driver", default="psycopg2", choices=list(DRIVERS))
    parser.add_argument("--major", type=int, default=18)
    choices = parser.parse_args()
    settings = ("log_statement=all", "log_line_prefix='[%a|%c] '")
    with tempfile.TemporaryDirectory() as folder, server(choices.major, *settings) as url:
        project = product(choices.project, choices.driver, Path(folder))
        for command in COMMANDS:
            create_database(url, command)
            for number, arguments in enumerate(RUNS.values()):
                project.manage(
                    url,
                    command,
                    command,
                    *arguments,
                    PGAPPNAME=f"{command}{number}",
                    PYTHONHASHSEED="0",  # Django lists some values in the order of a set
                )
        log = (Path(unquote(url.split("@")[1].rsplit("/", 1)[0])) / "log").read_text("utf-8")
    different = 0
    for number, name in enumerate(RUNS):
        plain, ours = (sent(log, f"{command}{number}") for command in COMMANDS)
        different += differs(name, plain, ours)
    return 1 if different else 0


def create_database(url: str, name: str) -> None:
    import psycopg2

    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name} TEMPLATE template0")
    connection.close()


def sent(log: str, run: str) -> list[str]:
    """Return what the migrating session sent: of the run's sessions the one that sent most."""
    sessions: dict[str, list[str]] = {}
    for record in RECORD.finditer(log):
        if record[1] == run:
            end = END.search(log, record.end())
            text = log[record.end() : end.start() if end else None]
            sessions.setdefault(record[2], []).append(VARYING.sub("…", text.strip()))
    return max(sessions.values(), key=len)


def differs(name: str, plain: list[str], ours: list[str]) -> bool:
    """Print what only one of the two sent; tell whether it is more than a prologue."""
    print(f"=== {name}: migrate sends {len(plain)} statements, safemigrate {len(ours)}")
    first_write = next((n for n, text in enumerate(ours) if WRITE.match(text)), len(ours))
    kinds: Counter[str] = Counter()
    matcher = difflib.SequenceMatcher(a=plain, b=ours, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            continue
        where = "differences"
        if kind == "insert" and m <= first_write:
            where = "prologue"
        elif kind == "insert" and m == len(ours) and m - k == 1 and GIVES_BACK in ours[k]:
            where = "epilogue"
        kinds[where] += (j - i) + (m - k)
        for sign, texts in (("-", plain[i:j]), ("+", ours[k:m])):
            for text in texts:
                print(f"  {sign} {where}: {' '.join(text.split())[:160]}")
    print(f"  {dict(kinds) or 'the same'}")
    return bool(kinds["differences"])


if __name__ == "__main__":
    sys.exit(main())
