"""What an IntegrityError is taken for, and what is said of it."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, connections, models, transaction
from django.db.backends.postgresql.psycopg_any import errors

import safemigrate
from safemigrate.heal.collisions import Collision, collision_of
from tests.support.databases import behind, binding, elsewhere, execute, next_value, rows, value
from tests.support.findings import collide, found, role
from tests.support.locks import note_of
from tests.support.project import run_python

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.project import Project


def disguise(change: Callable[[IntegrityError], IntegrityError]) -> Any:
    """Wrap statements so that their IntegrityErrors look otherwise."""

    def wrapper(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        try:
            return execute(sql, params, many, context)
        except IntegrityError as error:
            changed = change(error)
            raise changed from (error.__cause__ if changed is error else changed.__cause__)

    return wrapper


def in_japanese(error: IntegrityError) -> IntegrityError:
    error.args = ("重複したキー値は一意性制約に違反しています",)
    return error


def without_diagnostics(error: IntegrityError) -> IntegrityError:
    bare = IntegrityError(*error.args)
    bare.__cause__ = errors.UniqueViolation(*error.args)
    return bare


def without_a_cause(error: IntegrityError) -> IntegrityError:
    return IntegrityError(*error.args)


@pytest.mark.parametrize("change", [in_japanese, without_diagnostics, without_a_cause])
def test_the_error_is_asked_and_its_text_the_last_resort(groups: None, change: Any) -> None:
    with safemigrate.healing() as report, connection.execute_wrapper(disguise(change)):
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        execute("INSERT INTO auth_group (name) VALUES ('new')")
    assert [each.retried for each in report.resyncs] == [False, True]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('unique constraint "app_tag_pkey"', Collision(None, "app_tag", "app_tag_pkey")),
        ('constraint "My ""odd"" one_pkey"', Collision(None, 'My "odd" one', 'My "odd" one_pkey')),
        ('unique constraint "app_tag_name_uniq"', None),
        ("nothing", None),
    ],
)
def test_the_last_resort(text: str, found: Collision | None) -> None:
    assert collision_of(IntegrityError(text)) == found


def test_other_violations_are_not_collisions(functions: None) -> None:
    with pytest.raises(IntegrityError) as caught:
        execute("INSERT INTO auth_group (id, name) VALUES (NULL, 'app_pkey')")
    assert collision_of(caught.value) is None


@pytest.mark.parametrize(
    ("statement", "note"),
    [
        ("INSERT INTO auth_group (name) VALUES (NULL)", ""),
        ("CREATE UNIQUE INDEX ON auth_user (first_name)", "already holds duplicate values"),
    ],
)
def test_what_no_resync_can_cure_is_sent_once(groups: None, statement: str, note: str) -> None:
    execute(
        "INSERT INTO auth_user (username, first_name, last_name, email, password, is_superuser,"
        " is_staff, is_active, date_joined) SELECT n, '', '', '', '', false, false, true, now()"
        " FROM generate_series(1, 2) AS n"
    )
    sent: list[str] = []

    def record(run: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        sent.append(sql)
        return run(sql, params, many, context)

    with (
        pytest.raises(IntegrityError),
        safemigrate.healing() as report,
        connection.execute_wrapper(record),
    ):
        execute(statement)
    assert sent == [statement]
    assert bool(report.notes) == bool(note)
    assert all(note in each.text for each in report.notes)


def test_a_default_that_was_lost_is_named(groups: None) -> None:
    execute("ALTER TABLE auth_group ALTER id DROP IDENTITY IF EXISTS, ALTER id DROP DEFAULT")
    with pytest.raises(IntegrityError), safemigrate.healing() as report:
        Group.objects.create(name="new")
    assert "public.auth_group.id has no default or identity any more" in report.notes[0].text


def test_a_column_that_never_had_a_default_is_not_named(groups: None) -> None:
    with pytest.raises(IntegrityError), safemigrate.healing() as report:
        execute("INSERT INTO auth_group DEFAULT VALUES")
    assert report.notes == []


def test_a_collision_in_a_transaction_is_resynced_after_the_rollback(groups: None) -> None:
    with (  # noqa: PT012
        pytest.raises(IntegrityError) as caught,
        safemigrate.healing() as report,
        transaction.atomic(),
    ):
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        Group.objects.create(name="collides")
    assert behind() == []
    assert [each.after for each in report.resyncs] == [4, 4]
    assert [note.is_fatal for note in report.notes] == [True]
    assert "is in sync now" in report.notes[0].text
    assert report.notes[0].text.endswith(
        "run the command again. If it ends in the same way, the migration itself puts the sequence "
        "behind."
    )
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [f"safemigrate: {report.notes[0].text}"]


def test_a_collision_that_the_block_catches_costs_nothing(groups: None) -> None:
    with safemigrate.healing() as report, transaction.atomic():
        for _ in range(3):
            with pytest.raises(IntegrityError), transaction.atomic():
                Group.objects.create(name="a")
        Group.objects.create(name="goes on")
    assert report.notes == []


def test_the_database_is_named(groups: None) -> None:
    execute("ALTER TABLE auth_group ALTER id DROP IDENTITY IF EXISTS, ALTER id DROP DEFAULT")
    with (
        binding("other", connection.settings_dict["NAME"]),
        pytest.raises(IntegrityError),
        safemigrate.healing("other") as report,
    ):
        Group.objects.using("other").create(name="new")
    assert "resyncsequences --restore-defaults --database other (and" in report.notes[0].text


def test_a_key_that_is_the_programs_to_give_is_not_named(database: str) -> None:
    fields = {"id": models.IntegerField(primary_key=True), "__module__": "tests.app.models"}
    kind: Any = type("Counter", (models.Model,), fields)
    try:
        execute("CREATE TABLE app_counter (id int PRIMARY KEY)")
        with pytest.raises(IntegrityError), safemigrate.healing() as report:
            execute("INSERT INTO app_counter DEFAULT VALUES")
    finally:
        del apps.all_models[kind._meta.app_label]["counter"]
        apps.clear_cache()
    assert report.notes == []


def test_what_the_rollback_takes_back_may_have_been_drawn(groups: None) -> None:
    """ALTER rewrites the sequence, and the draw goes with it."""
    with (  # noqa: PT012
        pytest.raises(IntegrityError),
        safemigrate.healing() as report,
        transaction.atomic(),
    ):
        elsewhere("SELECT setval('auth_group_id_seq', 1, false)")
        execute("ALTER TABLE auth_group ALTER id TYPE bigint")
        Group.objects.create(name="collides")
    assert behind() == []
    assert "is in sync now" in report.notes[0].text


def test_the_error_is_the_original(ill: None) -> None:
    execute("INSERT INTO t VALUES (2147483647)")
    with pytest.raises(IntegrityError) as plain:
        execute("INSERT INTO t (note) VALUES ('new')")
    execute("SELECT setval('t_id_seq', 1, false)")
    notes, error = collide()
    assert type(error) is type(plain.value)
    assert error.args == plain.value.args
    if hasattr(error, "add_note"):
        assert getattr(error, "__notes__", None) == [f"safemigrate: {notes[-1].text}"]


def test_notes_reach_stderr_and_the_log(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1)")
    execute("INSERT INTO t VALUES (2147483647)")
    project.migration(
        run_python(lambda apps, editor: editor.execute("INSERT INTO t DEFAULT VALUES"))
    )
    err = io.StringIO()
    with pytest.raises(IntegrityError):
        project.migrate(command="safemigrate", stderr=err)
    assert "the range ends at 2147483647" in err.getvalue()
    assert "the range ends at 2147483647" in caplog.text


@pytest.mark.parametrize(
    ("prepare", "sql", "line"),
    [
        (
            "SELECT 1",
            "INSERT INTO t (id) VALUES (7)",
            "Genuine duplicate in public.t: no sequence that feeds id needs a resync.",
        ),
        (
            "INSERT INTO t (note, id) VALUES ('a', 8), ('a', 9)",
            "CREATE UNIQUE INDEX ON t (note)",
            "public.t already holds duplicate values, so t_note_idx cannot be created.",
        ),
        (
            "ALTER TABLE t ALTER id SET DEFAULT length('seven77')",
            "INSERT INTO t (note) VALUES ('new')",
            "The default of t.id is computed",
        ),
    ],
)
def test_lookalikes(ill: None, prepare: str, sql: str, line: str) -> None:
    execute(prepare)
    found(move=True)
    state = rows("SELECT xmin, * FROM t_id_seq")
    notes: list[Any] = []
    with pytest.raises(IntegrityError), safemigrate.healing(tell=notes.append):
        execute(sql)
    assert [note.is_fatal for note in notes] == [True]
    assert line in notes[0].text
    assert rows("SELECT xmin, * FROM t_id_seq") == state


HIDDEN = (
    "could not be checked: not everything can be read (query would be affected by row-level "
    'security policy for table "t"); run as a role that may, such as the table\'s owner'
)


@pytest.mark.parametrize("is_behind", [True, False])
def test_rows_that_a_policy_hides(ill: None, is_behind: bool) -> None:
    execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY all_rows ON t USING (true)")
    execute(f"SELECT setval('t_id_seq', 7, {not is_behind})")
    expected: Any = pytest.raises(IntegrityError) if is_behind else nullcontext()
    with role("ALL ON t", "ALL ON SEQUENCE t_id_seq"), safemigrate.healing("default") as report:
        with expected as caught:
            execute("INSERT INTO t (note) VALUES ('new')")
        notes = [note.text for note in report.notes if not note.is_expected]
    assert notes == [f"The table t {HIDDEN}"]
    if is_behind and sys.version_info >= (3, 11):
        assert caught.value.__notes__ == [f"safemigrate: public.t {HIDDEN}"]


GAP = """
    CREATE TABLE gap (id serial PRIMARY KEY, number int UNIQUE, note text);
    INSERT INTO gap (note) VALUES ('a'), ('b'), ('c');
    CREATE FUNCTION give(count int) RETURNS void LANGUAGE sql AS $$
        INSERT INTO gap SELECT 3 + n FROM generate_series(1, count) AS n
    $$
"""


@pytest.mark.parametrize("rest", ["INCLUDE (id)", "WHERE id > 0"])
def test_what_an_index_says_of_a_column_besides_its_keys(ill: None, rest: str) -> None:
    """The key is behind, and it is not what collides."""
    execute(f"INSERT INTO t VALUES (9, 'here'); CREATE UNIQUE INDEX ON t (note) {rest}")
    with safemigrate.healing("default"):
        elsewhere("SELECT setval('t_id_seq', 3, false)")
        with pytest.raises(IntegrityError) as caught:
            execute("INSERT INTO t (note) VALUES ('here')")
    assert note_of(caught.value).startswith("No sequence feeds t.note")
    assert next_value("t_id_seq") == 4


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "insert",
    [
        "INSERT INTO gap (note) VALUES ('new')",
        "INSERT INTO gap (note, number) VALUES ('new', DEFAULT)",
        "INSERT INTO gap (note) SELECT 'new'",
        "WITH n AS (SELECT 'new' AS note) INSERT INTO gap (note) SELECT note FROM n",
    ],
)
def test_keys_that_no_text_shows(database: str, insert: str, count: int) -> None:
    """The draw that fails at the last of them has put the sequence in sync."""
    execute(GAP)
    with safemigrate.healing() as report:
        execute("SELECT give(%s)", [count])
        execute(insert)
    assert value("SELECT id FROM gap WHERE note = 'new'") == 4 + count
    assert report.notes == []


@pytest.mark.parametrize(
    ("prepare", "statement"),
    [
        pytest.param(
            "INSERT INTO gap (number) VALUES (7)",
            "INSERT INTO gap (number) VALUES (7)",
            id="another-column",
        ),
        pytest.param("SELECT give(1)", "UPDATE gap SET id = 4 WHERE id = 1", id="update"),
        pytest.param("SELECT give(1)", "INSERT INTO gap (id) VALUES (4)", id="given"),
        pytest.param("SELECT give(1)", "INSERT INTO gap (id) SELECT 4", id="selected"),
        pytest.param(
            """
            CREATE FUNCTION one() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.id := 1; RETURN NEW; END';
            CREATE TRIGGER one BEFORE INSERT ON gap FOR EACH ROW EXECUTE FUNCTION one()
            """,
            "INSERT INTO gap (note) VALUES ('new')",
            id="trigger",
        ),
    ],
)
def test_a_value_that_may_be_anybodys_is_not_drawn_again(
    database: str, prepare: str, statement: str
) -> None:
    execute(GAP)
    with safemigrate.healing("default"):
        execute(prepare)
        before = next_value("gap_id_seq")
        with pytest.raises(IntegrityError) as caught:
            execute(statement)
    assert "was behind" not in note_of(caught.value)
    assert next_value("gap_id_seq") - before <= 1


@pytest.mark.parametrize(
    ("options", "why"),
    [({"heal": False}, "healing is off"), ({"max_retries": 0}, "retries are off")],
)
def test_a_draw_is_not_repeated_unasked(database: str, options: dict[str, Any], why: str) -> None:
    execute(GAP)
    with safemigrate.healing("default", **options):
        execute("SELECT give(1)")
        with pytest.raises(IntegrityError) as caught:
            execute("INSERT INTO gap (note) VALUES ('new')")
    assert "public.gap_id_seq was behind public.gap and is in sync now" in note_of(caught.value)
    assert f"because {why}" in note_of(caught.value)


@pytest.mark.parametrize("is_connected", [False, True])
def test_an_error_of_a_connection_that_nobody_knows(
    ill: None, other_database: str, is_connected: bool
) -> None:
    """It is not taken for that of the alias which happens to be last."""
    connections["other"].close()
    if is_connected:
        connections["other"].ensure_connection()
    stranger = connection.copy()
    try:
        with (
            pytest.raises(IntegrityError) as caught,
            safemigrate.healing(),
            stranger.cursor() as cursor,
        ):
            cursor.execute("INSERT INTO t (id) VALUES (7)")
    finally:
        stranger.close()
    expected = "--check --database ALIAS" if is_connected else "Genuine duplicate in public.t"
    assert expected in note_of(caught.value)


def test_an_error_of_another_thread(ill: None) -> None:
    """Its connection is not watched, and nobody knows of what transaction it was a part."""

    def collide_elsewhere() -> None:
        try:
            execute("SELECT setval('t_id_seq', 1, false)")
            execute("INSERT INTO t (note) VALUES ('new')")
        finally:
            connection.close()

    with (
        ThreadPoolExecutor() as pool,
        pytest.raises(IntegrityError) as caught,
        safemigrate.healing("default"),
    ):
        pool.submit(collide_elsewhere).result()
    assert "or from a connection that safemigrate does not watch" in note_of(caught.value)
    assert next_value("t_id_seq") == value("SELECT max(id) + 1 FROM t")
