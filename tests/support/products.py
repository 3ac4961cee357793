"""Projects whose migrations are run whole: the example, and a real product's."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.environments import DRIVERS, ROOT, run, virtualenv

PACKAGES = {"example": [], "wagtail": ["wagtail"]}
# What `wagtail start` writes, on the database that the example project would take.
WAGTAIL = """
import os
import dj_database_url
from mysite.settings.dev import *
DATABASES = {"default": {**dj_database_url.config(), "NAME": os.environ["SHOP_DATABASE"]}}
INSTALLED_APPS = ["safemigrate", *INSTALLED_APPS]
"""


class Product(NamedTuple):
    """A project in ``folder``, and the Python that runs it."""

    python: str
    folder: Path
    settings: str

    def manage(self, url: str, database: str, *arguments: str, **environment: str) -> None:
        """Run a management command on a database of the server at ``url``."""
        own = {
            "PYTHONDONTWRITEBYTECODE": "",  # a deployment doesn't compile at every start
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": self.settings,
            "PYTHONPATH": str(ROOT),
            "SHOP_DATABASE": database,
        }
        run(
            [self.python, "manage.py", *arguments, "--verbosity", "0"],
            cwd=self.folder,
            env={**os.environ, **own, **environment},
        )


def product(name: str, driver: str, folder: Path) -> Product:
    """Install what a project needs in a virtualenv of its own; a new site goes to ``folder``."""
    needed = ["Django==5.2.*", "tenacity", "dj-database-url", *DRIVERS[driver], *PACKAGES[name]]
    python = virtualenv(sys.executable, f"same-{name}-{driver}", needed)
    if name == "example":
        return Product(python, ROOT / "example_project", "mysite.settings")
    run([str(Path(python).with_name("wagtail")), "start", "mysite", str(folder)])
    (folder / "measured.py").write_text(WAGTAIL)
    return Product(python, folder, "measured")
