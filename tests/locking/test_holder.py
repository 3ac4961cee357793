"""What is told of the session that holds the migration lock, and what is advised."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from safemigrate import driver
from safemigrate.locking.errors import LockTimeoutError
from safemigrate.locking.holder import Holder, head, holder_of
from safemigrate.locking.lock import KEY, migration_lock
from tests.support.databases import execute, rows, value
from tests.support.locks import HERE, holders, quiet
from tests.support.runs import ROOT, eventually, running

pytestmark = pytest.mark.usefixtures("database")

ASLEEP = f"SELECT pid FROM pg_stat_activity WHERE {HERE} AND wait_event = 'PgSleep'"
SQUAT = "SELECT pg_advisory_xact_lock(%s, hashtext('public'))"
SLEEPING = """
with migration_lock(connection, patience=0, tell=tell), connection.cursor() as cursor:
    cursor.execute("SELECT pg_sleep(120), 'a secret, it''s said', 1")
"""


def test_the_holder_is_told_of() -> None:
    with running(SLEEPING) as holder:
        [(worker,)] = eventually(lambda: rows(ASLEEP))
        [(lock, _)] = holders()
        told: list[str] = []
        with (
            pytest.raises(LockTimeoutError) as raised,
            migration_lock(connection, patience=1, tell=told.append),
        ):
            pytest.fail("it was taken")
    assert len(told) == 1
    for text in (told[0], str(raised.value)):
        assert f"process {holder.pid} on " in text
        assert " UTC, now running for " in text
        assert "s: SELECT" in text
        assert "secret" not in text
        assert "pg_sleep" not in text
    assert "--lock-wait" in str(raised.value)
    assert f"pg_terminate_backend({worker})" in str(raised.value)
    assert str(lock) not in str(raised.value)


def test_a_holder_that_is_idle_is_told_of() -> None:
    code = "with migration_lock(connection, patience=0, tell=tell): say('taken'); sys.stdin.read()"
    with running(code) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "taken\n"
        with (
            pytest.raises(LockTimeoutError, match=r" UTC, now idle\.\n"),
            migration_lock(connection, patience=0, tell=quiet),
        ):
            pytest.fail("it was taken")


def test_what_the_advice_ends_is_the_run() -> None:
    with running(SLEEPING) as holder:
        eventually(lambda: rows(ASLEEP))
        with (
            pytest.raises(LockTimeoutError) as raised,
            migration_lock(connection, patience=0, tell=quiet),
        ):
            pytest.fail("it was taken")
        value("SELECT pg_terminate_backend(%s)", [raised.value.holder.worker])
        assert holder.wait(60) != 0


def test_the_query_of_the_docs_finds_both_sessions() -> None:
    docs = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    query = docs[docs.index("SELECT l.pid AS lock") :].partition("```")[0]
    with running(SLEEPING):
        [(worker,)] = eventually(lambda: rows(ASLEEP))
        [(lock, name)] = holders()
        [found] = rows(query)
    assert (found[0], found[2], found[3], found[4]) == (lock, name, worker, "active")


def test_a_worker_that_is_not_shown_is_ended_on_its_host() -> None:
    holder = Holder(pid=17, token="12_0123abcd", host="web-1")
    assert holder.advice() == "If that run hangs, end process 12 on web-1."


def test_whoever_is_no_run_of_ours_is_named(role: str) -> None:
    with transaction.atomic():
        execute("SET LOCAL application_name = 'squatter'")
        execute(SQUAT, [KEY])
        me, user = rows("SELECT pg_backend_pid(), session_user")[0]
        code = """
from safemigrate import driver
from safemigrate.locking.errors import LockTimeoutError
try:
    with migration_lock(connection, patience=0, tell=tell): pass
except LockTimeoutError as error:
    say(error)
"""
        with running(code, USER=role, PASSWORD="x") as process:
            text, _ = process.communicate(timeout=60)
    assert f'session {me} of role "{user}" (application_name "squatter")' in text
    assert "no run of safemigrate" in text
    assert "pg_terminate_backend" not in text


def test_a_session_of_another_role_is_not_to_be_ended(role: str) -> None:
    """A holder may give itself any name."""
    code = """
with connection.cursor() as cursor:
    cursor.execute("SET application_name = 'safemigrate 1_abcdef12 {} vm'")
    cursor.execute({!r}, [{}])
    say("taken")
    sys.stdin.read()
"""
    code = code.format(value("SELECT pg_backend_pid()"), SQUAT.replace("_xact", ""), KEY)
    with running(code, USER=role, PASSWORD="x") as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "taken\n"
        with (
            pytest.raises(LockTimeoutError, match="end process 1 on vm") as raised,
            migration_lock(connection, patience=0, tell=quiet),
        ):
            pytest.fail("it was taken")
    assert "pg_terminate_backend" not in str(raised.value)


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT $$secret$$", "SELECT"),
        ("INSERT INTO app_item VALUES (E'it\\'s secret')", "INSERT INTO app_item"),
        ('UPDATE "public"."app_item" SET a = 1', 'UPDATE "public"."app_item"'),
        ("delete from only app_item -- it's secret", "delete from only app_item"),
        ("ALTER TABLE IF EXISTS x.y ADD z int", "ALTER TABLE IF EXISTS x.y"),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (x)", "CREATE UNIQUE INDEX CONCURRENTLY"),
        ("CREATE ROLE secret PASSWORD 'secret'", "CREATE"),
        ("/* secret */ SELECT 1", "a statement"),
        ("<insufficient privilege>", "a statement"),
        ("", "a statement"),
    ],
)
def test_of_a_statement_verb_and_table_are_shown(sql: str, shown: str) -> None:
    assert head(sql) == shown


def test_what_is_shown_is_plain_ascii() -> None:
    text = str(Holder(pid=1, role="m\u00e4lk\x1b[31m", name="x\ny"))
    assert text.isascii()
    assert text.isprintable()


def test_a_host_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "")
    with migration_lock(connection, patience=0, tell=quiet) as held:
        with driver.cursor(held.twin) as cursor:
            holder = holder_of(cursor, (KEY, value("SELECT hashtext('public')")))
        assert holder.token == held.token
        assert "on its host" in str(holder)
