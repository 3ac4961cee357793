"""What is remembered of a run's statements, and which INSERT then needs a check."""

from __future__ import annotations

import pytest

from safemigrate.heal.disturbed import Disturbed
from safemigrate.heal.statements import Write
from safemigrate.sequences.finding import Finding
from safemigrate.sequences.recheck import Recheck
from safemigrate.sequences.sequence import Hinders, Key, Obstacle, Sequence

ID, NAME = frozenset({"id"}), frozenset({"name"})


def write(columns: frozenset[str] | None) -> Write:
    return Write("public.tag", "tag", columns)


def after(*inserts: frozenset[str] | None, count: int | None = 1) -> Disturbed:
    """Remember INSERTs into one table, which give these columns."""
    disturbed = Disturbed()
    for columns in inserts:
        disturbed.learn([write(columns)], [], count)
    return disturbed


def finding(hinders: Hinders | None = None, *, is_unique: bool = True) -> Finding:
    """Return what a check has found of the table."""
    names = {"schema": "public", "table": "tag", "column": "id", "type": "integer"}
    quoted = {"quoted_table": "public.tag", "quoted_column": "id"}
    key = Key(
        1,
        1,
        **names,
        **quoted,
        is_partitioned=False,
        is_indexed=is_unique,
        is_heir=False,
        has_companions=False,
        is_unique=is_unique,
    )
    sequence = Sequence(
        2, "public", "s", "s", 1, 1, 9, 1, is_readable=True, is_settable=True, keys=(key,)
    )
    obstacle = Obstacle("it is in the way", hinders=hinders) if hinders else None
    return Finding(sequence, obstacle=obstacle)


def swept(hinders: Hinders | None, *, is_unique: bool = True) -> Disturbed:
    """Remember what the sweep found of the table."""
    disturbed = Disturbed()
    disturbed.mark(finding(hinders, is_unique=is_unique))
    return disturbed


def needs_recheck(disturbed: Disturbed, columns: frozenset[str] | None = NAME) -> bool:
    insert = write(columns)
    return disturbed.needs_recheck(insert, frozenset({insert}))


def test_a_table_that_was_given_no_key_needs_none() -> None:
    assert not needs_recheck(after())
    assert not needs_recheck(after(NAME, NAME))


def test_one_that_was_given_a_key_does() -> None:
    assert needs_recheck(after(ID))
    assert needs_recheck(after(NAME, ID | NAME, NAME))
    assert needs_recheck(after(None))
    assert needs_recheck(after(None, NAME))
    other = Write("other", "other", NAME)
    assert not after(ID).needs_recheck(other, frozenset({other}))


def test_an_insert_that_gives_the_key_itself_does_not() -> None:
    assert not needs_recheck(after(ID), ID | NAME)
    assert not needs_recheck(after(ID), None)
    assert needs_recheck(after(None), ID | NAME)


def test_only_what_a_sequence_feeds_is_drawn_once_that_is_known() -> None:
    for given in (ID | NAME, None):
        disturbed = after(given)
        disturbed.remember_check(write(ID), Recheck(ID, [], 0))
        assert not needs_recheck(disturbed, ID)
        assert needs_recheck(disturbed, NAME)


def test_one_that_comes_later_in_a_text_does_not() -> None:
    assert not after(ID).needs_recheck(write(NAME), frozenset())


def test_an_update_gives_a_key_as_well() -> None:
    disturbed = Disturbed()
    disturbed.learn([], [write(ID)], 1)
    assert needs_recheck(disturbed)


def settled(free: int | None) -> Disturbed:
    """Remember a key that was given, and that a check has found so many values free."""
    disturbed = after(ID)
    disturbed.remember_check(write(NAME), Recheck(ID, [], free))
    return disturbed


def test_free_values_are_drawn_without_a_check() -> None:
    disturbed = settled(3)
    for count in (2, 1):
        assert not needs_recheck(disturbed)
        disturbed.learn([write(NAME)], [], count)
    assert needs_recheck(disturbed)


def test_who_knows_how_many_were_drawn() -> None:
    disturbed = settled(1_000)
    disturbed.learn([write(NAME)], [], None)
    assert needs_recheck(disturbed)


def test_no_end_in_sight() -> None:
    disturbed = settled(None)
    disturbed.learn([write(NAME)], [], None)
    assert not needs_recheck(disturbed)


def test_a_key_given_later_may_be_in_the_way() -> None:
    for free in (1_000, None):
        for columns in (ID, ID | NAME, None):
            disturbed = settled(free)
            disturbed.learn([write(columns)], [], 1)
            assert needs_recheck(disturbed)


@pytest.mark.parametrize(
    ("hinders", "is_unique"),
    [(Hinders.CHECKING, True), (Hinders.JUDGING, False)],
    ids=["unknown", "not unique yet"],
)
def test_what_the_sweep_could_not_check_is_checked_once(hinders: Hinders, is_unique: bool) -> None:
    disturbed = swept(hinders, is_unique=is_unique)
    assert disturbed.is_unchecked(write(NAME))
    assert disturbed.needs_recheck(write(NAME), frozenset())
    disturbed.remember_check(write(NAME), Recheck(ID, [], None))
    assert not disturbed.is_unchecked(write(NAME))
    assert not needs_recheck(disturbed)


@pytest.mark.parametrize(
    ("columns", "is_given"), [(ID, True), (ID | NAME, True), (None, True), (NAME, False)]
)
def test_whose_keys_the_run_may_have_given(
    columns: frozenset[str] | None, *, is_given: bool
) -> None:
    assert not after().has_given(finding())
    assert after(columns).has_given(finding()) is is_given


@pytest.mark.parametrize("hinders", [Hinders.JUDGING, None])
def test_what_the_sweep_has_judged_needs_no_check(hinders: Hinders | None) -> None:
    assert not needs_recheck(swept(hinders))


def test_what_was_not_checked_and_is_disturbed_is_a_disturbed_table_like_any_other() -> None:
    disturbed = swept(Hinders.CHECKING)
    disturbed.learn([write(ID)], [], 1)
    assert not disturbed.is_unchecked(write(NAME))
    assert needs_recheck(disturbed)
    assert not disturbed.needs_recheck(write(NAME), frozenset())


def test_what_ddl_may_alter_is_checked_again() -> None:
    for is_late in (True, False):
        disturbed = swept(Hinders.JUDGING if is_late else Hinders.CHECKING, is_unique=not is_late)
        disturbed.remember_check(write(NAME), Recheck(ID, [], None))
        disturbed.forget_late()
        assert disturbed.is_unchecked(write(NAME)) is is_late


def test_a_table_that_gets_a_sequence_is_disturbed() -> None:
    disturbed = after()
    disturbed.alter([("tag", None)])
    assert not disturbed.is_unchecked(write(NAME))
    assert needs_recheck(disturbed)


@pytest.mark.parametrize("hinders", [Hinders.CHECKING, None])
def test_a_new_name_takes_along_what_is_known(hinders: Hinders | None) -> None:
    disturbed = swept(hinders)
    disturbed.alter([("tag", "label"), ("other", "tag")])
    renamed = Write("label", "label", NAME)
    assert disturbed.is_unchecked(renamed) is (hinders is not None)
    disturbed.learn([Write("label", "label", ID)], [], 1)
    disturbed.alter([("label", "name")])
    assert disturbed.needs_recheck(
        Write("name", "name", NAME), frozenset({Write("name", "name", NAME)})
    )
