from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class OverrideConfig(AppConfig):
    name = "safemigrate.override"
    label = "safemigrate_override"
    verbose_name = "Safe migrate as migrate"

    def ready(self) -> None:
        from .checks import migrate_is_ours  # noqa: PLC0415 - only where the app is in use

        checks.register(migrate_is_ours)
