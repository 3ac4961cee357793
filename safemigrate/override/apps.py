from __future__ import annotations

from django.apps import AppConfig
from django.core import checks


class OverrideConfig(AppConfig):
    name = "safemigrate.override"
    label = "safemigrate_override"
    verbose_name = "Safe migrate as migrate"

    def ready(self) -> None:
        from .checks import (  # noqa: PLC0415 - only where the app is in use
            migrate_is_ours,
            safemigrate_is_there,
        )

        checks.register(migrate_is_ours)
        checks.register(safemigrate_is_there)
