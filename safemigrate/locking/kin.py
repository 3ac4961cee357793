"""Whose migration lock it is: this run's, that of a run it has been started by, or a rival's.

A run that was started by the holder of the lock, in its own thread, as a fork or as a process with
its environment, must not wait for it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Thread, current_thread
from threading import enumerate as all_threads
from typing import TYPE_CHECKING
from weakref import WeakSet

from safemigrate import driver

from .holder import hostname

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from .holder import Holder


@dataclass
class _Held:
    """A lock of this process, and the threads that existed before it was taken."""

    address: tuple[str, ...]
    bystanders: WeakSet[Thread]


_held: dict[str, _Held] = {}
_mine: ContextVar[frozenset[str]] = ContextVar("safemigrate_locks", default=frozenset())


def is_held_by_kin(connection: BaseDatabaseWrapper) -> bool:
    address = driver.address(connection)
    return any(is_kin(token) for token, held in list(_held.items()) if held.address == address)


def is_kin(token: str) -> bool:
    """Tell whether the lock is this context's or an ancestor process's, but no other thread's."""
    spawned = _variable(token) in os.environ and token.partition("_")[0] != str(os.getpid())
    return spawned or token in _mine.get()


def is_parent(holder: Holder) -> bool:
    """Tell whether the holder started this thread or process, which does not know that."""
    if held := _held.get(holder.token):
        return current_thread() not in held.bystanders
    return (
        bool(holder.token)
        and hostname().endswith(holder.host)
        and int(holder.process) in _ancestors()
    )


def _ancestors() -> Iterator[int]:
    """Yield the processes above this one, except 1, which each container has for itself."""
    pid = os.getppid()
    while pid > 1:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return


def _variable(token: str) -> str:
    return f"SAFEMIGRATE_LOCK_{token}"


@contextmanager
def known_to_kin(token: str, connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let nested runs know whose lock it is: here, in forked and in spawned processes."""
    mine = _mine.set(_mine.get() | {token})
    _held[token] = _Held(driver.address(connection), WeakSet(all_threads()))
    os.environ[_variable(token)] = connection.alias
    try:
        yield
    finally:
        os.environ.pop(_variable(token), None)
        _held.pop(token, None)
        _mine.reset(mine)
