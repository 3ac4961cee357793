"""Receive what ``migrate`` is about to do, for the length of a block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db.models.signals import pre_migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.dispatch import Signal


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., None]) -> Iterator[None]:
    """Connect a receiver for the length of the block."""
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def receiving_plans(receiver: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``receiver`` with the alias and the plan of each ``migrate`` in the block that has one.

    Once, though ``pre_migrate`` is sent for each app; and before the project's own receivers, which
    may write.
    """
    met: dict[int, Any] = {}  # plans are lists, and equal ones of two tenants are two

    def receive(using: str, plan: Any = None, **_: object) -> None:
        if plan and id(plan) not in met:
            met[id(plan)] = plan
            receiver(using, plan)

    receive.is_ours = True  # type: ignore[attr-defined]
    with receiving(pre_migrate, receive):
        with pre_migrate.lock:  # Django calls receivers in the order in which they were connected
            pre_migrate.receivers.sort(key=lambda each: not hasattr(each[1], "is_ours"))
            pre_migrate.sender_receivers_cache.clear()
        yield
