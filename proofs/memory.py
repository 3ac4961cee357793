"""What memory a long migration takes, with migrate and with safemigrate, both at the same time.

    python proofs/memory.py [--rows 200000] [--minutes 0]

One data migration inserts so many rows, some with keys of its own and some without, and every tenth
with a text that no other statement has. With ``--minutes`` it takes as long, pausing between its
rows. Each process has a database of its own; that of ``safemigrate`` has its sequences behind. The
megabytes after each tenth of the rows are printed. The server is DATABASE_URL's, or the embedded
one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proofs.soak import memory
from tests.support.environments import ROOT, server, url_of

COMMANDS = ("migrate", "safemigrate")
TENTHS = 10
# From the first tenth to the last.
GROWTH = 1.02


def insert(rows: int, minutes: float, found: list[int]) -> Any:
    def run(apps: Any, editor: Any) -> None:
        tags = apps.get_model("app", "Tag").objects
        began = time.monotonic()
        for number in range(rows):
            if number % 10 == 0:
                editor.execute(f"INSERT INTO app_tag (name) VALUES ('{number}')")
            elif number % 10 == 1:
                tags.create(id=10 * rows + number, name=str(number))
            else:
                tags.create(name=str(number))
            if (number + 1) % (rows // TENTHS) == 0:
                found.append(memory())
            time.sleep(max(0.0, began + 60 * minutes * number / rows - time.monotonic()))

    return run


def child(command: str, rows: int, minutes: float) -> None:
    """Migrate in this process, and print its kilobytes."""
    import django

    django.setup()
    from tests.support.databases import Databases, execute, put_behind
    from tests.support.models import create
    from tests.support.project import Project, run_python

    found: list[int] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases() as databases,
        databases.bound("default"),
        Project(Path(folder), databases) as project,
    ):
        project.migration(create("Tag"))
        project.migrate()
        execute("INSERT INTO app_tag (name) VALUES ('first')")
        if command == "safemigrate":
            put_behind()
        project.migration(run_python(insert(rows, minutes, found)))
        project.migrate(command=command)
    print(json.dumps(found))


def main(rows: int, minutes: float) -> int:
    options = ["--rows", str(rows), "--minutes", str(minutes)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *options, "--command", command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for command in COMMANDS
    ]
    found = {
        command: json.loads(process.communicate()[0])
        for command, process in zip(COMMANDS, processes, strict=True)
    }
    print(f"{rows:,} rows in {minutes:g} minutes; MB after each tenth")
    for command, kilobytes in found.items():
        print(f"{command:<12}", *(f"{each / 1024:.1f}" for each in kilobytes))
    return int(any(each[-1] > each[0] * GROWTH for each in found.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--command", choices=COMMANDS, help=argparse.SUPPRESS)
    choices = parser.parse_args()
    if choices.command:
        child(choices.command, choices.rows, choices.minutes)
        sys.exit()
    with server() as settings:
        os.environ["DATABASE_URL"] = url_of(settings)
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        sys.exit(main(choices.rows, choices.minutes))
