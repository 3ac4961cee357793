"""Django system checks: settings, whose the command is, what is behind, what tables lost."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.core import checks, management
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.db import Error, connections

from safemigrate import conf
from safemigrate.printing import command_line, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

PACKAGE = "safemigrate"
# At most this many sequences are named; the command names them all.
NAMED = 10


def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """Report every setting that a command would refuse, and every name that is no setting."""
    known = [f"SAFEMIGRATE_{reader.__name__.upper()}" for reader in conf.READERS]
    names = {name for name in dir(settings) if name.startswith("SAFE")} - {*known}
    unknown = {
        name for name in names if name.startswith("SAFEMIGRATE_") or _did_you_mean(name, known)
    }
    if isinstance(getattr(settings, PACKAGE.upper(), None), dict):  # a str is django-safemigrate's
        unknown.add(PACKAGE.upper())
    return [
        *(
            checks.Error(refusal, id="safemigrate.E001")
            for refusal in map(_refusal, conf.READERS)
            if refusal
        ),
        *(
            checks.Warning(
                f"safemigrate has no setting {name}.",
                hint=f"{_did_you_mean(name, known)}The settings are {', '.join(known)}.",
                id="safemigrate.W005",
            )
            for name in sorted(unknown)
        ),
    ]


def _did_you_mean(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, 1, cutoff=0.85)
    return f"Did you mean {close[0]}? " if close else ""


def _refusal(reader: Callable[[], object]) -> str:
    try:
        reader()
    except ImproperlyConfigured as error:
        return str(error)
    return ""


def check_command(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """Warn if ``safemigrate`` is another app's command, or hides one."""
    command: str | BaseCommand | None = management.get_commands().get(PACKAGE)
    owner = type(command).__module__ if isinstance(command, BaseCommand) else command
    if owner is None or owner == PACKAGE or owner.startswith(f"{PACKAGE}."):
        return [*_hidden_commands()]
    return [
        checks.Warning(
            f"'manage.py safemigrate' is the command of {owner!r}, not of this package.",
            hint=f"List {PACKAGE!r} before {owner!r} in INSTALLED_APPS, or leave one of them out.",
            id="safemigrate.W001",
        )
    ]


def _hidden_commands() -> Iterator[checks.CheckMessage]:
    for config in apps.get_app_configs():
        path = Path(config.path, "management", "commands", f"{PACKAGE}.py")
        if config.name != PACKAGE and path.exists():
            yield checks.Warning(
                f"'manage.py safemigrate' is the command of this package, not of {config.name!r}.",
                hint=f"If the other one is meant, list {config.name!r} before {PACKAGE!r} in "
                f"INSTALLED_APPS. Otherwise take {config.name!r} out.",
                id="safemigrate.W008",
            )


def check_databases(
    app_configs: Any, databases: Iterable[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Warn of what is behind, lost or beyond reach in those databases that ``check`` was given."""
    return [
        warning
        for alias in databases or ()
        if connections[alias].vendor == "postgresql"
        for warning in _warnings(connections[alias])
    ]


def _warnings(connection: BaseDatabaseWrapper) -> Iterator[checks.CheckMessage]:
    # Every process registers the checks, and few ask a database.
    from safemigrate.sequences.losses import find_losses  # noqa: PLC0415
    from safemigrate.sequences.needs import needs_of_apps  # noqa: PLC0415
    from safemigrate.sequences.scope import current_schemas, feeds_of  # noqa: PLC0415
    from safemigrate.sequences.sweep import survey  # noqa: PLC0415

    alias = connection.alias
    try:
        findings = list(survey(connection, feeds_of(connection)))
        lost = find_losses(connection, needs_of_apps(connection), current_schemas(connection))
    except Error as error:
        yield checks.Warning(
            f"The database {alias!r} could not be checked: {one_line(str(error))}",
            id="safemigrate.W007",
        )
        return
    if behind := _named(each.sequence for each in findings if each.is_behind):
        yield checks.Warning(
            f"Sequences of the database {alias!r} are behind the keys they feed: {behind}.",
            hint=f"Type: {command_line(alias)}",
            id="safemigrate.W002",
        )
    hint = f"Type: {command_line(alias, '--check')}"
    if names := _named(f"{'.'.join(each.place)} ({each.status})" for each in lost):
        yield checks.Warning(
            f"Tables of the database {alias!r} have lost what their models need: {names}.",
            hint=hint,
            id="safemigrate.W006",
        )
    if unknown := _named(each.sequence for each in findings if each.status == "unknown"):
        yield checks.Warning(
            f"Sequences of the database {alias!r} could not be checked: {unknown}.",
            hint=hint,
            id="safemigrate.W007",
        )


def _named(names: Iterable[object]) -> str:
    every = [printable(str(name)) for name in names]
    more = len(every) - NAMED
    return ", ".join(every[:NAMED]) + (f" and {more} more" if more > 0 else "")


def register() -> None:
    """Register the checks; those that ask databases are for ``check --deploy --database``."""
    checks.register(check_settings)
    checks.register(check_command)
    checks.register(check_databases, checks.Tags.database, deploy=True)
