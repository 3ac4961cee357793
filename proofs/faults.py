"""Hurt a healing run at every one of its statements, in every way there is.

    DATABASE_URL=postgresql://… python proofs/faults.py [--kinds SIGKILL 40001] [--every N]

Prints what was tried, and what breaks the law of equivalence.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.faults import Hospital

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    from tests.support.databases import Databases
    from tests.support.faults import FAULTS, Hospital
    from tests.support.project import Project

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=sorted(FAULTS), default=list(FAULTS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--at", type=int, nargs="*")
    choices = parser.parse_args()
    # A shell that starts us in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    findings = 0
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases() as databases,
        databases.bound("default"),
        Project(Path(folder), databases) as project,
    ):
        hospital = Hospital(project, databases)
        hospital.learn()
        statements = hospital.statements()
        print(f"plain migrate leaves {len(hospital.plain)} states; {statements} statements to hurt")
        for kind in choices.kinds:
            for at in choices.at or range(1, statements + 1, choices.every):
                findings += finds(hospital, kind, at)
            print(f"{time.monotonic() - began:.0f} s: {hospital.counts}; {findings} findings")
    return 1 if findings else 0


def finds(hospital: Hospital, kind: str, at: int) -> bool:
    """Print what breaks the law, and tell whether something did."""
    from tests.support.faults import LostLawError

    try:
        hospital.hurt(kind, at)
    except LostLawError as error:
        print(f"=== {error}")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
