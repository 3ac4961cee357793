"""The settings of the suite; the server is that of DATABASE_URL, see conftest.py."""

from __future__ import annotations

import os

import dj_database_url

_server = dj_database_url.parse(os.environ.get("DATABASE_URL", "postgresql:///postgres"))
# libpq takes a socket's folder as a parameter; some tests connect by HOST alone.
_server["HOST"] = _server["HOST"] or _server.get("OPTIONS", {}).pop("host", "")

DATABASES = {"default": _server, "other": {**_server}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "safemigrate",
    "tests.app",
]
SECRET_KEY = "tests"
USE_TZ = True
