"""What is told of a blocker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from safemigrate.locking.blockers import lock_wait


def row(**changed: Any) -> Any:
    known = {"relation": "thing", "mode": "ShareLock", "pid": 7, "role": "bob", "client": ""}
    known |= {"application_name": "shell", "transaction_age": 1.5, "state": "active"}
    return SimpleNamespace(**known | {"query": "SELECT 'secret'"} | changed)


def test_literals_and_escapes_are_not_shown() -> None:
    told = str(lock_wait("default", row(application_name="\x1b[31m\u2026")))
    assert "secret" not in told
    assert "application \\x1b[31m\\u2026" in told
    assert "SELECT" in told


def test_what_is_waited_for() -> None:
    def told(**wait: str) -> str:
        return str(lock_wait("default", row(**wait))).partition(",")[0]

    assert told(relation="") == "Waiting for a transaction to end"
    assert told(mode="ExclusiveLock", relation="") == "Waiting for ExclusiveLock (not on a table)"


def test_what_may_not_be_seen_is_left_out() -> None:
    told = lock_wait("default", row(role="", transaction_age=None, state="", query=""))
    assert str(told) == "Waiting for ShareLock on thing, blocked by pid 7, application shell"
