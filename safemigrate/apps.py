from __future__ import annotations

import django
from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class SafemigrateConfig(AppConfig):
    name = "safemigrate"
    verbose_name = "Safe migrate"

    def ready(self) -> None:
        if django.VERSION < (4, 2):
            raise ImproperlyConfigured(
                f"safemigrate needs Django 4.2 or later, and this is {django.get_version()}. "
                "Upgrade Django, or take 'safemigrate' out of INSTALLED_APPS."
            )
        from . import checks  # noqa: PLC0415 - it needs that Django

        checks.register()
