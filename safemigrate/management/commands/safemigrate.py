"""``migrate``, with every sequence in sync before it writes, and retries of what still fails."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentTypeError
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from contextvars import ContextVar
from functools import cached_property, partial
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from django.core import management
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.core.management.color import color_style, no_style
from django.db import DEFAULT_DB_ALIAS, OperationalError, connections

from safemigrate import conf
from safemigrate.heal.block import forget_sweeps, healing_migrate
from safemigrate.interrupt import Terminated, ending_on_signals
from safemigrate.locking.checked import checking_lock
from safemigrate.locking.errors import LockError
from safemigrate.locking.lock import migration_lock
from safemigrate.locking.timeouts import lock_timeout
from safemigrate.locking.wait import wait_for_database
from safemigrate.management.arguments import seconds, whole_number
from safemigrate.management.jsonreport import recording
from safemigrate.management.output import Lines
from safemigrate.management.preflight import requiring_record
from safemigrate.management.progress import saying_if_slow
from safemigrate.management.unrecorded import explaining_unrecorded
from safemigrate.printing import first_line, printable
from safemigrate.report import Resync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.locking.lock import MigrationLock
    from safemigrate.report import LockWait, Note

# A run inside a run, as by call_command("migrate") in a migration, prints no notices of its own.
_is_running: ContextVar[bool] = ContextVar("safemigrate_is_running", default=False)


class _Choices(NamedTuple):
    """The options of the command line, or else the settings, validated."""

    max_retries: int
    heal: bool
    lock: bool
    lock_wait: int
    wait_for_database: int
    lock_timeout: float | None
    lock_patience: int
    retry_python: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> _Choices:
        def chosen(name: str, convert: Callable[[object], Any]) -> Any:
            given = options.get(name)
            return getattr(conf, name)() if given is None else convert(given)

        try:
            return cls(
                max_retries=chosen("max_retries", whole_number),
                heal=conf.heal() and not options.get("no_heal"),
                lock=conf.lock() and not options.get("no_lock"),
                lock_wait=chosen("lock_wait", whole_number),
                wait_for_database=chosen("wait_for_database", whole_number),
                lock_timeout=chosen("lock_timeout", seconds),
                lock_patience=chosen("lock_patience", whole_number),
                retry_python=bool(options.get("retry_python")),
            )
        except (ArgumentTypeError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error


class Command(BaseCommand):
    help = (
        "Does what migrate does. PostgreSQL sequences that are behind their tables are resynced "
        "before anything is written, and a statement that fails because of one outside of a "
        "transaction is retried."
    )
    own_options: dict[str, dict[str, Any]] = {
        "max_retries": {
            "type": whole_number,
            "metavar": "N",
            "help": "Retry a statement that failed in autocommit up to N times; with 0, resync but "
            "never retry. Default: the setting SAFEMIGRATE_MAX_RETRIES, or 3.",
        },
        "no_heal": {
            "action": "store_true",
            "help": "Report the sequences that are behind, but move none and retry nothing. "
            "Default: the setting SAFEMIGRATE_HEAL, or to heal.",
        },
        "lock_wait": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "Wait up to this many seconds while another run holds the migration "
            "lock; with 0, try once. Default: the setting SAFEMIGRATE_LOCK_WAIT, or 600.",
        },
        "no_lock": {
            "action": "store_true",
            "help": "Do without the migration lock. Default: the setting SAFEMIGRATE_LOCK, or to "
            "take it.",
        },
        "wait_for_database": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "Wait up to this many seconds for the database to accept connections. "
            "Default: the setting SAFEMIGRATE_WAIT_FOR_DATABASE, or 0.",
        },
        "json_report": {
            "metavar": "FILE",
            "help": "Write what the run resynced, retried, noted and waited for to FILE, as JSON; "
            "/dev/fd/3 is the descriptor 3. It is written when the run fails, too.",
        },
        "lock_timeout": {
            "type": seconds,
            "metavar": "SECONDS",
            "help": "Let no statement wait longer than this for a lock: give up, let others pass, "
            "and try again. Default: the setting SAFEMIGRATE_LOCK_TIMEOUT, or waiting as migrate "
            "does.",
        },
        "lock_patience": {
            "type": whole_number,
            "metavar": "SECONDS",
            "help": "With --lock-timeout: try again for this many seconds. Default: the setting "
            "SAFEMIGRATE_LOCK_PATIENCE, or 300.",
        },
        "retry_python": {
            "action": "store_true",
            "help": "With --lock-timeout: retry also a migration whose Python (RunPython) has run "
            "already. It runs again, so it must be repeatable.",
        },
    }

    # Those of ours whose names migrate does not have already, once it has made its parser.
    added_options: Iterable[str] = own_options

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

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        is_typed = getattr(self, "_called_from_command_line", False)
        self.migrate._called_from_command_line = is_typed  # type: ignore[attr-defined]
        parser = self.migrate.create_parser(prog_name, subcommand, **kwargs)
        parser.description = self.help
        theirs = {action.dest for action in parser._actions}
        self.added_options = [name for name in self.own_options if name not in theirs]
        group = parser.add_argument_group("safemigrate")
        for name in self.added_options:
            group.add_argument(f"--{name.replace('_', '-')}", **self.own_options[name])
        return parser

    def execute(self, *args: Any, **options: Any) -> str | None:
        own = {name: options.pop(name, None) for name in self.added_options}
        self.verbosity = options.get("verbosity", 1)
        if options.get("force_color"):
            self.style = color_style(force_color=True)
        elif options.get("no_color"):
            self.style = no_style()
            self.stderr.style_func = None
        if options.get("stderr"):
            self.stderr = OutputWrapper(options["stderr"])
        try:
            alias = options.get("database") or DEFAULT_DB_ALIAS
            with (
                self._listening(options),
                recording(own.get("json_report"), alias, self._tell_note) as self.record,
            ):
                return self._run(_Choices.of(own), args, options)
        except Terminated:
            self._tell_note("Ended by SIGTERM; what was not committed is rolled back.")
            sys.exit(Terminated.status)
        except KeyboardInterrupt:
            if getattr(self, "_called_from_command_line", False):
                raise KeyboardInterrupt from None  # without the chain of what it interrupted
            raise

    @contextmanager
    def _listening(self, options: dict[str, Any]) -> Iterator[None]:
        """Print our lines between those of the project's ``migrate``, wherever it prints them."""
        # Not among the options: django-tenants pickles those for other processes.
        printer: Any = None if options.get("stdout") else self.migrate.stdout
        stream = cast("TextIO", options.get("stdout") or getattr(printer, "_out", sys.stdout))
        self.lines = Lines(stream)
        lines = cast("TextIO", self.lines)
        if printer is None:
            options["stdout"] = lines
        else:
            printer._out = lines
        # Some do not print through the command: print() in a migration, django-tenants' executors.
        # Not in a thread: of two at once one would put back what the other has put there.
        # Nor where there is none, because it was closed before Python started.
        is_main = current_thread() is main_thread()
        is_heard = is_main and stream is not None and stream is sys.stdout
        heard = redirect_stdout(lines) if is_heard else nullcontext()
        try:
            with heard:
                yield
        finally:
            self.lines.end()
            if printer is not None:
                printer._out = stream

    def _refuse_processes(self, options: dict[str, Any]) -> None:
        """Raise CommandError where django-tenants would migrate in processes that don't heal."""
        named = options.get("executor") or os.environ.get("EXECUTOR")
        if "executor" in options and named == "subprocess":
            raise CommandError(
                "With the executor 'subprocess' each tenant is migrated by migrate_schemas in a "
                "process of its own, where safemigrate can't heal. Use --executor=standard or "
                "--executor=multiprocessing."
            )

    def takes_lock(self, options: dict[str, Any]) -> bool:
        return not (options.get("plan") or options.get("check_unapplied"))  # they write nothing

    def _run(self, choices: _Choices, args: tuple[Any, ...], options: dict[str, Any]) -> str | None:
        self._refuse_processes(options)
        connection = connections[options.get("database") or DEFAULT_DB_ALIAS]
        if not self.takes_lock(options):
            choices = choices._replace(lock=False)
        with ending_on_signals():
            with self.record.waiting("database", self._tell_waiting) as tell:
                self._wait_for_database(connection, choices.wait_for_database, tell)
            with (
                requiring_record(),  # asked before the sweep, in the order of the receivers
                self._healing(choices),  # whatever is written as the run connects
                self._locked(connection, choices),
                lock_timeout(
                    connection,
                    choices.lock_timeout,
                    patience=choices.lock_patience,
                    retry_python=choices.retry_python,
                    tell=self._tell_lock_wait,
                ),
                explaining_unrecorded(connection, self._note),
            ):
                return self.migrate.execute(*args, **options)

    def _wait_for_database(
        self, connection: BaseDatabaseWrapper, patience: int, tell: Callable[[str], None]
    ) -> None:
        try:
            wait_for_database(connection, patience=patience, tell=tell)
        except OperationalError as error:
            raise CommandError(
                f'Gave up after {patience} s: database "{connection.alias}": '
                f"{printable(first_line(error))}"
            ) from error

    @contextmanager
    def _locked(self, connection: BaseDatabaseWrapper, choices: _Choices) -> Iterator[None]:
        if not choices.lock:
            yield
            return
        mine: MigrationLock | None = None
        try:
            with ExitStack() as stack:
                with self.record.waiting("migration lock", self._tell_waiting) as tell:
                    mine = stack.enter_context(
                        migration_lock(
                            connection,
                            patience=choices.lock_wait,
                            tell=tell,
                            waited=partial(forget_sweeps, connection),
                        )
                    )
                stack.enter_context(checking_lock(connection, mine, self._note))
                yield
        except LockError as error:
            raise CommandError(str(error)) from error
        finally:
            if mine and mine.lost:
                self._note(
                    "The migration lock was lost during the run: another run may have migrated at "
                    "the same time."
                )

    @contextmanager
    def _healing(self, choices: _Choices) -> Iterator[None]:
        is_nested = _is_running.get()
        process = os.getpid()
        running = _is_running.set(True)
        report = self.record.report
        report.tell = None if is_nested else self._tell
        if self.verbosity >= 1:
            report.log_level = logging.DEBUG
        try:
            with healing_migrate(
                report,
                max_retries=choices.max_retries,
                heal=choices.heal,
                sweeping=self._sweeping,
            ):
                yield
        finally:
            _is_running.reset(running)
            is_forked = os.getpid() != process  # a child that has left the run
            if report.resyncs and self.verbosity >= 1 and not (is_nested or is_forked):
                self.lines.tell_line(self.style.MIGRATE_HEADING(_summary(report.resyncs)))

    def _sweeping(self) -> AbstractContextManager[None]:
        if self.verbosity == 0 or not self.lines.isatty():
            return nullcontext()
        return saying_if_slow("Checking every sequence ...", self._tell_waiting)

    def _tell_waiting(self, text: str) -> None:
        if self.verbosity >= 1:
            self.lines.tell_line(text)
            with suppress(Exception):  # it is told of the run, and does not decide it
                self.lines.flush()

    def _tell(self, event: Resync | Note) -> None:
        if isinstance(event, Resync):
            if self.verbosity >= 1:
                self.lines.tell_line(f"  {event}")
        elif event.is_fatal or self.verbosity >= (2 if event.is_expected else 1):
            self._tell_note(str(event))

    def _note(self, text: str) -> None:
        self.record.note(text)
        self._tell_note(text)

    def _tell_lock_wait(self, wait: LockWait) -> None:
        self.record.blocked_by.append(wait)
        if self.verbosity >= 1:
            self._tell_note(str(wait))

    def _tell_note(self, text: str) -> None:
        with suppress(Exception):  # it is told of the run, and does not decide it
            err: Any = self.stderr._out
            self.stderr.write(f"{self.lines.line_break(err)}safemigrate: {text}")


def _summary(resyncs: list[Resync]) -> str:
    count = len({(each.using, each.schema, each.sequence) for each in resyncs})
    retries = sum(each.retried for each in resyncs)
    sequences = "sequence was" if count == 1 else "sequences were"
    statements = "statement" if retries == 1 else "statements"
    return f"{count} {sequences} behind and resynced; {retries} {statements} retried."
