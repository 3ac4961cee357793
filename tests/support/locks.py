"""Who holds the migration lock, whom the server watches, and sessions that block others."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Thread, Timer
from typing import TYPE_CHECKING, Any

from django.db import connection, connections, migrations, models
from django.db.models.signals import pre_migrate

from safemigrate.locking.errors import LockError
from safemigrate.locking.lock import migration_lock
from safemigrate.locking.timeouts import lock_timeout
from safemigrate.locking.twin import dial, twin
from tests.support.databases import rows, value
from tests.support.runs import eventually, in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safemigrate.report import LockWait
    from tests.support.project import Project

HERE = "datname = current_database()"
LOCK_SESSIONS = f"application_name LIKE 'safemigrate %' AND {HERE}"
HOLDERS = f"SELECT pid, application_name FROM pg_stat_activity WHERE {LOCK_SESSIONS}"
# Empty before PostgreSQL 14, which has no such setting.
INTERVAL = "SELECT coalesce(current_setting('client_connection_check_interval', true), '')"


def planned() -> None:
    """Do what ``migrate`` does once it has a plan."""
    pre_migrate.send(None, using="default", plan=[("a migration", False)])


def quiet(text: str) -> None:
    """Tell nobody."""


def unwatched() -> str:
    """Return the interval of a session that nobody watches: none, where there is no such thing."""
    return "0" if value("SHOW server_version_num") >= "140000" else ""


def watched() -> str:
    return unwatched() and "500ms"


def holders() -> list[tuple[Any, ...]]:
    return rows(HOLDERS)


def terminate(sessions: str, alias: str = "default") -> None:
    """End the sessions of which ``sessions`` is true, and wait until they are gone."""
    which = f"FROM pg_stat_activity WHERE {sessions}"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT pg_terminate_backend(pid) {which}")

        def are_gone() -> bool:
            # Within a transaction the view is a snapshot.
            cursor.execute(f"SELECT pg_stat_clear_snapshot(), (SELECT count(*) {which})")
            return bool(cursor.fetchone()[1] == 0)

        eventually(are_gone)


@contextmanager
def logged_in_as(role: str) -> Iterator[None]:
    """Let the alias connect as that role for a while."""
    settings = connection.settings_dict
    before = {name: settings[name] for name in ("USER", "PASSWORD")}
    connection.close()
    settings |= {"USER": role, "PASSWORD": "x"}
    try:
        yield
    finally:
        connection.close()
        settings |= before


def try_in_a_thread() -> Any:
    def attempt() -> bool:
        with migration_lock(connection, patience=0, tell=quiet) as asked:
            return asked.taken

    return in_threads(1, attempt)[0]


def is_free() -> bool:
    try:
        return bool(try_in_a_thread())
    except LockError:
        return False


# --- Lock timeouts

SHORT = 0.1
TAKE = "LOCK TABLE thing IN ACCESS SHARE MODE"
ALTER = "ALTER TABLE thing ADD note text"


class Blocker:
    """Another session, which holds a lock until it is told to let go."""

    def __init__(self) -> None:
        self.twin = twin(connection)
        dial(self.twin)
        self.cursor = self.twin.connection.cursor()

    def execute(self, sql: str) -> None:
        self.cursor.execute(sql)

    @property
    def pid(self) -> int:
        return int(self.twin.connection.info.backend_pid)

    def sees_waiting(self, pid: int) -> bool:
        self.execute(
            f"SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = {pid}"
        )
        return self.cursor.fetchone() is not None

    def let_go(self) -> None:
        self.twin.connection.rollback()


def tell_nobody(_: LockWait) -> None:
    """Tell nobody."""


@contextmanager
def patient(patience: float = 60, seconds: float = SHORT, **options: Any) -> Iterator[None]:
    with lock_timeout(connection, seconds, patience=patience, tell=tell_nobody, **options):
        yield


@contextmanager
def letting_go(blocker: Blocker, waits: list[LockWait]) -> Iterator[None]:
    """Let the blocker go once somebody has given up a lock."""

    def let_go() -> None:
        eventually(lambda: waits)
        blocker.let_go()

    thread = Thread(target=let_go)
    thread.start()
    yield
    thread.join()


@contextmanager
def letting_go_soon(blocker: Blocker, seconds: float = 0.5) -> Iterator[None]:
    timer = Timer(seconds, blocker.let_go)
    timer.start()
    yield
    timer.cancel()  # of what has not waited that long
    timer.join()


def sql(text: str = ALTER, reverse: str = "ALTER TABLE thing DROP note") -> migrations.RunSQL:
    return migrations.RunSQL(text, reverse)


def migrate(shop: Project, *args: Any, **options: Any) -> str:
    return shop.migrate(
        *args, command="safemigrate", **{"lock_timeout": SHORT, "lock_patience": 60, **options}
    )


def recorded() -> int:
    return int(value("SELECT count(*) FROM django_migrations WHERE app = 'app'"))


def note_of(error: BaseException) -> str:
    [(_, note)] = error.safemigrate_notes  # type: ignore[attr-defined]
    return str(note)


def made(name: str, *field: models.Field[Any, Any]) -> migrations.CreateModel:
    fields = [("id", models.BigAutoField(primary_key=True)), *(("other", each) for each in field)]
    return migrations.CreateModel(name, fields)
