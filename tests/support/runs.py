"""Runs in other processes and threads, which is where the migration lock matters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from django.core.management import call_command
from django.db import connection, connections

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from django.dispatch import Signal

ROOT = Path(__file__).parents[2]
LONG = 60.0

PRELUDE = """
import json, os, sys, time
import django
from django.conf import settings
settings.configure(DATABASES={"default": json.loads(os.environ["TEST_DATABASE"])}, USE_TZ=True)
django.setup()
from django.db import connection
from safemigrate.locking.errors import LockTimeoutError
from safemigrate.locking.lock import migration_lock
from tests.support.locks import planned
def tell(text): print(text, file=sys.stderr, flush=True)
def say(text): print(text, flush=True)
"""
ELSEWHERE = """
from safemigrate.locking import kin
kin._ancestors = list
"""
VARIABLE = "SAFEMIGRATE_LOCK_"
HOLDING = (
    "with migration_lock(connection, patience=0, tell=tell): say('mine'); sys.stdin.readline()"
)


@contextmanager
def hearing(signal: Signal) -> Iterator[list[Any]]:
    """Collect the records that one of our signals carries."""
    heard: list[Any] = []

    def hear(record: Any, **_: object) -> None:
        heard.append(record)

    signal.connect(hear)
    try:
        yield heard
    finally:
        signal.disconnect(hear)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the statements that are sent by the engine."""
    sent: list[str] = []
    plain = driver.Cursor.execute
    plain_rows = driver.Cursor.rows

    def execute(self: driver.Cursor, sql: str, params: Any = None) -> None:
        sent.append(f"{sql} {params}")
        plain(self, sql, params)

    def rows(self: driver.Cursor, sql: str, params: Any = None) -> list[Any]:
        sent.append(f"{sql} {params}")
        return plain_rows(self, sql, params)

    with monkeypatch.context() as patch:
        patch.setattr(driver.Cursor, "execute", execute)
        patch.setattr(driver.Cursor, "rows", rows)
        yield sent


@contextmanager
def running(
    code: str, *, kin: bool = False, child: bool = False, **settings: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process with this one's default database.

    It stands for one on another host: it knows this one's lock only as ``kin``, and that it was
    started from here only as its ``child``.
    """
    database = json.dumps({**connection.settings_dict, **settings}, default=str)
    environment = {
        name: text for name, text in os.environ.items() if kin or "SAFEMIGRATE_LOCK_" not in name
    }
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + ("" if child else ELSEWHERE) + code],
        cwd=ROOT,
        env={**environment, "TEST_DATABASE": database},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """Return what a process printed, once it has ended well."""
    stdout, stderr = process.communicate(timeout=LONG)
    assert process.returncode == 0, stderr
    return stdout


def run(code: str, *, kin: bool = False) -> str:
    """Return what code printed in a process of its own."""
    with running(code, kin=kin) as process:
        return finish(process)


def eventually(predicate: Callable[[], Any]) -> Any:
    """Return the predicate's first true answer, within a minute."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        if answer := predicate():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"never: {predicate}")


@contextmanager
def meanwhile(work: Callable[[Event], None]) -> Iterator[None]:
    """Have another thread work during the block; it stops when the event is set."""
    is_over = Event()

    def run() -> None:
        try:
            work(is_over)
        finally:
            connections.close_all()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Return (or raise) what work did in threads of their own, with connections of their own."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            results.append(error)
        finally:
            connections.close_all()

    threads = [Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert len(results) == count
    return results


def resyncsequences(*args: str, status: int = 0, **options: Any) -> str:
    """Run the command, assert its exit status, and return its stdout."""
    out = io.StringIO()
    code = 0
    try:
        call_command("resyncsequences", *args, no_color=True, **{"stdout": out, **options})
    except SystemExit as left:
        code = int(str(left.code))
    assert code == status, out.getvalue()
    return out.getvalue()


@contextmanager
def somebody_migrating(**settings: Any) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the migration lock."""
    with running(HOLDING, **settings) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        yield holder
