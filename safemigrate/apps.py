from __future__ import annotations

from django.apps import AppConfig


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    verbose_name = "Safe migrate"
