"""Settings for Django's own test suite, with ``migrate`` replaced and the weather made.

STORM_COMMAND is ``migrate`` (Django's own) or ``safemigrate``. With STORM_SEQUENCES=behind every
sequence gives 1 before each ``migrate`` and is mended after it. storm.py runs it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core import management
from django.core.management.commands import migrate as djangos
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.test.runner import DiscoverRunner

if TYPE_CHECKING:
    import unittest
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

DATABASES = json.loads(os.environ["STORM_DATABASES"])
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "django_tests_secret_key"
TEST_RUNNER = "storm_settings.Runner"
USE_TZ = False

IDLE, IN_TRANSACTION = 0, 2
counts: Counter[str] = Counter()
storms: list[dict[str, dict[str, int]]] = []
SEQUENCES = """
    SELECT s.oid::pg_catalog.regclass::text, q.last_value, q.is_called::int,
           pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.quote_ident(a.attname)
    FROM pg_catalog.pg_class AS s
    JOIN pg_catalog.pg_depend AS d
      ON d.objid = s.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
     AND d.refobjsubid > 0
    JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
    CROSS JOIN LATERAL (
        SELECT COALESCE(pg_catalog.pg_sequence_last_value(s.oid), 0) AS last_value,
               pg_catalog.pg_sequence_last_value(s.oid) IS NOT NULL AS is_called) AS q
    WHERE s.relkind = 'S'
"""


class Runner(DiscoverRunner):
    """Replace ``migrate`` for the length of the run, and write down which tests failed."""

    def setup_databases(self, **kwargs: Any) -> Any:
        logger = logging.getLogger("safemigrate")
        logger.setLevel(logging.INFO)
        logger.addFilter(_count_resync)
        command: Any = djangos.Command
        if os.environ["STORM_COMMAND"] == "safemigrate":
            command = _replace_migrate()
            _wrap(MigrationExecutor, "migrate", _healed)
        if os.environ["STORM_SEQUENCES"] != "right":
            _wrap(command, "execute", _in_a_storm)
            _wrap(MigrationExecutor, "migrate", _in_a_storm)
        _wrap(command, "execute", _counted)
        return super().setup_databases(**kwargs)

    def run_suite(self, suite: unittest.TestSuite, **kwargs: Any) -> Any:
        result = super().run_suite(suite, **kwargs)
        bad = [test.id() for test, _ in [*result.failures, *result.errors]]
        bad += [test.id() for test in result.unexpectedSuccesses]
        found = {"run": result.testsRun, "skipped": len(result.skipped), "failed": sorted(bad)}
        found |= {"migrates": counts["migrates"], "resyncs": counts["resyncs"]}
        Path(os.environ["STORM_RESULT"]).write_text(json.dumps(found))
        return result


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    setattr(owner, name, wrapper(getattr(owner, name)))


def _replace_migrate() -> Any:
    # The tests override INSTALLED_APPS all the time, and the app with it.
    from safemigrate.management.commands.safemigrate import Lines
    from safemigrate.override.management.commands import migrate as ours

    # The law leaves our notices aside; some of Django's tests compare all that is printed.
    _wrap(Lines, "tell_line", lambda tell_line: lambda self, line: None)

    get_commands = management.get_commands

    @functools.wraps(get_commands)
    def with_ours() -> dict[str, str]:
        return {**get_commands(), "migrate": "safemigrate.override"}

    with_ours.__dict__["cache_clear"] = vars(management)["get_commands"].cache_clear
    management.get_commands = with_ours
    if os.environ["STORM_SEQUENCES"] != "right":
        ours.is_testing = lambda: False  # take the lock, as in production
    return ours.Command


def _count_resync(record: logging.LogRecord) -> bool:
    counts["resyncs"] += record.getMessage().startswith("Resynced")
    return True


def _counted(execute: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute)
    def counted(self: Any, *args: Any, **options: Any) -> Any:
        counts["migrates"] += 1
        return execute(self, *args, **options)

    return counted


def _healed(migrate: Callable[..., Any]) -> Callable[..., Any]:
    """Heal where a test uses the executor without the command, as a script would."""

    @functools.wraps(migrate)
    def healed(*args: Any, **options: Any) -> Any:
        from safemigrate import healing

        with healing():
            return migrate(*args, **options)

    return healed


def _in_a_storm(work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def stormy(*args: Any, **options: Any) -> Any:
        if storms:
            return work(*args, **options)
        found = [each for each in connections.all() if _can_be_asked(each)]
        before = {each.alias: _put_behind(each) for each in found}
        storms.append(before)
        try:
            return work(*args, **options)
        finally:
            storms.remove(before)
            for alias, was in before.items():
                _mend(connections[alias], was)

    return stormy


def _can_be_asked(connection: BaseDatabaseWrapper) -> bool:
    if connection.vendor != "postgresql" or connection.connection is None:
        # Before the first statement there is nothing to put behind, or a test counts connections.
        return False
    return _status(connection) in (IDLE, IN_TRANSACTION)


def _status(connection: BaseDatabaseWrapper) -> int:
    return int(connection.connection.info.transaction_status)


def _sequences(connection: BaseDatabaseWrapper) -> list[tuple[Any, ...]]:
    return _send(connection, SEQUENCES)


def _put_behind(connection: BaseDatabaseWrapper) -> dict[str, int]:
    """Let every sequence give 1 next; return what each would have given."""
    was = {name: last + called for name, last, called, *_ in _sequences(connection)}
    for name in was:
        _send(connection, "SELECT setval(%s::regclass, 1, false)", [name])
    return was


def _mend(connection: BaseDatabaseWrapper, was: dict[str, int]) -> None:
    """Let every sequence be past its table, and not short of where it was."""
    with ExitStack() as stack:
        if not _can_be_asked(connection):
            connection = stack.enter_context(closing(connection.copy()))
            connection.ensure_connection()
        for name, last, called, table, column in _sequences(connection):
            largest = _send(connection, f"SELECT COALESCE(max({column}), 0) FROM {table}")[0][0]
            wanted = max(largest + 1, was.get(name, 1))
            if last + called < wanted:
                _send(connection, "SELECT setval(%s::regclass, %s, false)", [name, wanted])


def _send(connection: BaseDatabaseWrapper, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
    """Send a statement past the wrappers and the query log."""
    with connection.connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
