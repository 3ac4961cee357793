"""What real projects' databases lose is found and put back, and nothing is found where all is well.

    python proofs/lost.py [contrib example wagtail django-cms django-oscar pgloader ...]

Each project is migrated by plain ``migrate``: ``resyncsequences --check`` has to find nothing lost.
Then every identity is dropped, and each has to be found, and to be as it was after
``--restore-defaults``. ``pgloader`` (skipped where it is not installed) loads a database of SQLite
in its own ways, which has to migrate on. The server is that of DATABASE_URL, or an embedded one;
needs the extra ``demo``.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import DRIVERS, ROOT, server, virtualenv

NAME = "safemigrate_lost"
PROJECTS = {
    "contrib": [],
    "example": [],
    "wagtail": ["wagtail"],
    "django-cms": ["django-cms", "packaging"],
    "django-oscar": ["django-oscar", "sorl-thumbnail"],
}
SETTINGS = """
import json, os
SECRET_KEY = "lost"
USE_TZ = USE_I18N = True
SITE_ID = 1
ROOT_URLCONF = "settings"
STATIC_URL, MEDIA_URL = "/static/", "/media/"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {
    "context_processors": ["django.template.context_processors.request",
                           "sekizai.context_processors.sekizai"]}}]
urlpatterns = []
LANGUAGES = [("en", "English")]
CMS_CONFIRM_VERSION4 = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
WAGTAIL_SITE_NAME, WAGTAILADMIN_BASE_URL = "lost", "https://example.com"
DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}
names = "contenttypes auth sessions sites flatpages redirects admin messages staticfiles"
INSTALLED_APPS = [f"django.contrib.{name}" for name in names.split()] + ["safemigrate"]
match os.environ["PROJECT"]:
    case "example":
        INSTALLED_APPS += ["shop"]
    case "wagtail":
        names = "contrib.forms contrib.redirects embeds sites users snippets documents images " \\
            "search admin"
        INSTALLED_APPS += [f"wagtail.{name}" for name in names.split()]
        INSTALLED_APPS += ["wagtail", "modelcluster", "taggit"]
    case "django-cms":
        INSTALLED_APPS += ["cms", "menus", "treebeard", "sekizai"]
    case "django-oscar":
        from oscar.defaults import *
        names = "address shipping catalogue catalogue.reviews communication partner basket " \\
            "payment offer order customer search voucher wishlists"
        INSTALLED_APPS += ["oscar.config.Shop", "oscar.apps.analytics.apps.AnalyticsConfig",
            "oscar.apps.checkout.apps.CheckoutConfig"]
        for name in names.split():
            last = name.split(".")[-1]
            config = {"reviews": "CatalogueReviewsConfig"}.get(last, f"{last.title()}Config")
            INSTALLED_APPS.append(f"oscar.apps.{name}.apps.{config}")
        names = "reports users orders catalogue offers partners pages ranges reviews vouchers " \\
            "communications shipping"
        INSTALLED_APPS += ["oscar.apps.dashboard.apps.DashboardConfig", *(
            f"oscar.apps.dashboard.{name}.apps.{name.title()}DashboardConfig"
            for name in names.split())]
        INSTALLED_APPS += ["widget_tweaks", "haystack", "treebeard", "sorl.thumbnail",
            "django_tables2"]
"""
IDENTITIES = """
    SELECT a.attrelid::regclass::text, quote_ident(a.attname)
    FROM pg_attribute AS a WHERE a.attidentity <> '' AND NOT a.attisdropped ORDER BY 1
"""
DEFINITIONS = """
    SELECT table_name, column_name, data_type, is_nullable, column_default, identity_generation,
           pg_get_serial_sequence(quote_ident(table_name), column_name) IS NOT NULL
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
"""
# What pgloader is told, whether SQLite's tables are without AUTOINCREMENT, and what that loses.
WAYS: dict[str, tuple[str, bool, set[str]]] = {
    "as it is told to by its manual": ("create indexes, reset sequences", False, set()),
    "no indexes": ("create no indexes, reset sequences", False, {"lost key"}),
    "no AUTOINCREMENT": ("create indexes, reset sequences", True, {"lost default"}),
}


class FindingError(Exception):
    """Something that is not as it has to be."""


class Project:
    """A project on a database of its own."""

    def __init__(self, name: str, settings: dict[str, Any], folder: Path) -> None:
        self.name, self.settings, self.folder = name, {**settings, "NAME": NAME}, folder
        requirements = [*DRIVERS["psycopg2"], "tenacity", "Django>=5.2,<5.3"]
        requirements += PROJECTS.get(name, [])
        self.python = virtualenv(sys.executable, f"lost-{name}", requirements)
        self.sqlite = folder / "db.sqlite3"

    def manage(self, *args: str, **database: Any) -> str:
        """Return what a command prints; what it ends with is for those that migrate to say."""
        environment = {
            "DJANGO_SETTINGS_MODULE": "settings",
            "PROJECT": self.name,
            "PYTHONPATH": os.pathsep.join(map(str, (self.folder, ROOT, ROOT / "example_project"))),
            "TEST_DATABASE": json.dumps(database or self.settings),
        }
        done = subprocess.run(
            [self.python, "-m", "django", *args, "--skip-checks"],
            env={**os.environ, **environment},
            capture_output=True,
            check=False,
            text=True,
        )
        if done.returncode and args[0] == "migrate":
            raise FindingError(f"{args} ended with {done.returncode}: {done.stderr[-300:]}")
        return done.stdout

    def query(self, sql: str, database: str = NAME) -> list[tuple[Any, ...]]:
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        given = {key: self.settings.get(name) for key, name in names.items()}
        given = {key: value for key, value in given.items() if value}
        options = {**given, **self.settings.get("OPTIONS", {})}
        with closing(psycopg2.connect(dbname=database, **options)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall()) if cursor.description else []

    def create(self) -> None:
        self.query(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)", "postgres")
        self.query(f"CREATE DATABASE {NAME} TEMPLATE template0", "postgres")

    def lost(self, *options: str) -> list[dict[str, Any]]:
        return list(json.loads(self.manage("resyncsequences", "--json", *options))["lost"])


def prove(project: Project) -> str:
    project.create()
    project.manage("migrate", "-v0")
    if found := project.lost("--check"):
        raise FindingError(f"A healthy database has lost {found}")
    before, identities = project.query(DEFINITIONS), project.query(IDENTITIES)
    for table, column in identities:
        project.query(f"ALTER TABLE {table} ALTER {column} DROP IDENTITY")
    found = project.lost("--check")
    if {f"{each['table']}" for each in found} != {table.strip('"') for table, _ in identities}:
        raise FindingError(f"{len(identities)} identities were dropped, and found: {found}")
    if left := project.lost("--restore-defaults"):
        raise FindingError(f"Not restored: {left}")
    if differing := sorted(set(project.query(DEFINITIONS)) ^ set(before)):
        raise FindingError(f"The columns are not as they were: {differing}")
    return f"nothing lost; of {len(identities)} identities dropped all were found and restored"


def prove_pgloader(project: Project) -> str:
    host = project.settings["HOST"] or project.settings["OPTIONS"]["host"]
    where = f"unix:{host}:" if host.startswith("/") else f"{host}:"
    account = ":".join(quote(project.settings[name]) for name in ("USER", "PASSWORD")).rstrip(":")
    url = f"postgresql://{account}@{where}{project.settings.get('PORT') or 5432}/{NAME}"
    for way, (orders, is_plain, expected) in WAYS.items():
        project.create()
        project.sqlite.unlink(missing_ok=True)
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(project.sqlite)}
        project.manage("migrate", "contenttypes", "-v0", **sqlite)
        project.manage("migrate", "auth", "0011", "-v0", **sqlite)
        if is_plain:
            forget_autoincrement(project.sqlite)
        script = project.folder / "load"
        script.write_text(
            f"load database from sqlite://{project.sqlite} into {url} with create tables, {orders};"
        )
        subprocess.run(["pgloader", script], check=True, capture_output=True)
        found = project.lost("--check")
        if {each["status"] for each in found} != expected:
            raise FindingError(f"{way}: {found}")
        for each in project.lost("--restore-defaults"):
            project.query(each["sql"][1])
        if found := project.lost("--check"):
            raise FindingError(f"{way}: still lost {found}")
        project.manage("safemigrate", "-v0")
        project.manage("migrate", "--check", "-v0")
    return f"{len(WAYS)} ways: what was lost was found, put back, and migrated on"


def forget_autoincrement(path: Path) -> None:
    """Leave ``integer PRIMARY KEY``, which numbers rows in SQLite, and is no serial to pgloader."""
    with closing(sqlite3.connect(path)) as lite:
        lite.execute("PRAGMA writable_schema = ON")
        lite.execute("UPDATE sqlite_master SET sql = replace(sql, ' AUTOINCREMENT', '')")
        lite.commit()


def main() -> int:
    names = sys.argv[1:] or [*PROJECTS, "pgloader"]
    findings = 0
    with server() as settings, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "settings.py").write_text(SETTINGS)
        for name in names:
            if name == "pgloader" and not shutil.which("pgloader"):
                print("pgloader: skipped, it is not installed")
                continue
            try:
                project = Project(name, settings, folder)
                said = (prove_pgloader if name == "pgloader" else prove)(project)
            except FindingError as error:
                findings += 1
                said = f"=== {error}"
            print(f"{name}: {said}", flush=True)
        project.query(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)", "postgres")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
