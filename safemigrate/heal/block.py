"""``healing()``: let no sequence that is behind stop, or cut short, what a block does.

It puts an execute wrapper (Django's "database instrumentation") on the PostgreSQL connections of
this thread, and takes it away again.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from safemigrate import conf
from safemigrate.report import Audience, Note, Report, Resync
from safemigrate.sequences.sweep import current_schemas, sequences_in, survey

from .healer import Healer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["Note", "Report", "Resync", "healing", "resync_first"]


@contextmanager
def healing(
    using: str | Iterable[str] | None = None,
    *,
    max_retries: int | None = None,
    heal: bool | None = None,
    tell: Callable[[Resync | Note], None] | None = None,
) -> Iterator[Report]:
    """Let no sequence that is behind stop, or silently cut short, what the block does.

    ``using`` is an alias, several, or None for every PostgreSQL database of the settings; only
    the connections of the current thread are meant. ``max_retries`` is how often one statement is
    repeated for one table (default: the setting ``SAFEMIGRATE_MAX_RETRIES``, 3); 0 resyncs without
    repeating. With ``heal`` False (default: ``SAFEMIGRATE_HEAL``, True) nothing is touched, only
    noted. ``tell`` is called with each :class:`Resync` and :class:`Note` as it happens.

    Inside another ``healing()`` of the same connection the outer one's options stand. A connection
    that is configured with ``AUTOCOMMIT: False`` is left alone.

    Yields a :class:`Report`. Raises ImproperlyConfigured for a setting that can't be used.
    """
    retries = conf.max_retries() if max_retries is None else max_retries
    touch = conf.heal() if heal is None else heal
    report = Report(tell=tell)
    with ExitStack() as stack:
        for connection in _connections(using):
            stack.enter_context(_installed(connection, report, retries=retries, touch=touch))
        yield report


def resync_first(
    using: str, *, heal: bool = True, tell: Callable[[Resync | Note], None] | None = None
) -> Report:
    """Set right every sequence in the current schemas of a database, once and beforehand.

    For what :func:`healing` can't see, such as COPY and rows that triggers insert with ON CONFLICT.
    """
    report = Report(tell=tell)
    for connection in _connections(using):
        audience = Audience(connection.alias)
        audience.reports.append(report)
        oids = sequences_in(connection, current_schemas(connection))
        for chunk in survey(connection, oids, move=heal):
            for finding in chunk:
                audience.tell_of(finding)
                if finding.status == "unknown":
                    audience.note(f"Could not look at {finding.sequence}: {finding.obstacle}")
    return report


def _connections(using: str | Iterable[str] | None) -> Iterator[BaseDatabaseWrapper]:
    met: list[BaseDatabaseWrapper] = []
    for alias in [using] if isinstance(using, str) else using or connections:
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


@contextmanager
def _installed(
    connection: BaseDatabaseWrapper, report: Report, *, retries: int, touch: bool
) -> Iterator[None]:
    wrappers = connection.execute_wrappers
    healer = next((each for each in wrappers if isinstance(each, Healer)), None)
    is_outermost = healer is None
    if healer is None:
        healer = Healer(connection, retries=retries, touch=touch)
        wrappers.append(healer)
    healer.audience.reports.append(report)
    try:
        yield
    except BaseException as error:
        healer.settle(error)
        raise
    else:
        healer.settle()
    finally:
        healer.audience.reports.remove(report)
        # By identity: leaving connection.execute_wrapper() takes off whichever stands last.
        if is_outermost and healer in wrappers:
            wrappers.remove(healer)
