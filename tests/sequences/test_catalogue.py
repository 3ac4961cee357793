"""What the catalogue says of sequences and the columns they feed, whatever they are called."""

from __future__ import annotations

from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safemigrate.sequences.catalogue import sequences_of
from safemigrate.sequences.checking import checking
from safemigrate.sequences.scope import feeds_in
from tests.support.databases import execute, locked
from tests.support.findings import found

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


def test_identifiers_quoted_by_a_setting(ill: None) -> None:
    execute("SET quote_all_identifiers = on")
    assert [each.status for each in found()] == ["behind"]
