"""First contact: what someone is told whose project is not ready for safemigrate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import django
import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured

import safemigrate

ROOT = Path(__file__).parents[2]
SETTINGS = """
SECRET_KEY = "tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "safemigrate"]
USE_TZ = True
"""
SQLITE = """
from pathlib import Path
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(__file__).parent / "db.sqlite3",
    }
}
"""
NOWHERE = """
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "nothing",
        "HOST": "/nonexistent",
    }
}
"""


class Newcomer:
    """A project of somebody who has just installed safemigrate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, *parts: str) -> None:
        (self.folder / "newcomer_settings.py").write_text("\n".join(parts))

    def types(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr."""
        environment = {name: text for name, text in os.environ.items() if name[:2] != "PG"}
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=self.folder,
            env={
                **environment,
                "DJANGO_SETTINGS_MODULE": "newcomer_settings",
                "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            },
            capture_output=True,
            check=False,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr.strip()


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


@pytest.mark.parametrize("command", ["safemigrate", "resyncsequences"])
def test_not_in_installed_apps(newcomer: Newcomer, command: str) -> None:
    newcomer.settings(SETTINGS.replace(', "safemigrate"', ""), SQLITE)
    status, _, stderr = newcomer.types(command)
    assert status == 1
    assert stderr.startswith(f"Unknown command: '{command}'")


@pytest.mark.parametrize("command", ["migrate", "safemigrate", "resyncsequences"])
def test_no_database(newcomer: Newcomer, command: str) -> None:
    newcomer.settings(SETTINGS, "DATABASES = {}")
    status, _, stderr = newcomer.types(command)
    assert status == 1
    assert "settings.DATABASES is improperly configured" in stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["migrate", "safemigrate"])
def test_no_server(newcomer: Newcomer, command: str) -> None:
    newcomer.settings(SETTINGS, NOWHERE)
    status, _, stderr = newcomer.types(command)
    assert status == 1
    assert "django.db.utils.OperationalError" in stderr
    assert "Is the server running" in stderr.splitlines()[-1]


def test_another_vendor(newcomer: Newcomer) -> None:
    newcomer.settings(SETTINGS, SQLITE)
    status, stdout, stderr = newcomer.types("safemigrate")
    assert (status, stderr) == (0, "")
    assert "  Applying contenttypes.0001_initial... OK" in stdout
    assert newcomer.types("migrate")[1] == newcomer.types("safemigrate")[1]
    status, stdout, _ = newcomer.types("resyncsequences")
    assert (status, stdout) == (
        0,
        "SQLite has no sequences that could be behind: nothing to do.\n",
    )


def test_our_options_stand_under_a_heading(newcomer: Newcomer) -> None:
    newcomer.settings(SETTINGS, SQLITE)
    status, stdout, _ = newcomer.types("safemigrate", "--help")
    assert status == 0
    ours = " ".join(stdout.partition("\nsafemigrate:\n")[2].split())
    for option in ("max-retries", "no-heal", "lock-wait", "no-lock", "wait-for-database"):
        text = ours.partition(f"--{option} ")[2].partition(" --")[0]
        assert "Default: the setting SAFEMIGRATE_" in text


def test_a_process_that_does_not_migrate_loads_little_of_it(newcomer: Newcomer) -> None:
    newcomer.settings(SETTINGS, SQLITE)
    code = (
        "import sys; from django.core.management import call_command; call_command('check');"
        "print(*sorted(each for each in sys.modules if each.startswith('safemigrate')))"
    )
    status, stdout, stderr = newcomer.types("shell", "-c", code)
    assert (status, stderr) == (0, "")
    own = {"apps", "checks", "conf", "printing"}
    assert set(stdout.splitlines()[-1].split()) == {
        "safemigrate",
        *(f"safemigrate.{name}" for name in own),
    }


def test_the_package_has_what_it_names_and_nothing_else() -> None:
    assert all(getattr(safemigrate, name).__name__ == name for name in safemigrate.__all__)
    assert set(safemigrate.__all__) <= set(dir(safemigrate))
    with pytest.raises(AttributeError, match="module 'safemigrate' has no attribute 'heal_all'"):
        safemigrate.heal_all  # noqa: B018


def test_an_old_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(django, "VERSION", (4, 1, 13, "final", 0))
    with pytest.raises(ImproperlyConfigured, match=r"needs Django 4\.2 or later, and this is 4\.1"):
        apps.get_app_config("safemigrate").ready()


def test_every_module_can_be_imported_before_the_settings() -> None:
    """A settings module may do so, and a command that builds on ours."""
    code = (
        "import importlib, pkgutil, safemigrate\n"
        "for module in pkgutil.walk_packages(safemigrate.__path__, 'safemigrate.'):\n"
        "    importlib.import_module(module.name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
