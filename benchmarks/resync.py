"""
What `safemigrate.resync()` and Django's `sqlsequencereset` do to a table that is being written to.

    python benchmarks/resync.py [SECONDS for each, 10 by default]

Eight writers insert into five tables, one process resyncs them over and over, as a library does
after each import, and another watches the sequences. A collision with a row from before is nobody's
doing but the sequence's, and does not count. The server is DATABASE_URL's,
or the embedded one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0

OURS = """
tables = json.loads(sys.argv[3])
from safemigrate import resync
def once():
    resync(*tables)
"""
# The statements of DatabaseOperations.sequence_reset_sql(), which the command and loaddata send.
DJANGOS = """
tables = json.loads(sys.argv[3])
from django.apps import apps
from django.core.management.color import no_style
from django.db import models
def model(table):
    options = {"app_label": "measured", "db_table": table}
    fields = {"id": models.BigAutoField(primary_key=True), "__module__": "measured"}
    return type(table, (models.Model,), {**fields, "Meta": type("Meta", (), options)})
statements = connection.ops.sequence_reset_sql(no_style(), [model(each) for each in tables])
def once():
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
"""
LOOP = """
done = 0
while time.monotonic() < end:
    once()
    done += 1
print(json.dumps([done, [], []]))
"""


def main(settings: dict[str, Any]) -> int:
    sys.path.insert(0, str(ROOT))
    import django
    from django.conf import settings as django_settings

    django_settings.configure(DATABASES={"default": settings}, USE_TZ=True)
    django.setup()
    from tests.support.databases import Databases
    from tests.support.writers import run

    print(f"{SECONDS:.0f} s each, 8 writers, 1 resyncer, {os.cpu_count()} processors")
    print("| | values drawn | resyncs | seen moving back | given twice | collisions caused |")
    print("|---|---|---|---|---|---|")
    failures = 0
    for name, code in (("safemigrate.resync()", OURS), ("sqlsequencereset", DJANGOS)):
        with Databases() as databases, databases.bound("default"):
            seen = run(SECONDS, resyncers=1, resyncer=code + LOOP)
        back, twice = len(seen.went_back), sum(map(len, seen.twice.values()))
        caused = sum(map(len, seen.caused.values()))
        figures = (name, seen.writes, seen.looks, back, twice, caused)
        print("| " + " | ".join(f"{each:,}" if each != name else name for each in figures) + " |")
        if code == OURS:
            failures = back + twice + caused + len(seen.errors)
    return int(failures > 0)


if __name__ == "__main__":
    with server() as settings:
        sys.exit(main(settings))
