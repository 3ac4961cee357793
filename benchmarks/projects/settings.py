"""One project in many settings: PACKAGE names the package that it is together with.

With STAGE=before its apps have only the migrations that fill a healthy database.
"""

from __future__ import annotations

import json
import os
from typing import Any

PACKAGE = os.environ["PACKAGE"]

DATABASES: dict[str, dict[str, Any]] = {"default": json.loads(os.environ["TEST_DATABASE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "safemigrate", "shop"]
SECRET_KEY = "packages"
USE_TZ = True
MIGRATION_MODULES: dict[str, str] = {}
if os.environ.get("STAGE") == "before":
    MIGRATION_MODULES = {"shop": "shop.before", "tracked": "tracked.before"}

match PACKAGE:
    case "django-tenants":
        DATABASES["default"]["ENGINE"] = "django_tenants.postgresql_backend"
        DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
        TENANT_MODEL, TENANT_DOMAIN_MODEL = "customers.Client", "customers.Domain"
        TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "shop"]
        SHARED_APPS = ["django_tenants", "safemigrate", "customers", *TENANT_APPS]
        INSTALLED_APPS = SHARED_APPS
        if override := os.environ.get("OVERRIDE"):
            INSTALLED_APPS = [override, *INSTALLED_APPS]
    case "django-pgmigrate":
        INSTALLED_APPS += ["pglock", "pgactivity", "pgmigrate"]
    case "django-pg-zero-downtime-migrations":
        DATABASES["default"]["ENGINE"] = "django_zero_downtime_migrations.backends.postgres"
        ZERO_DOWNTIME_MIGRATIONS_RAISE_FOR_UNSAFE = False
        ZERO_DOWNTIME_MIGRATIONS_USE_NOT_NULL = True
    case "django-pghistory":
        INSTALLED_APPS += ["pgtrigger", "pghistory", "tracked"]
    case "django-safemigrate":
        SAFEMIGRATE = "nonstrict"
        position = 0 if os.environ.get("THEIRS") == "first" else len(INSTALLED_APPS)
        INSTALLED_APPS.insert(position, "django_safemigrate")
    case "django-read-only":
        INSTALLED_APPS += ["django_read_only"]
    case "pytest-django":
        INSTALLED_APPS.insert(0, "safemigrate.override")
