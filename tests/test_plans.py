"""Who is told of a plan, when, and how often."""

from __future__ import annotations

from typing import Any

from django.db.models.signals import pre_migrate

from safemigrate.plans import receiving, receiving_plans


def test_plans_are_told_once_and_before_the_projects_receivers() -> None:
    told: list[Any] = []
    plan = [("a migration", False)]

    def theirs(using: str, plan: Any, **_: object) -> None:
        told.append("theirs")

    with (
        receiving(pre_migrate, theirs),
        receiving_plans(lambda using, plan: told.append(("first", using, plan))),
        receiving_plans(lambda using, plan: told.append(("second", using, plan))),
    ):
        for _ in range(2):  # apps
            pre_migrate.send(None, using="default", plan=plan)
        pre_migrate.send(None, using="default", plan=[])
        pre_migrate.send(None, using="other", plan=[("a migration", False)])
    assert told == [
        ("first", "default", plan),
        ("second", "default", plan),
        "theirs",
        "theirs",
        "theirs",
        ("first", "other", plan),
        ("second", "other", plan),
        "theirs",
    ]
    pre_migrate.send(None, using="default", plan=plan)
    assert len(told) == 8
