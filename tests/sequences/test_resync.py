"""The engine: exactness by property tests, what stands in the way, and what the notes say."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safemigrate import Note, healing
from safemigrate.driver import Cursor
from safemigrate.sequences.catalogue import sequences_of
from safemigrate.sequences.scope import all_schemas, feeds_in
from safemigrate.sequences.state import Finding, Terms, check, checking
from safemigrate.sequences.sweep import survey
from tests.support.databases import binding, execute, locked, next_value, rows, value
from tests.support.project import Project, run_python

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Databases


@pytest.fixture(scope="module")
def shared_database(databases: Databases) -> Iterator[str]:
    with databases.bound("default") as name:
        yield name


def found(*, move: bool = False, terms: Terms | None = None) -> list[Finding]:
    feeds = feeds_in(connection, all_schemas(connection))
    return [
        finding
        for chunk in survey(connection, feeds, terms or Terms(), move=move)
        for finding in chunk
    ]


# Roles are the whole server's, and another run of these tests may be there.
POOR = f"poor_{os.getpid()}"

# Properties.

RESERVED = ["select", "user", "table", "order", "nextval", "pg_catalog", "default", "%s", "%", "\\"]
# Not longer than 63 bytes, of which quoting counts none; a NUL can't be sent.
IDENTIFIERS = st.one_of(
    st.sampled_from(RESERVED),
    st.text(st.characters(blacklist_characters="\0", codec="utf-8"), min_size=1).filter(
        lambda name: len(name.encode()) <= 63
    ),
    st.integers(1, 63).map(lambda length: "é\"' .x"[length % 6] * (length // 2 or 1)),
)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schema=IDENTIFIERS, table=IDENTIFIERS, column=IDENTIFIERS)
def test_any_identifier(shared_database: str, schema: str, table: str, column: str) -> None:
    if schema.startswith("pg_") or schema == "information_schema":
        schema = "s"
    execute("DROP SCHEMA IF EXISTS s CASCADE; CREATE SCHEMA s")
    if schema != "s":
        execute(f"ALTER SCHEMA s RENAME TO {quoted(schema)}".replace("%", "%%"), ())
    where = f"{quoted(schema)}.{quoted(table)}".replace("%", "%%")
    name = quoted(column).replace("%", "%%")
    try:
        execute(f"CREATE TABLE {where} ({name} serial PRIMARY KEY)", ())
        execute(f"INSERT INTO {where} VALUES (41)", ())
        (finding,) = found(move=True)
        assert (finding.status, finding.moved_to) == ("resynced", 41)
        (key,) = finding.sequence.keys
        assert (key.schema, key.table, key.column) == (schema, table, column)
        assert found() == [*found(move=True)]
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {where} DEFAULT VALUES RETURNING *", ())
            assert cursor.fetchone() == (42,)
    finally:
        execute(f"DROP SCHEMA {quoted(schema)} CASCADE".replace("%", "%%"), ())


@st.composite
def sequences(draw: st.DrawFn) -> tuple[dict[str, int], list[int], int | None]:
    """Draw a sequence's parameters, the keys of its table, and how often it was drawn from."""
    increment = draw(st.integers(-1000, 1000).filter(bool))
    minimum = draw(st.integers(-(10**6), 10**6))
    maximum = minimum + draw(st.integers(abs(increment) + 1, 10**6))
    start = draw(st.integers(minimum, maximum))
    keys = draw(st.lists(st.integers(minimum - 10, maximum + 10), max_size=5, unique=True))
    last = draw(st.none() | st.integers(minimum, maximum))
    cache = draw(st.sampled_from([1, 1, 5]))
    parameters = {"increment": increment, "minvalue": minimum, "maxvalue": maximum}
    return {**parameters, "start": start, "cache": cache}, keys, last


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=sequences())
def test_any_bounds_and_increment(
    shared_database: str, drawn: tuple[dict[str, int], list[int], int | None]
) -> None:
    """After a resync the next value is past every key that can be reached, in the old residue."""
    parameters, keys, last = drawn
    step, lowest, highest = (parameters[each] for each in ("increment", "minvalue", "maxvalue"))
    options = " ".join(f"{name} {number}" for name, number in parameters.items())
    execute(
        "DROP TABLE IF EXISTS t; DROP SEQUENCE IF EXISTS s;"
        f"CREATE SEQUENCE s {options};"
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('s'))"
    )
    if last is not None:
        execute(f"SELECT setval('s', {last})")
    if keys:
        execute(f"INSERT INTO t VALUES {', '.join(f'({key})' for key in keys)}")
    before = next_value("s")
    within = [key for key in keys if lowest <= key <= highest]
    is_behind = any((key - before) * step >= 0 for key in within)
    state = rows("SELECT xmin, * FROM s")

    (looked,) = found()
    assert looked.is_behind is is_behind
    assert looked.next_value == before
    assert rows("SELECT xmin, * FROM s") == state

    (finding,) = found(move=True, terms=Terms(force=True))
    if not is_behind:
        assert finding.status == "in sync"
        assert rows("SELECT xmin, * FROM s") == state
        return
    if finding.obstacle:
        ahead = range(before, (highest + 1) if step > 0 else (lowest - 1), step)
        largest = max(within) if step > 0 else min(within)
        assert not [number for number in ahead if (number - largest) * step > 0]
        assert finding.obstacle.is_final
        assert rows("SELECT xmin, * FROM s") == state
        return
    assert finding.status == "resynced"
    (given_now,) = rows("INSERT INTO t DEFAULT VALUES RETURNING id")[0]
    assert all((given_now - key) * step > 0 for key in within)
    assert (given_now - before) % step == 0
    assert [each.status for each in found()] == ["in sync"]


def test_what_is_in_sync_takes_one_statement(
    shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("DROP TABLE IF EXISTS t; CREATE TABLE t (id serial PRIMARY KEY, number serial UNIQUE)")
    feeds = feeds_in(connection, ["public"])
    sent: list[str] = []
    rows_of = Cursor.rows

    def record(cursor: Cursor, sql: str, params: Any = None) -> list[Any]:
        sent.append(sql)
        return rows_of(cursor, sql, params)

    with checking(connection) as cursor:
        sequences = sequences_of(cursor, feeds)
        monkeypatch.setattr(Cursor, "rows", record)
        assert [each.status for each in check(cursor, sequences)] == ["in sync", "in sync"]
    assert len(sent) == 1


def test_residue_is_kept_and_nothing_skipped(shared_database: str) -> None:
    execute(
        "DROP TABLE IF EXISTS t; DROP SEQUENCE IF EXISTS s; CREATE SEQUENCE s INCREMENT 10 START 3;"
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('s')); INSERT INTO t VALUES (22)"
    )
    (finding,) = found(move=True)
    assert finding.moved_to == 13
    assert next_value("s") == 23


# What stands in the way, and the notes that say so.


@contextmanager
def role(*grants: str) -> Iterator[None]:
    """Be another role for a while."""
    execute(f"CREATE ROLE {POOR} LOGIN")
    for grant in grants:
        execute(f"GRANT {grant} TO {POOR}")
    user = connection.settings_dict["USER"]
    connection.close()
    connection.settings_dict["USER"] = POOR
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["USER"] = user
        execute(f"DROP OWNED BY {POOR}; DROP ROLE {POOR}")


def collide(sql: str = "INSERT INTO t (note) VALUES ('new')") -> tuple[list[Note], IntegrityError]:
    """Meet a collision that can't be healed; return what was told, and the error."""
    notes: list[Note] = []

    def tell(event: Any) -> None:
        assert isinstance(event, Note), event
        notes.append(event)

    with pytest.raises(IntegrityError) as caught, healing(tell=tell), transaction.atomic():
        execute(sql)
    assert getattr(caught.value.__cause__, "diag").constraint_name == "t_pkey"  # noqa: B009
    assert not connection.in_atomic_block
    return notes, caught.value


@pytest.fixture
def ill(database: str) -> None:
    execute("CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1), (7)")


def typed(note: Note, start: str) -> str:
    """Return the statement that a note says to type."""
    text = note.text[note.text.index(start) :]
    return text[: text.index(";") + 1]


def test_no_privilege_to_move(ill: None) -> None:
    with role("SELECT, INSERT ON t", "SELECT ON t_id_seq"):
        (finding,) = found()
        assert (finding.status, finding.next_value, finding.largest) == ("behind", 1, 7)
        assert finding.obstacle is not None
        assert f"role {POOR} may not move the sequence" in finding.obstacle.reason


@pytest.mark.parametrize("grants", [["USAGE"], ["USAGE", "SELECT"], ["UPDATE", "SELECT"]])
def test_privileges_that_are_enough(ill: None, grants: list[str]) -> None:
    """With USAGE alone the gap is walked, with UPDATE and SELECT it can be jumped."""
    with role("SELECT, INSERT ON t", f"{', '.join(grants)} ON t_id_seq"):
        (finding,) = found(move=True)
        assert (finding.status, finding.moved_to) == ("resynced", 7)


def test_too_far_to_walk(ill: None) -> None:
    execute("INSERT INTO t VALUES (2000000)")
    with role("SELECT, INSERT ON t", "USAGE ON t_id_seq"):
        notes, _ = collide()
    assert [note.is_expected for note in notes] == [True, True, False]
    assert notes[0].text.startswith("Sequence public.t_id_seq is behind public.t.id (next value 1")
    assert "too wide to be walked with nextval()" in notes[-1].text
    assert "public.t_id_seq, which feeds public.t" in notes[-1].text
    execute(typed(notes[-1], "SELECT pg_catalog.setval("))
    assert next_value("t_id_seq") == 2000001


def test_no_privilege_to_read_the_table(ill: None) -> None:
    with role("INSERT ON t", "ALL ON t_id_seq"):
        notes, _ = collide()
    assert f"role {POOR} may not read public.t.id" in notes[-1].text
    execute(f"CREATE ROLE {POOR}; GRANT INSERT ON t TO {POOR}; GRANT ALL ON t_id_seq TO {POOR}")
    try:
        execute(typed(notes[-1], "GRANT USAGE"))
        execute(typed(notes[-1], "GRANT SELECT"))
        execute(f"SET ROLE {POOR}")
        with healing():
            execute("INSERT INTO t (note) VALUES ('new')")
    finally:
        execute(f"RESET ROLE; DROP OWNED BY {POOR}; DROP ROLE {POOR}")
    assert value("SELECT max(id) FROM t") == 8


def test_no_privilege_at_all(ill: None) -> None:
    """As a role that may not even draw, the server's own error comes first."""
    with role("SELECT ON t"):
        (finding,) = found(move=True)
        assert finding.status == "unknown"
        assert finding.obstacle is not None
        assert finding.obstacle.advice == (
            f"GRANT SELECT, UPDATE ON SEQUENCE public.t_id_seq TO {POOR};"
        )


def test_row_level_security(ill: None) -> None:
    """Under a policy max() sees nothing and a broken table looks right."""
    execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    execute("CREATE POLICY p ON t FOR INSERT WITH CHECK (true)")
    with role("ALL ON t", "ALL ON t_id_seq"):
        assert rows("SELECT max(id) FROM t") == [(None,)]
        (finding,) = found(move=True)
        assert finding.status == "unknown"
        assert finding.obstacle is not None
        assert "row-level security" in finding.obstacle.reason
        assert finding.obstacle.advice == "run as a role that may, such as the table's owner"
        notes, _ = collide()
    assert "could not be checked: query would be affected by row-level security" in notes[-1].text


def test_cramped(ill: None) -> None:
    execute("INSERT INTO t VALUES (1950000000)")
    notes, _ = collide()
    assert "would leave less than a tenth of the sequence's range" in notes[-1].text
    assert notes[-1].text.count("setval(") == 1
    assert next_value("t_id_seq") == 2  # the failed draw's doing
    execute(typed(notes[-1], "SELECT pg_catalog.setval("))
    assert next_value("t_id_seq") == 1950000001


def test_a_jump_over_most_of_the_range(ill: None) -> None:
    """It leaves more than a tenth, but is as likely to be one stray key's doing."""
    execute("INSERT INTO t VALUES (1900000000)")
    (finding,) = found(move=True)
    assert finding.status == "behind"
    assert "would use up most of the sequence's range, and there is no way back" in str(
        finding.obstacle
    )
    (finding,) = found(move=True, terms=Terms(force=True))
    assert finding.moved_to == 1900000000


def test_a_step_within_the_last_part_of_the_range(ill: None) -> None:
    execute("INSERT INTO t VALUES (1900000000); SELECT setval('t_id_seq', 1899000000)")
    assert [each.status for each in found(move=True)] == ["resynced"]


def test_what_a_cache_leaves_for_other_sessions(ill: None, database: str) -> None:
    execute("ALTER SEQUENCE t_id_seq CACHE 1000")
    (finding,) = found(move=True)
    assert finding.moved_to is not None
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("INSERT INTO t DEFAULT VALUES RETURNING id")
        assert cursor.fetchone() == (finding.moved_to + 1,)


def test_a_cache_that_a_walk_would_exhaust(ill: None, database: str) -> None:
    """Drawing one value takes 20,000, and the range ends at 32,767."""
    execute("ALTER TABLE t ALTER id TYPE smallint; ALTER SEQUENCE t_id_seq AS smallint CACHE 20000")
    execute("SELECT setval('t_id_seq', 15000); INSERT INTO t VALUES (15003)")
    (finding,) = found(move=True)
    assert finding.moved_to == 15003
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("INSERT INTO t DEFAULT VALUES RETURNING id")
        assert cursor.fetchone() == (15004,)


def test_exhausted(ill: None) -> None:
    execute("INSERT INTO t VALUES (2147483647)")
    notes, _ = collide()
    assert "the range ends at 2147483647" in notes[-1].text
    assert "setval" not in notes[-1].text
    assert next_value("t_id_seq") == 2


@pytest.mark.parametrize(
    ("kind", "increment", "last"),
    [
        ("smallint", 1, 2**15 - 1),
        ("integer", 1, 2**31 - 1),
        ("oid", 1, 2**32 - 1),
        ("bigint", 1, 2**63 - 1),
        ("smallint", -1, -(2**15)),
        ("integer", -1, -(2**31)),
        ("bigint", -1, -(2**63)),
    ],
)
def test_a_column_s_range_may_end_first(
    database: str, kind: str, increment: int, last: int
) -> None:
    execute(
        f"CREATE SEQUENCE s INCREMENT {increment};"
        f"CREATE TABLE t (id {kind} PRIMARY KEY DEFAULT nextval('s'));"
        f"INSERT INTO t VALUES ({last})"
    )
    (finding,) = found(move=True)
    assert (finding.status, finding.largest) == ("behind", last)
    assert f"the range ends at {last}:" in str(finding.obstacle)
    assert next_value("s") == increment


def test_read_only(ill: None) -> None:
    execute("SET default_transaction_read_only = on")
    (finding,) = found(move=True)
    execute("SET default_transaction_read_only = off")
    assert (finding.status, finding.largest) == ("behind", 7)
    assert finding.obstacle is not None
    assert finding.remedy == (
        "the server, or this session, is read-only; resync where it can be written to, such as "
        "the primary"
    )


@pytest.mark.parametrize(
    ("key", "status"), [("PRIMARY KEY (tenant, id)", "unknown"), ("CHECK (true)", "not judged")]
)
def test_a_large_table_without_an_index(database: str, key: str, status: str) -> None:
    """What is unique should have been checked; of what is not yet, nobody can tell."""
    execute(f"CREATE TABLE t (tenant int, id serial, note text, {key})")
    execute("INSERT INTO t SELECT 1, n, repeat('x', 90) FROM generate_series(1, 20000) AS n")
    assert [each.status for each in found()] == [status]


def test_a_number_that_may_repeat_is_moved_if_told_to(database: str) -> None:
    execute("CREATE TABLE t (id serial, note text); CREATE UNIQUE INDEX ON t (id) WHERE note = ''")
    execute("CREATE INDEX ON t (id); INSERT INTO t VALUES (7)")
    (finding,) = found(move=True)
    assert (finding.status, next_value("t_id_seq")) == ("not judged", 1)
    (finding,) = found(move=True, terms=Terms(force=True))
    assert (finding.status, next_value("t_id_seq")) == ("resynced", 8)


def test_a_lock_that_anybody_may_hold(ill: None, database: str) -> None:
    """A walk needs none; a jump tries for a second, and the note says why it was not made."""
    from safemigrate.sequences.resync import LOCK_SPACE

    oid = value("SELECT 't_id_seq'::regclass::oid")
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK_SPACE + oid])
        (finding,) = found(move=True)
        assert (finding.status, finding.moved_to) == ("resynced", 7)
        execute("INSERT INTO t VALUES (1000000)")
        (finding,) = found(move=True)
        assert finding.status == "behind"
        assert "another session holds the advisory lock" in str(finding.obstacle)
        connections["other"].close()
    (finding,) = found(move=True)
    assert finding.moved_to == 1000000


def test_a_lock_that_comes_free_is_taken(
    ill: None, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safemigrate.sequences.resync import LOCK_SPACE

    execute("INSERT INTO t VALUES (1000000)")
    oid = value("SELECT 't_id_seq'::regclass::oid")
    pauses: list[float] = []
    with binding("other", database), connections["other"].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [LOCK_SPACE + oid])

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                cursor.execute("SELECT pg_advisory_unlock_all()")

        monkeypatch.setattr("safemigrate.sequences.resync.time.sleep", pause)
        (finding,) = found(move=True)
    assert (finding.moved_to, len(pauses)) == (1000000, 3)


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
            "ALTER TABLE t ALTER id DROP DEFAULT",
            "INSERT INTO t (note) VALUES ('new')",
            "public.t.id has no default or identity any more",
        ),
        (
            "SELECT 1",
            "INSERT INTO t (id) VALUES (7)",
            "Genuine duplicate in public.t: no sequence that feeds id has given this",
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
    with pytest.raises(IntegrityError), healing(tell=notes.append):
        execute(sql)
    assert [note.is_fatal for note in notes] == [True]
    assert line in notes[0].text
    assert rows("SELECT xmin, * FROM t_id_seq") == state


# Plain tables' locks.


def test_listing_does_not_wait_for_a_locked_table(ill: None) -> None:
    execute("CREATE TABLE taken (id serial PRIMARY KEY)")
    with locked("taken"), checking(connection) as mine:
        feeds = feeds_in(connection, ["public"])
        assert len(sequences_of(mine, feeds)) == 2


def test_a_generated_column_that_names_a_sequence(ill: None) -> None:
    execute(
        "ALTER TABLE t ADD seq oid GENERATED ALWAYS AS ("
        "CASE WHEN id > 0 THEN 't_id_seq'::regclass::oid END) STORED, ADD UNIQUE (id, seq)"
    )
    (finding,) = found()
    assert [str(key) for key in finding.sequence.keys] == ["public.t.id"]


def test_a_sequence_that_is_gone_by_the_look(ill: None) -> None:
    feeds = feeds_in(connection, ["public"])
    execute("DROP TABLE t")
    assert not any(survey(connection, feeds, move=True))


@pytest.mark.parametrize("harm", ["NaN", "Infinity"])
def test_a_value_that_is_no_number_stops_nothing(ill: None, harm: str) -> None:
    if harm == "Infinity" and connection.pg_version < 140000:  # type: ignore[attr-defined]
        pytest.skip("PostgreSQL has infinite numerics from 14 on")
    execute(
        "CREATE SEQUENCE s; CREATE TABLE n (id numeric PRIMARY KEY DEFAULT nextval('s'));"
        f"INSERT INTO n VALUES (3), ('{harm}')"
    )
    statuses = {finding.sequence.name: finding for finding in found(move=True)}
    assert {name: finding.moved_to for name, finding in statuses.items()} == {"t_id_seq": 7, "s": 3}


def test_identifiers_quoted_by_a_setting(ill: None) -> None:
    execute("SET quote_all_identifiers = on")
    assert [each.status for each in found()] == ["behind"]
