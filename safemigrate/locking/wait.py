"""Wait until a database accepts connections; and what the migration lock's waiting shares."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db import Error, OperationalError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper
    from tenacity import RetryCallState
    from tenacity.wait import wait_base

TELL_EVERY = 15.0
LONGEST_PAUSE = 3.0
LONGEST_ATTEMPT = 10
# libpq takes anything less for two seconds, and nothing that is no integer of C.
SHORTEST_ATTEMPT = 2
LONGEST_CONNECTING = 1_000_000
# Options that are about the driver's objects, and not about how to reach the server.
NOT_FOR_A_TWIN = (
    "connection_factory",
    "cursor_factory",
    "isolation_level",
    "pool",
    "row_factory",
    "server_side_binding",
)


def wait_for_database(
    connection: BaseDatabaseWrapper, *, patience: float, tell: Callable[[str], None]
) -> None:
    """
    Return once the database answers. With a patience of 0 seconds it is not asked at all, nor
    where the settings name none.

    Every OperationalError on connecting is retried, even a wrong password: the drivers give no
    SQLSTATE for it, its text is in the server's language, and a server that is being set up may
    refuse what it accepts a moment later. When the patience runs out, the last error is raised.
    """
    if patience <= 0 or connection.vendor == "unknown":
        return
    probe = twin(connection)
    end = monotonic() + patience
    retrying = Retrying(
        retry=retry_if_exception_type(OperationalError),
        stop=stop_after_delay(patience),
        wait=within(patience, wait_exponential(0.1, max=LONGEST_PAUSE) + wait_random(0, 0.3)),
        before_sleep=Telling(tell, lambda state: _sentence(connection.alias, patience, state)),
        reraise=True,
    )
    retrying(lambda: knock(probe, end - monotonic()))


def _sentence(alias: str, patience: float, state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f'Waiting up to {patience:g} s for database "{alias}": {first_line(error)}'


def knock(probe: BaseDatabaseWrapper, patience: float) -> None:
    """Connect, and send one statement: a pooler accepts connections while its server is down."""
    if probe.vendor != "postgresql":
        dial(probe)
        probe.close()
        return
    dial(probe, patience=min(patience, LONGEST_ATTEMPT))
    try:
        with driver.deadline(probe, max(patience, SHORTEST_ATTEMPT)), driver.cursor(probe) as ours:
            ours.execute("SELECT 1")
    except Error as error:
        raise OperationalError(*error.args) from error
    finally:
        probe.close()


def twin(connection: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    """Return an unconnected copy of the alias, outside Django's registry and pool."""
    copy: BaseDatabaseWrapper = connection.copy()
    for name in NOT_FOR_A_TWIN:
        copy.settings_dict["OPTIONS"].pop(name, None)
    return copy


def dial(wrapper: BaseDatabaseWrapper, *, patience: float | None = None) -> Any:
    """Connect, and nothing more: no ``connection_created``, no time zone, no role, no statement.

    If a firewall drops packets, an attempt without ``patience`` takes minutes.
    """
    if patience is not None:
        options = wrapper.settings_dict["OPTIONS"]
        seconds = min(max(math.ceil(patience), SHORTEST_ATTEMPT), LONGEST_CONNECTING)
        options["connect_timeout"] = min(int(options.get("connect_timeout") or seconds), seconds)
    with wrapper.wrap_database_errors:
        wrapper.connection = wrapper.get_new_connection(wrapper.get_connection_params())
    return wrapper.connection


def within(patience: float, wait: wait_base) -> Callable[[RetryCallState], float]:
    """Return ``wait``, shortened so that the last attempt comes when ``patience`` runs out."""

    def pause(state: RetryCallState) -> float:
        return max(0.0, min(wait(state), patience - (state.seconds_since_start or 0.0)))

    return pause


def first_line(error: BaseException | None) -> str:
    """Return what fits into a notice: the drivers' connection errors have many lines."""
    return str(error).strip().partition("\n")[0]


class Telling:
    """Say a sentence when waiting starts and every 15 s, as a tenacity ``before_sleep``."""

    def __init__(
        self, tell: Callable[[str], None], sentence: Callable[[RetryCallState], str]
    ) -> None:
        self.tell = tell
        self.sentence = sentence
        self.due = 0.0

    def __call__(self, state: RetryCallState) -> None:
        passed = state.seconds_since_start or 0.0
        if passed >= self.due:
            self.due = passed + TELL_EVERY
            self.tell(self.sentence(state))
