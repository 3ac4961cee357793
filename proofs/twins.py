"""Search for a project that breaks the law of equivalence, for as long as it takes.

    DATABASE_URL=postgresql://… python proofs/twins.py --examples 2000 --seed 1

Prints what was tried. Each finding is shrunk and printed as the migrations of a project. With
``--blocked`` somebody locks tables at random for moments while ``safemigrate`` runs with a lock
timeout. Then keys may differ, since a retry draws new ones, and a finding is not shrunk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.twins.running import Twins

ROOT = Path(__file__).resolve().parent.parent

BATCH = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--blocked", action="store_true")
    choices = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django
    from hypothesis import Phase

    django.setup()
    from tests.support.databases import Databases
    from tests.support.twins.running import Twins

    warnings.simplefilter("error")
    phases = (
        [Phase.generate] if choices.no_shrink or choices.blocked else [Phase.generate, Phase.shrink]
    )
    findings = 0
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Databases() as databases,
        Twins(databases, Path(folder), is_blocked=choices.blocked) as twins,
    ):
        for start in range(0, choices.examples, BATCH):
            findings += finds(
                twins, phases, choices.seed + start, min(BATCH, choices.examples - start)
            )
            print(
                f"{time.monotonic() - began:.0f} s: {twins.counts}; {findings} findings", flush=True
            )
        for feature, number in twins.counts.features.most_common():
            print(f"{number:6} with: {feature}")
    return 1 if findings else 0


def finds(twins: Twins, phases: Any, number: int, examples: int) -> bool:
    """Try some projects; print what breaks the law, and tell whether something did."""
    from hypothesis import HealthCheck, given, seed, settings

    from tests.support.twins.projects import Project, projects
    from tests.support.twins.running import BrokenLawError

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(project=projects())
    def search(project: Project) -> None:
        twins.hold(project)

    try:
        search()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        print(f"\n=== seed {number}: {type(error).__name__}: {error}")
        print("\n".join(getattr(error, "__notes__", [])))
        if not isinstance(error, BrokenLawError):
            traceback.print_exception(error, limit=-6, chain=False, file=sys.stdout)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
