"""Around each migration: a lock that was lost, and what other runs did meanwhile."""

from __future__ import annotations

import io
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connections, transaction

from tests.support.databases import elsewhere, execute, rows, value
from tests.support.locks import LOCK_SESSIONS, recorded, terminate
from tests.support.project import Project, run_python
from tests.support.runs import eventually, somebody_migrating

pytestmark = pytest.mark.usefixtures("database")


def test_a_lock_lost_at_the_end_is_a_warning(project: Project) -> None:
    def lose(apps: Any, editor: Any) -> None:
        value(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LOCK_SESSIONS}")
        eventually(lambda: not rows(f"SELECT pid FROM pg_stat_activity WHERE {LOCK_SESSIONS}"))

    project.migration(run_python(lose, atomic=False), atomic=False)
    printed = project.migrate("app", command="safemigrate")
    assert "Applying app.0001_step... OK" in printed
    assert "lost during the run" in printed


def test_a_lock_lost_on_the_way_is_taken_again_before_the_next_migration(project: Project) -> None:
    lose = run_python(lambda apps, editor: terminate(LOCK_SESSIONS), atomic=False)
    project.migration(lose, atomic=False)
    project.migration(run_python(lambda apps, editor: None))
    printed = project.migrate("app", command="safemigrate")
    assert "Applying app.0002_step..." in printed
    assert "lost and taken again" in printed
    assert "may have migrated" not in printed


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_note_that_nobody_can_read_stops_nothing(project: Project) -> None:
    project.migration(run_python(lambda apps, editor: terminate(LOCK_SESSIONS)))
    project.migrate("app", command="safemigrate", stderr=Broken())
    assert recorded() == 1


def test_a_lock_that_another_run_has_taken_stops_this_one(project: Project) -> None:
    with ExitStack() as stack:

        def hand_over(apps: Any, editor: Any) -> None:
            terminate(LOCK_SESSIONS)
            stack.enter_context(somebody_migrating())

        project.migration(run_python(hand_over, atomic=False), atomic=False)
        project.migration(run_python(lambda apps, editor: pytest.fail("it was applied")))
        with pytest.raises(CommandError, match="was lost during the run, and is held by process"):
            project.migrate("app", command="safemigrate")
    assert rows("SELECT name FROM django_migrations WHERE app = 'app'") == [("0001_step",)]


@pytest.mark.parametrize("is_atomic", [True, False])
def test_a_migration_that_another_run_has_met_meanwhile_is_not_applied_again(
    project: Project, is_atomic: bool
) -> None:
    def overtake(apps: Any, editor: Any) -> None:
        terminate(LOCK_SESSIONS)
        execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('app', %s, now())",
            ["0002_step"],
        )

    project.migration(run_python(overtake, atomic=False), atomic=is_atomic)
    project.migration(run_python(lambda apps, editor: pytest.fail("it was applied")))
    with pytest.raises(CommandError, match="another run has dealt with app"):
        project.migrate("app", command="safemigrate")


@pytest.mark.parametrize("forwards", [True, False])
def test_a_migration_that_another_run_has_applied_meanwhile_is_rolled_back(
    project: Project, forwards: bool
) -> None:
    """The other run began only once the lock was free, and saw none of this one's rows."""

    def overtake(apps: Any, editor: Any) -> None:
        execute("INSERT INTO done (id) VALUES (1)")
        terminate(LOCK_SESSIONS)
        elsewhere(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('app', '0001_step', now())"
            if forwards
            else "DELETE FROM django_migrations WHERE app = 'app'"
        )

    execute("CREATE TABLE done (id int)")
    if forwards:
        project.migration(run_python(overtake))
    else:
        project.migration(run_python(lambda apps, editor: None, reverse_code=overtake))
        project.migrate("app")
    with pytest.raises(CommandError, match="another run has dealt with app"):
        project.migrate("app", *([] if forwards else ["zero"]), command="safemigrate")
    assert value("SELECT count(*) FROM done") == 0


def test_a_lock_lost_in_a_migration_is_taken_again_before_that_ends(project: Project) -> None:
    project.migration(run_python(lambda apps, editor: terminate(LOCK_SESSIONS)))
    printed = project.migrate("app", command="safemigrate")
    assert "Applying app.0001_step..." in printed
    assert "lost and taken again" in printed


@pytest.mark.parametrize(
    "setting", ["SET LOCAL search_path = pg_catalog", "LOCK TABLE django_migrations"]
)
def test_what_a_migration_does_to_its_transaction_is_not_taken_for_another_run(
    project: Project, setting: str
) -> None:
    def lose(apps: Any, editor: Any) -> None:
        terminate(LOCK_SESSIONS)
        execute(setting)

    project.migration(run_python(lambda apps, editor: None, reverse_code=lose))
    project.migrate("app")
    printed = project.migrate("app", "zero", command="safemigrate")
    assert "lost and taken again" in printed
    assert not rows("SELECT FROM django_migrations WHERE app = 'app'")


def test_another_run_is_seen_from_a_snapshot_that_is_older(project: Project) -> None:
    def overtake(apps: Any, editor: Any) -> None:
        execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        terminate(LOCK_SESSIONS)
        elsewhere(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('app', '0001_step', now())"
        )

    project.migration(run_python(overtake))
    with pytest.raises(CommandError, match="another run has dealt with app"):
        project.migrate("app", command="safemigrate")


RECORD = "INSERT INTO {}.django_migrations (app, name, applied) VALUES ('app', %s, now())"


@pytest.mark.parametrize("is_overtaken", [True, False])
def test_tenants_have_their_own_records(
    project: Project, monkeypatch: pytest.MonkeyPatch, is_overtaken: bool
) -> None:
    def lose(apps: Any, editor: Any) -> None:
        terminate(LOCK_SESSIONS)
        if is_overtaken:
            elsewhere(RECORD.format("tenant").replace("%s", "'0001_step'"))

    project.migrate()
    project.migration(run_python(lose))
    execute(RECORD.format("public"), ["0001_step"])
    execute("CREATE SCHEMA tenant; SET search_path = tenant")
    monkeypatch.setattr(connections["default"], "schema_name", "tenant", raising=False)
    if is_overtaken:
        with pytest.raises(CommandError, match="another run has dealt with app"):
            project.migrate("app", command="safemigrate")
    else:
        assert "lost and taken again" in project.migrate("app", command="safemigrate")


def test_a_migration_applied_while_a_hook_ran_is_not_applied_again(project: Project) -> None:
    def overtake() -> None:
        terminate(LOCK_SESSIONS)
        execute(RECORD.format("public"), ["0002_step"])

    project.migration(run_python(lambda apps, editor: transaction.on_commit(overtake)))
    never = run_python(lambda apps, editor: pytest.fail("it was applied"), atomic=False)
    project.migration(never, atomic=False)
    with pytest.raises(CommandError, match="another run has dealt with app"):
        project.migrate("app", command="safemigrate")
