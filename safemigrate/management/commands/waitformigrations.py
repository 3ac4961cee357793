"""Wait until another process has applied every migration that this code has."""

from __future__ import annotations

from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import (
    DEFAULT_DB_ALIAS,
    Error,
    OperationalError,
    ProgrammingError,
    connections,
)
from django.db.migrations.loader import MigrationLoader
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_delay,
    wait_random,
)

from safemigrate.driver import deadline, is_of_the_connection, sqlstate
from safemigrate.locking.twin import LONGEST_ATTEMPT, SHORTEST_ATTEMPT, twin
from safemigrate.locking.wait import Telling, error_of, within
from safemigrate.management.arguments import seconds, whole_number
from safemigrate.printing import first_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from django.db.backends.base.base import BaseDatabaseWrapper
    from tenacity import RetryCallState

Key = tuple[str, str]

UNDEFINED_TABLE = "42P01"
# Not qualified: the search path decides which table it is, as it does for migrate.
APPLIED = "SELECT app, name FROM django_migrations"


class Wanted:
    """The migrations that the code has, read from disk once."""

    def __init__(self) -> None:
        loader = MigrationLoader(None)
        self.keys: list[Key] = sorted(loader.graph.nodes)
        self._replaces: dict[Key, list[Key]] = {
            key: [(app, name) for app, name in migration.replaces]
            for key, migration in loader.disk_migrations.items()
        }

    def missing(self, applied: set[Key]) -> list[Key]:
        """Return those that are not applied, in the order of their names."""
        return [key for key in self.keys if not self._is_applied(key, applied)]

    def _is_applied(self, key: Key, applied: set[Key]) -> bool:
        # Migrate records a squashed migration only after the last of those that it replaces.
        replaced = self._replaces.get(key)
        return key in applied or (
            bool(replaced) and all(self._is_applied(each, applied) for each in replaced or ())
        )


class Applied:
    """The recorded migrations, read over a connection that is reopened when it breaks.

    No attempt outlasts ``timeout`` seconds by much: a firewall may drop packets, and somebody may
    lock the table.
    """

    def __init__(self, connection: BaseDatabaseWrapper, timeout: int) -> None:
        self._connection = twin(connection)
        self._longest = max(SHORTEST_ATTEMPT, min(timeout, LONGEST_ATTEMPT))
        if connection.vendor == "postgresql":
            self._connection.settings_dict["OPTIONS"].setdefault("connect_timeout", self._longest)

    def read(self) -> set[Key]:
        """Return the recorded migrations: none if the table does not exist yet."""
        started = monotonic()
        try:
            with self._connection.cursor() as cursor, self._limited():
                cursor.execute(APPLIED)
                return set(cursor.fetchall())
        except ProgrammingError as error:
            if sqlstate(error) == UNDEFINED_TABLE:
                return set()
            raise
        except Error as error:
            if not is_of_the_connection(error):
                raise
            self._connection.close()
            is_late = monotonic() - started >= self._longest
            why = f"no answer within {self._longest} s" if is_late else str(error)
            raise OperationalError(why) from error

    def _limited(self) -> AbstractContextManager[None]:
        if self._connection.vendor == "postgresql":
            return deadline(self._connection, self._longest)
        return nullcontext()

    def close(self) -> None:
        self._connection.close()


class Command(BaseCommand):
    help = (
        "Waits until every migration of this code has been applied by another process, and "
        "applies none itself. When its time is over, it lists what is missing and exits with "
        "status 1."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help='The database to check. Default: "default".',
        )
        parser.add_argument(
            "--timeout",
            type=whole_number,
            default=600,
            metavar="SECONDS",
            help="Give up after this many seconds; with 0, check once. Default: 600.",
        )
        parser.add_argument(
            "--interval",
            type=seconds,
            default=2.0,
            metavar="SECONDS",
            help="Seconds between two checks. Default: 2.",
        )

    def handle(
        self, *args: Any, database: str, timeout: int, interval: float, **options: Any
    ) -> None:
        if hasattr(connections[database], "schema_name"):  # django-tenants, or a package like it
            raise CommandError(
                f'The database "{database}" has a schema for each tenant, and waitformigrations '
                "reads one. Wait until the process that migrates them has ended."
            )
        self.verbosity = options["verbosity"]
        self.alias = database
        self.timeout = timeout
        wanted = Wanted()
        applied = Applied(connections[database], timeout)
        try:
            self._retrying(interval)(lambda: wanted.missing(applied.read()))
        except Error as error:
            raise CommandError(
                f'The migrations of database "{database}" could not be read: {first_line(error)}'
            ) from error
        finally:
            applied.close()
        self._tell(f'All {len(wanted.keys)} migrations are applied on database "{database}".')

    def _retrying(self, interval: float) -> Retrying:
        # Processes that start together should not all ask at the same moment.
        wait = wait_random(0.8 * interval, 1.2 * interval)
        return Retrying(
            retry=retry_if_result(bool) | retry_if_exception_type(OperationalError),
            stop=stop_after_delay(self.timeout),
            wait=within(self.timeout, wait),
            before_sleep=Telling(self._tell, self._sentence),
            retry_error_callback=self._give_up,
        )

    def _sentence(self, state: RetryCallState) -> str:
        return f"Waiting up to {self.timeout} s for {self._reason(state)}"

    def _reason(self, state: RetryCallState) -> str:
        on = f'database "{self.alias}"'
        if error := error_of(state):
            return f"{on}: {first_line(error)}"
        missing = _missing(state)
        first = ".".join(missing[0])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"migrations on {on}: {first}{more}"

    def _give_up(self, state: RetryCallState) -> None:
        if error := error_of(state):
            raise CommandError(
                f'Gave up after {self.timeout} s: database "{self.alias}": {first_line(error)}'
            ) from error
        missing = _missing(state)
        raise CommandError(
            f"Gave up after {self.timeout} s: {len(missing)} of the migrations on database "
            f'"{self.alias}" are not applied:\n'
            + "\n".join(f"  {app}.{name}" for app, name in missing)
        )

    def _tell(self, text: str) -> None:
        if self.verbosity >= 1:
            self.stdout.write(text)
            self.stdout.flush()


def _missing(state: RetryCallState) -> list[Key]:
    missing: list[Key] = state.outcome.result() if state.outcome else []
    return missing
