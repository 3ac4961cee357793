"""Eight writers, two resyncers: no value twice, none backward, no collision that we caused."""

from __future__ import annotations

from tests.support.writers import run


def test_resyncs_among_writers(database: str) -> None:
    seen = run(5)
    assert seen.writes
    assert {table for table, keys in seen.twice.items() if keys} == set()
    assert {table for table, keys in seen.caused.items() if keys} == set()
    assert seen.went_back == []
    assert seen.errors == []
    assert not seen.obstacles
    assert {name for name, _, _ in seen.moved} >= {"far_id_seq"}
