"""Signals that a project can listen to."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.dispatch import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sequence_resynced = Signal()
"""Sent once a sequence has been moved, in the middle of the run and perhaps of a transaction.

``sender`` is the class ``Resync``, ``using`` the alias, and ``record`` the ``Resync``. What a
receiver raises is logged by Django, and stops nothing.
"""

lock_waited = Signal()
"""Sent once a statement has given up a lock, before it or its migration is retried.

``sender`` is the class LockWait, ``using`` the alias, and ``record`` the LockWait.
"""


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., None]) -> Iterator[None]:
    """Connect a receiver for the length of the block."""
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)
