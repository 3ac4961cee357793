"""``healing()``: run a block that no sequence behind its table can stop, or silently cut short.

It installs an execute wrapper (Django's "database instrumentation") on this thread's PostgreSQL
connections, and removes it again.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.models.signals import pre_migrate

from safemigrate import conf, driver
from safemigrate.plans import receiving, receiving_plans
from safemigrate.report import Report

from .wrapper import Wrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.report import Note, Resync


@contextmanager
def healing(
    using: str | Iterable[str] | None = None,
    *,
    max_retries: int | None = None,
    heal: bool | None = None,
    tell: Callable[[Resync | Note], None] | None = None,
) -> Iterator[Report]:
    """Resync every sequence that is behind, and keep in sync those that the block disturbs.

    ``using`` is an alias, several, or None for every PostgreSQL database of the settings (those
    that are not connected yet are swept before the first statement that may insert). Only the
    current thread's connections are affected. ``max_retries`` is how often a statement that
    failed in autocommit is retried (default: the setting ``SAFEMIGRATE_MAX_RETRIES``, 3). With
    ``heal`` False (default: ``SAFEMIGRATE_HEAL``, True) no sequence is moved, and nothing retried,
    only noted. ``tell`` is called with each ``Resync`` and ``Note`` as it happens.

    Inside another ``healing()`` of the same connection the outer one's options apply. A connection
    that is configured with ``AUTOCOMMIT: False`` is left alone.

    Yields a ``Report``. Raises ImproperlyConfigured for a setting that can't be used, ValueError
    for ``max_retries`` below 0, and ConnectionDoesNotExist for an alias that there is not.
    """
    if max_retries is not None and max_retries < 0:
        raise ValueError(f"max_retries must be 0 or more, not {max_retries}.")
    retries = conf.max_retries() if max_retries is None else max_retries
    move = conf.heal() if heal is None else heal
    report = Report(tell=tell)
    with _wrapped(using, report, retries, move=move) as wrappers:
        for wrapper in wrappers:
            if using is not None or wrapper.connection.connection is not None:
                wrapper.sweep()
        yield report


@contextmanager
def healing_migrate(
    report: Report,
    *,
    max_retries: int,
    heal: bool,
    sweeping: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Do the same for ``migrate``: sweep once it has a plan, or is about to insert a row.

    ``sweeping()`` is entered while the sequences are checked before the first migration.
    """

    def wrapper_here(using: str) -> Wrapper | None:
        """Return this thread's wrapper: a project's own ``migrate`` may work in threads."""
        for connection in _connections(None):
            if wrapper_of(connection) is None:
                wrapper = _install(stack, connection, max_retries, move=heal)
                wrapper.audience.reports.append(report)
        return wrapper_of(connections[using])

    def sweep(using: str, plan: Any) -> None:
        if wrapper := wrapper_here(using):
            with sweeping():
                wrapper.sweep()

    def sweep_again(using: str, plan: Any = None, **_: object) -> None:
        wrapper = wrapper_here(using)
        if plan and wrapper:
            wrapper.sweep_again()

    with (
        ExitStack() as stack,
        _wrapped(None, report, max_retries, move=heal),
        receiving_plans(sweep),
        receiving(pre_migrate, sweep_again),  # the project's receivers may have set another role
    ):
        yield


@contextmanager
def _wrapped(
    using: str | Iterable[str] | None, report: Report, retries: int, *, move: bool
) -> Iterator[list[Wrapper]]:
    """Yield the wrappers that no outer block has installed already."""
    with ExitStack() as stack:
        wrappers = []
        for connection in _connections(using):
            wrapper = wrapper_of(connection)
            if wrapper is None:
                wrapper = _install(stack, connection, retries, move=move)
                wrappers.append(wrapper)
            wrapper.audience.reports.append(report)
            stack.callback(wrapper.audience.reports.remove, report)
            stack.push(wrapper.conclude)
        yield wrappers


def _connections(using: str | Iterable[str] | None) -> Iterator[BaseDatabaseWrapper]:
    met: list[BaseDatabaseWrapper] = []
    if isinstance(using, str):
        using = [using]
    for alias in connections if using is None else using:
        try:
            connection = connections[alias]
        except ImproperlyConfigured:
            if using is not None:
                raise
            continue
        # A test's MIRROR is the connection of another alias.
        if connection.vendor == "postgresql" and connection not in met:
            met.append(connection)
            if connection.settings_dict["AUTOCOMMIT"]:
                yield connection


def forget_sweeps(database: BaseDatabaseWrapper) -> None:
    """Have the sequences of a database checked anew before the next statement that may insert."""
    for connection in connections.all(initialized_only=True):
        wrapper = wrapper_of(connection)
        if wrapper and driver.address(connection) == driver.address(database):
            wrapper.forget_sweep()


def wrapper_of(connection: BaseDatabaseWrapper) -> Wrapper | None:
    wrappers = connection.execute_wrappers
    return next((each for each in wrappers if isinstance(each, Wrapper)), None)


def _install(
    stack: ExitStack, connection: BaseDatabaseWrapper, retries: int, *, move: bool
) -> Wrapper:
    wrapper = Wrapper(connection, retries=retries, move=move)
    connection.execute_wrappers.append(wrapper)
    stack.callback(_remove, weakref.ref(wrapper))  # a thread's connection ends with the thread
    return wrapper


def _remove(reference: weakref.ref[Wrapper]) -> None:
    # Not connection.execute_wrapper(), which removes whichever comes last when it ends.
    if wrapper := reference():
        with suppress(ValueError):
            wrapper.connection.execute_wrappers.remove(wrapper)
