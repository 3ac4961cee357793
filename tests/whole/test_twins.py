"""The law of equivalence, searched: see :mod:`tests.support.twins`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.twins.projects import Project, projects
from tests.support.twins.running import Twins

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Databases

# What fails here is shrunk by proofs/twins.py.
EXAMPLES = 25


@pytest.fixture(scope="module")
def twins(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with Twins(databases, tmp_path_factory.mktemp("twins")) as twins:
        yield twins


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(project=projects())
def search(twins: Twins, project: Project) -> None:
    twins.hold(project)


@pytest.mark.search
def test_twins_end_alike(twins: Twins) -> None:
    search(twins)

    # What found nothing to heal has proved nothing.
    assert twins.counts.resynced > twins.counts.projects
    assert twins.counts.against_migrate > 0
