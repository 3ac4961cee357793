from __future__ import annotations

from django.apps import AppConfig


class TestAppConfig(AppConfig):
    """An app without models of its own: each test gives it the migrations that it needs."""

    name = "tests.app"
    label = "app"
