"""``safemigrate`` under the name of ``migrate``."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core import management

from safemigrate.management.commands import safemigrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.management.base import BaseCommand

APP = "safemigrate.override"


class Command(safemigrate.Command):
    @cached_property
    def migrate(self) -> BaseCommand:
        """The ``migrate`` that would run if this app were not installed."""
        commands = (management.load_command_class(app, "migrate") for app in _apps_below())
        return next(each for each in commands if not isinstance(each, safemigrate.Command))

    @property
    def autodetector(self) -> Any:
        """What Django 5.2 and later compare, in a check, with that of ``makemigrations``."""
        return self.migrate.autodetector  # type: ignore[attr-defined]

    def takes_lock(self, options: dict[str, Any]) -> bool:
        """Take no lock in tests: nobody else migrates the databases that they create."""
        return super().takes_lock(options) and not is_testing()


def is_testing() -> bool:
    """Tell whether Django's ``setup_test_environment()`` is in force, as in every test runner.

    A database's name would be no evidence: there are staging databases called ``test_…``.
    """
    # Whoever set up the environment has imported this module; it is too big to import just to ask.
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def _apps_below() -> Iterator[str]:
    """Yield the apps that have a ``migrate``, in the order in which Django would try them next."""
    configs = list(apps.get_app_configs())
    names = [config.name for config in configs]
    start = names.index(APP) + 1 if APP in names else 0
    for config in configs[start:]:
        if "migrate" in management.find_commands(str(Path(config.path) / "management")):
            yield config.name
    yield "django.core"
