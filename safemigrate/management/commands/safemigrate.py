"""``migrate``, with every sequence that is behind healed on the way."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO, cast

from django.core import management
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import DEFAULT_DB_ALIAS, connections

from safemigrate import conf
from safemigrate.heal.block import Note, Report, Resync, healing, resync_first
from safemigrate.locking.lock import LockError, Turn, turn
from safemigrate.locking.timeouts import lock_timeout
from safemigrate.locking.wait import wait_for_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# A run inside a run, as of call_command("migrate") in a migration, leaves the telling to the outer.
_is_running: ContextVar[bool] = ContextVar("safemigrate_is_running", default=False)


def whole_number(value: object) -> int:
    """Convert an option's value to an int that is 0 or more; raises ArgumentTypeError."""
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise ArgumentTypeError(f"{value!r} is not a whole number, 0 or more")
    return number


def seconds(value: object) -> float:
    """Convert an option's value to a number above 0; raises ArgumentTypeError."""
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < 1_000_000:
        raise ArgumentTypeError(f"{value!r} is not a number of seconds above 0")
    return number


class Lines:
    """A stream that holds back what is told in the middle of a line until the line has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] = []
        self._is_at_start = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int | None:
        written = self._stream.write(text)
        self._is_at_start = text.endswith("\n") if text else self._is_at_start
        if self._is_at_start:
            self._let_go()
        return written

    def tell_line(self, line: str) -> None:
        """Write ``line`` as a line of its own, at once or after the one that is under way."""
        self._held.append(line)
        if self._is_at_start:
            self._let_go()

    def end(self) -> None:
        """Write what is still held back, breaking the line that nobody ended."""
        if self._held:
            self._stream.write("\n")
            self._let_go()

    def _let_go(self) -> None:
        for line in self._held:
            self._stream.write(f"{line}\n")
        self._held.clear()


@dataclass(frozen=True)
class _Choices:
    """The options of the command line, or else the settings, checked."""

    max_retries: int
    heal: bool
    resync_first: bool
    lock: bool
    lock_wait: int
    wait_for_database: int
    lock_timeout: float | None
    lock_patience: int
    retry_python: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> _Choices:
        def number(name: str, setting: Callable[[], int]) -> int:
            given = options.get(name)
            return setting() if given is None else whole_number(given)

        try:
            return cls(
                max_retries=number("max_retries", conf.max_retries),
                heal=conf.heal() and not options.get("no_heal"),
                resync_first=bool(options.get("resync_first")),
                lock=conf.lock() and not options.get("no_lock"),
                lock_wait=number("lock_wait", conf.lock_wait),
                wait_for_database=number("wait_for_database", conf.wait_for_database),
                lock_timeout=seconds(options["lock_timeout"])
                if options.get("lock_timeout") is not None
                else conf.lock_timeout(),
                lock_patience=number("lock_patience", conf.lock_patience),
                retry_python=bool(options.get("retry_python")),
            )
        except (ArgumentTypeError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error


class Command(BaseCommand):
    help = (
        "Does what migrate does; a PostgreSQL sequence that has fallen behind its table is moved "
        "forward on the way, and what failed because of it is repeated."
    )
    own_options: dict[str, dict[str, Any]] = {
        "max_retries": {
            "type": whole_number,
            "metavar": "N",
            "help": "Repeat one statement for one table up to N times; 0 resyncs but repeats "
            "nothing. Default: the setting SAFEMIGRATE_MAX_RETRIES, or 3.",
        },
        "no_heal": {
            "action": "store_true",
            "help": "Touch no sequence and repeat nothing, only say what was found. "
            "Default: the setting SAFEMIGRATE_HEAL, or healing.",
        },
        "resync_first": {
            "action": "store_true",
            "help": "Set right every sequence of the current schemas before migrating, for what "
            "can't be seen on the way: COPY, rows that triggers insert with ON CONFLICT. With "
            "--no-heal only say which are behind.",
        },
        "lock_wait": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "Wait up to so many seconds while another safemigrate has its turn with the "
            "database; 0 tries once. Default: the setting SAFEMIGRATE_LOCK_WAIT, or 600.",
        },
        "no_lock": {
            "action": "store_true",
            "help": "Take no turns with other runs. Default: the setting SAFEMIGRATE_LOCK, or "
            "taking turns.",
        },
        "wait_for_database": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "Wait up to so many seconds for the database to accept connections. "
            "Default: the setting SAFEMIGRATE_WAIT_FOR_DATABASE, or 0.",
        },
        "lock_timeout": {
            "type": seconds,
            "metavar": "SECONDS",
            "help": "Give up a lock that isn't had in so many seconds, let others pass, and try "
            "again. Default: the setting SAFEMIGRATE_LOCK_TIMEOUT, or waiting as migrate does.",
        },
        "lock_patience": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "With --lock-timeout: try again for so many seconds. Default: the setting "
            "SAFEMIGRATE_LOCK_PATIENCE, or 300.",
        },
        "retry_python": {
            "action": "store_true",
            "help": "With --lock-timeout: retry a migration though Python of the project's "
            "(RunPython) has run in it.",
        },
    }
    # Runs that write nothing take no turn.
    options_that_only_read = ("plan", "check_unapplied")

    @cached_property
    def migrate(self) -> BaseCommand:
        """The project's own ``migrate``, whichever app it comes from."""
        found: str | BaseCommand = management.get_commands()["migrate"]
        command = (
            found
            if isinstance(found, BaseCommand)
            else management.load_command_class(found, "migrate")
        )
        return command.migrate if isinstance(command, Command) else command

    @property
    def stealth_options(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.migrate.base_stealth_options, *self.migrate.stealth_options)

    @cached_property
    def added_options(self) -> list[str]:
        """Those of our options that ``migrate`` has none of the same name for."""
        parser = self.migrate.create_parser("manage.py", "migrate")
        theirs = {action.dest for action in parser._actions}
        return [name for name in self.own_options if name not in theirs]

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        is_typed = getattr(self, "_called_from_command_line", False)
        self.migrate._called_from_command_line = is_typed  # type: ignore[attr-defined]
        parser = self.migrate.create_parser(prog_name, subcommand, **kwargs)
        parser.description = self.help
        group = parser.add_argument_group("safemigrate")
        for name in self.added_options:
            group.add_argument(f"--{name.replace('_', '-')}", **self.own_options[name])
        return parser

    def execute(self, *args: Any, **options: Any) -> str | None:
        own = {name: options.pop(name, None) for name in self.added_options}
        self.verbosity = options.get("verbosity", 1)
        stream = options.get("stdout") or cast("TextIO", self.stdout._out)
        self.lines = Lines(stream)
        if options.get("stderr"):
            self.stderr = OutputWrapper(options["stderr"])
        if options.get("stdout"):
            options["stdout"] = self.lines
        else:
            # Not among the options: django-tenants pickles those for other processes.
            self.migrate.stdout = OutputWrapper(cast("TextIO", self.lines))
        try:
            # Some write past the command: a migration's print(), django-tenants' executors.
            heard = redirect_stdout(cast("TextIO", self.lines))
            with heard if stream is sys.stdout else nullcontext():
                return self._run(_Choices.of(own), args, options)
        finally:
            self.lines.end()

    def _refuse_processes(self, options: dict[str, Any]) -> None:
        """Raise CommandError where django-tenants would migrate in processes that don't heal."""
        named = options.get("executor") or os.environ.get("EXECUTOR")
        if "executor" in options and named == "subprocess":
            raise CommandError(
                "With the executor 'subprocess' each tenant is migrated by migrate_schemas in a "
                "process of its own, where safemigrate can't heal. Use --executor=standard or "
                "--executor=multiprocessing."
            )

    def takes_turn(self, options: dict[str, Any]) -> bool:
        return not any(options.get(name) for name in self.options_that_only_read)

    def _run(self, choices: _Choices, args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
        self._refuse_processes(options)
        connection = connections[options.get("database") or DEFAULT_DB_ALIAS]
        if not self.takes_turn(options):
            choices = replace(choices, lock=False, resync_first=False)
        wait_for_database(connection, patience=choices.wait_for_database, tell=self._tell_waiting)
        with (
            self._turn(connection, choices),
            self._healing(choices, connection.alias),
            lock_timeout(
                connection,
                choices.lock_timeout,
                patience=choices.lock_patience,
                retry_python=choices.retry_python,
                tell=lambda wait: self.stderr.write(f"safemigrate: {wait}"),
            ),
        ):
            return self.migrate.execute(*args, **options)

    @contextmanager
    def _turn(self, connection: BaseDatabaseWrapper, choices: _Choices) -> Iterator[None]:
        if not choices.lock:
            yield
            return
        mine = Turn(taken=False)
        try:
            with turn(connection, patience=choices.lock_wait, tell=self._tell_waiting) as mine:
                yield
        except LockError as error:
            raise CommandError(str(error)) from error
        finally:
            if mine.lost:
                self.stderr.write(
                    "The connection that held this run's turn was lost on the way: another run "
                    "may have migrated at the same time."
                )

    @contextmanager
    def _healing(self, choices: _Choices, using: str) -> Iterator[None]:
        is_nested = _is_running.get()
        running = _is_running.set(True)
        tell = None if is_nested else self._tell
        first, report = Report(), Report()
        try:
            if choices.resync_first:
                first = resync_first(using, heal=choices.heal, tell=tell)
            with healing(max_retries=choices.max_retries, heal=choices.heal, tell=tell) as report:
                yield
        finally:
            _is_running.reset(running)
            resyncs = [*first.resyncs, *report.resyncs]
            if resyncs and self.verbosity >= 1 and not is_nested:
                self.lines.tell_line(self.style.MIGRATE_HEADING(_summary(resyncs)))

    def _tell_waiting(self, text: str) -> None:
        if self.verbosity >= 1:
            self.lines.tell_line(text)
            self.lines.flush()

    def _tell(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            if self.verbosity >= 1:
                self.lines.tell_line(f"  {event}")
        elif self.verbosity >= 1 or event.is_fatal:
            self.stderr.write(f"safemigrate: {event}")


def _summary(resyncs: list[Resync]) -> str:
    repeats = sum(each.repeated for each in resyncs)
    sequences = "sequence was" if len(resyncs) == 1 else "sequences were"
    statements = "statement" if repeats == 1 else "statements"
    return f"{len(resyncs)} {sequences} behind and resynced; {repeats} {statements} repeated."
