"""Wait until a database accepts connections; and what the migration lock's waiting shares."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from django.db import OperationalError
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
    wait_random,
)

from safemigrate.printing import first_line

from .twin import knock, twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper
    from tenacity import RetryCallState
    from tenacity.wait import wait_base

TELL_EVERY = 15.0
LONGEST_PAUSE = 3.0


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
    return f'Waiting up to {patience:g} s for database "{alias}": {first_line(error_of(state))}'


def error_of(state: RetryCallState) -> BaseException | None:
    """Return what the last attempt has failed with."""
    return state.outcome.exception() if state.outcome else None


def within(patience: float, wait: wait_base) -> Callable[[RetryCallState], float]:
    """Return ``wait``, shortened so that the last attempt comes when ``patience`` runs out."""

    def pause(state: RetryCallState) -> float:
        return max(0.0, min(wait(state), patience - (state.seconds_since_start or 0.0)))

    return pause


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
