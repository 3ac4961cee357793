"""Projects on disk, run by ``manage.py`` in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
PRELUDE = """
import json, os
DATABASES = {"default": json.loads(os.environ["TEST_DATABASE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "safemigrate"]
SECRET_KEY = "tests"
USE_TZ = True
"""


@dataclass(frozen=True)
class Site:
    """A folder with a settings module and apps."""

    folder: Path

    def write(self, **files: str) -> None:
        """Write files; ``__`` in a name stands for a slash, ``settings`` gets the prelude."""
        for name, text in files.items():
            path = self.folder / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PRELUDE + text if name == "settings" else text)
            for package in path.relative_to(self.folder).parents[:-1]:
                (self.folder / package / "__init__.py").touch()

    def manage(
        self, *args: str, pass_fds: Sequence[int] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the test's database; a warning is an error there too."""
        with self.starts(*args, pass_fds=pass_fds, **environment) as process:
            stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def starts(
        self, *args: str, pass_fds: Sequence[int] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """Start a command whose end is not waited for."""
        database = json.dumps(connections["default"].settings_dict, default=str)
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "django", *args],
            cwd=self.folder,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "settings",
                "PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))),
                "TEST_DATABASE": database,
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
