"""The one way to move a sequence: exact, never backward, whatever others do."""

from __future__ import annotations

import pytest
from django.db import connection, connections
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safemigrate.sequences.scope import feeds_in
from safemigrate.sequences.state import Terms
from safemigrate.sequences.sweep import survey
from tests.support.databases import binding, execute, next_value, rows, value
from tests.support.findings import collide, found, role, typed


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


def test_residue_is_kept_and_nothing_skipped(shared_database: str) -> None:
    execute(
        "DROP TABLE IF EXISTS t; DROP SEQUENCE IF EXISTS s; CREATE SEQUENCE s INCREMENT 10 START 3;"
        "CREATE TABLE t (id bigint PRIMARY KEY DEFAULT nextval('s')); INSERT INTO t VALUES (22)"
    )
    (finding,) = found(move=True)
    assert finding.moved_to == 13
    assert next_value("s") == 23


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
    assert "Sequence public.t_id_seq is behind public.t.id (next value 2" in notes[-1].text
    execute(typed(notes[-1], "SELECT pg_catalog.setval("))
    assert next_value("t_id_seq") == 2000001


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


def test_read_only_and_without_privileges(ill: None) -> None:
    with role("SELECT ON t", "SELECT ON t_id_seq"):
        execute("SET default_transaction_read_only = on")
        (finding,) = found(move=True)
    assert finding.repair == ""


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


def test_a_sequence_that_is_gone_by_the_look(ill: None) -> None:
    feeds = feeds_in(connection, ["public"])
    execute("DROP TABLE t")
    assert not any(survey(connection, feeds, move=True))
