from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core import checks, management

APP = "safemigrate.override"


def migrate_is_ours(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn if another app's ``migrate`` takes precedence over this one."""
    owner = management.get_commands()["migrate"]
    if not apps.is_installed(APP) or owner == APP:
        return []
    return [
        checks.Warning(
            f"{APP} has no effect: the migrate command is that of {owner}, which stands above it "
            "in INSTALLED_APPS.",
            hint=f'Move "{APP}" above "{owner}", whose migrate it then runs; or take it out and '
            "run manage.py safemigrate.",
            id="safemigrate.W003",
        )
    ]


def safemigrate_is_there(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn if the app that has the other commands and checks is missing."""
    if not apps.is_installed(APP) or apps.is_installed("safemigrate"):
        return []
    return [
        checks.Warning(
            f"{APP} is installed, and safemigrate is not.",
            hint='Add "safemigrate" to INSTALLED_APPS: the commands safemigrate, resyncsequences '
            "and waitformigrations, and the other checks, come with it.",
            id="safemigrate.W004",
        )
    ]
