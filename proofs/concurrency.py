"""
Eight writers and two resyncers at full speed, and what they saw.

    python proofs/concurrency.py [SECONDS, 60 by default]

The writers insert into tables whose sequences are behind and into tables whose sequences are right.
The server is DATABASE_URL's, or the embedded one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0


def main(settings: dict[str, Any]) -> int:
    sys.path.insert(0, str(ROOT))
    import django
    from django.conf import settings as django_settings

    django_settings.configure(DATABASES={"default": settings}, USE_TZ=True)
    django.setup()
    from tests.support.databases import Databases
    from tests.support.writers import HEALTHY, run

    with Databases() as databases, databases.bound("default"):
        seen = run(SECONDS)
    print(f"{SECONDS:.0f} s, 8 writers, 2 resyncers, {os.cpu_count()} processors")
    print(f"values drawn: {seen.writes:,}")
    print(f"looks: {seen.looks:,}, of which moved a sequence: {len(seen.moved)}")
    behind = sum(number for table, number in seen.collisions.items() if table not in HEALTHY)
    print(f"collisions with rows from before, until the resync: {behind}")
    failures = {
        "values handed out twice": sum(map(len, seen.twice.values())),
        "collisions that a resync caused": sum(map(len, seen.caused.values())),
        "times a sequence was seen moving back": len(seen.went_back),
        "deadlocks and other errors": len(seen.errors),
        "resyncs that gave up": seen.obstacles.total(),
    }
    for what, number in failures.items():
        print(f"{what}: {number}")
    return int(any(failures.values()))


if __name__ == "__main__":
    with server() as settings:
        sys.exit(main(settings))
