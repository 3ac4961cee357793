from __future__ import annotations

from django.apps import AppConfig

from . import checks


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    verbose_name = "Safe migrate"

    def ready(self) -> None:
        checks.register()
