"""A healing run that is hurt; proofs/faults.py does so at every statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.faults import FAULTS, Hospital

if TYPE_CHECKING:
    from tests.support.databases import Databases
    from tests.support.project import Project

EVERY = {"40001": 4}
SELDOM = 80


@pytest.fixture
def hospital(project: Project, databases: Databases) -> Hospital:
    return Hospital(project, databases)


@pytest.mark.search
def test_faults_leave_what_they_leave_of_migrate(hospital: Hospital) -> None:
    hospital.learn()
    statements = hospital.statements()
    for number, kind in enumerate(FAULTS):
        every = EVERY.get(kind, SELDOM)
        for at in range(1 + 7 * number % every, statements + 1, every):
            hospital.hurt(kind, at)

    assert hospital.counts.recovered > 0
