"""What is read of a statement's text: heads only, whatever else stands in it."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemigrate.heal.statements import NOTHING, _read_and_remember, _starts, read

ALL = None


def writes(sql: str) -> tuple[dict[str, set[str] | None], dict[str, set[str] | None]]:
    heads = read(sql)
    return tuple(  # type: ignore[return-value]
        {each.name: None if each.columns is None else set(each.columns) for each in found}
        for found in (heads.inserts, heads.updates)
    )


@pytest.mark.parametrize(
    ("sql", "name", "columns"),
    [
        ('INSERT INTO "shop_tag" ("name", "x") VALUES (%s, %s)', "shop_tag", {"name", "x"}),
        ("insert into Tag(ID,name)values(1,2)", "tag", {"id", "name"}),
        ("INSERT INTO tag VALUES (1, 'x')", "tag", ALL),
        ("INSERT INTO tag SELECT 'x'", "tag", ALL),
        ("INSERT INTO tag (SELECT 1, 2)", "tag", ALL),
        ("INSERT INTO tag DEFAULT VALUES", "tag", ALL),
        ('INSERT INTO public."Ta""g" AS t ("I)d") VALUES (1)', 'Ta"g', {"I)d"}),
        ("/* a */ INSERT -- b\n INTO /* c */ tag (id) VALUES (1)", "tag", {"id"}),
        ("WITH x AS (SELECT 1) INSERT INTO tag (name) SELECT 'x'", "tag", {"name"}),
        ("WITH x AS (INSERT INTO tag (name) VALUES ('x') RETURNING id) TABLE x", "tag", {"name"}),
        ("EXPLAIN ANALYZE INSERT INTO tag (id) VALUES (1)", "tag", {"id"}),
        ("PREPARE p AS INSERT INTO tag (id) VALUES ($1)", "tag", {"id"}),
        ("SELECT 1; INSERT INTO tag (id) VALUES (1)", "tag", {"id"}),
        (
            "MERGE INTO tag USING x ON true WHEN NOT MATCHED THEN INSERT (name) VALUES ('x')",
            "tag",
            ALL,
        ),
    ],
)
def test_inserts(sql: str, name: str, columns: set[str] | None) -> None:
    assert writes(sql)[0] == {name: columns}
    assert read(sql).may_insert


@pytest.mark.parametrize(
    ("sql", "leads"),
    [
        ("INSERT INTO tag (name) VALUES ('x')", True),
        ("WITH x AS (SELECT 1) INSERT INTO tag (name) SELECT 'x'", True),
        ("MERGE INTO tag USING x ON true WHEN NOT MATCHED THEN INSERT (name) VALUES ('x')", True),
        ("WITH x AS (DELETE FROM tag RETURNING 1) INSERT INTO tag (name) SELECT 'x'", False),
        ("INSERT INTO log VALUES ('a; INSERT INTO tag (name) VALUES (1)')", False),
        ("DELETE FROM tag; INSERT INTO tag (name) VALUES ('x')", False),
        ("INSERT INTO tag (name) VALUES ('x') ON CONFLICT DO NOTHING", True),
        ("INSERT INTO tag (name) VALUES ('x') ON CONFLICT (id) DO NOTHING", True),
        ('INSERT INTO tag (name, x) VALUES (%s, 1) on conflict("name") DO NOTHING', False),
        ("INSERT INTO tag (name) VALUES ('x') ON CONFLICT (name, id) DO NOTHING", True),
        ("INSERT INTO tag (name) VALUES ('x') ON CONFLICT (lower(name)) DO NOTHING", False),
        ("INSERT INTO tag (name) VALUES ('x') ON CONFLICT ON CONSTRAINT c DO NOTHING", False),
        ("SET search_path = x; INSERT INTO tag (name) VALUES ('x')", False),
        ("EXPLAIN INSERT INTO tag (name) VALUES ('x')", False),
        ("PREPARE p AS INSERT INTO tag (name) VALUES ($1)", False),
        ("CREATE RULE r AS ON INSERT TO x DO ALSO INSERT INTO tag (name) VALUES ('x')", False),
    ],
)
def test_inserts_that_find_the_table_as_it_is_now(sql: str, leads: bool) -> None:
    heads = read(sql)
    assert {each.name: each in heads.leading for each in heads.inserts}["tag"] is leads


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ('UPDATE "tag" SET "name" = %s, "x" = %s WHERE "tag"."id" = %s', {"name", "x"}),
        ("update only public.tag as t set id = id + 1000", {"id"}),
        ("UPDATE tag t SET (id, name) = (1, 'x'), y = f(1, 2)", {"id", "name", "y"}),
        ('UPDATE tag SET "id" = CASE WHEN ("tag"."x" = %s) THEN 1 ELSE NULL END', {"id"}),
        ("WITH x AS (UPDATE tag SET id = 1 RETURNING id) SELECT 1", {"id"}),
    ],
)
def test_updates(sql: str, columns: set[str]) -> None:
    (found,) = writes(sql)[1].values()
    assert found == columns


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT "id" FROM "tag" WHERE "x" = (%s)',
        "SELECT COUNT(*) AS c FROM tag",
        "SAVEPOINT x",
        "SET LOCAL search_path = a",
        "ROLLBACK",
        "",
        "   -- nothing",
    ],
)
def test_what_cannot_insert(sql: str) -> None:
    assert read(sql) is NOTHING


@pytest.mark.parametrize(
    "sql",
    ["SELECT add_item('x')", "SELECT * FROM add_items(3)", "DO $$ $$", "CALL p()", "COPY tag (x)"],
)
def test_what_may_insert_unseen(sql: str) -> None:
    assert read(sql).may_insert
    assert read(sql).inserts == ()


def test_many_statements_of_one_kind_are_one_head() -> None:
    heads = read(
        "INSERT INTO tag (name) VALUES ('x');\n" * 1000 + "INSERT INTO tag (id) VALUES (1)"
    )
    assert [set(each.columns or ()) for each in heads.inserts] == [{"name"}, {"id"}]


def test_columns_are_of_the_statement_that_names_them() -> None:
    assert writes("UPDATE a SET b = 1, c = 2; UPDATE d SET id = 3") == (
        {},
        {"a": {"b", "c"}, "d": {"id"}},
    )
    assert writes("WITH x AS (UPDATE a SET b = 1) UPDATE d SET (id, e) = (1, 2)") == (
        {},
        {"a": {"b"}, "d": {"id", "e"}},
    )


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE tag (id int);\n",
        "WITH x AS (SELECT 1) INSERT INTO tag (name) SELECT 'x';\n",
        "MERGE INTO tag USING x ON true WHEN MATCHED THEN UPDATE SET id = 5, x = 1;\n",
        "UPDATE tag SET a = 1, b = 2 WHERE id = 3;\n",
        "SELECT setval('tag_id_seq', 1);\n",
        "SELECT f(1) FROM tag;\n",
    ],
)
def test_a_long_script_is_read_once(statement: str) -> None:
    """Read to its end from each of its statements, it would take minutes."""
    script = statement * (300_000 // len(statement))
    assert writes(script) == writes(statement)
    assert read(script).may_insert == read(statement).may_insert


def test_equal_heads_in_a_row_are_not_read_again() -> None:
    sql = "; INSERT INTO tag (name) VALUES ('x')" * 1000 + "; INSERT INTO tag (id) VALUES (1)"
    assert [verb for verb, _ in _starts(sql)] == ["insert", "insert"]


def test_only_short_texts_are_remembered() -> None:
    for length, kept in ((10, 1), (30_000, 0)):
        _read_and_remember.cache_clear()
        read("INSERT INTO tag (name) VALUES ('" + "x" * length + "')")
        assert _read_and_remember.cache_info().currsize == kept


@pytest.mark.parametrize("verb", ["SAVEPOINT", "RELEASE SAVEPOINT", "ROLLBACK TO SAVEPOINT"])
def test_savepoints_are_not_remembered(verb: str) -> None:
    _read_and_remember.cache_clear()
    assert read(f'{verb} "s1_x1"') is NOTHING
    assert _read_and_remember.cache_info().currsize == 0
    assert writes(f"{verb} a; INSERT INTO tag (name) VALUES ('x')") == ({"tag": {"name"}}, {})


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("INSERT INTO tag (name) VALUES ('", ({"tag": {"name"}}, {})),
        ("UPDATE tag SET name = ('", ({}, {"tag": {"name", "y"}})),
        ("UPDATE tag SET name = (', \"", ({}, {"tag": {"name", "y"}})),
        ("INSERT INTO tag (SELECT '", ({"tag": ALL}, {})),
        ("INSERT INTO tag (name) (SELECT '", ({"tag": {"name"}}, {})),
    ],
)
def test_a_long_literal_takes_no_more_memory_than_itself(head: str, expected: object) -> None:
    sql = head + "x, y = z; " * 50_000 + "')"
    tracemalloc.start()
    try:
        assert writes(sql) == expected
        assert tracemalloc.get_traced_memory()[1] < len(sql) + 100_000
    finally:
        tracemalloc.stop()


WORDS = r"""INSERT INTO UPDATE SET ( ) " ' ; t = , /* */ -- VALUES MERGE THEN WITH AS $$ \ é"""


@pytest.mark.parametrize(
    ("sql", "altered"),
    [
        ("ALTER TABLE t ALTER id SET DEFAULT nextval('s')", [("t", None)]),
        ('alter table if exists only a."T" alter id set default (NEXTVAL(1))', [("T", None)]),
        ("ALTER TABLE t ALTER id ADD GENERATED BY DEFAULT AS IDENTITY", [("t", None)]),
        ('ALTER TABLE a.T /* so */ RENAME -- and so\n TO "U"', [("t", "U")]),
        (
            "CREATE TABLE a (); ALTER TABLE a RENAME TO b; ALTER TABLE b RENAME TO c",
            [("a", "b"), ("b", "c")],
        ),
        (
            "ALTER TABLE a RENAME TO b; DROP TABLE x; ALTER TABLE b RENAME TO c;",
            [("a", "b"), ("b", "c")],
        ),
        ("ALTER TABLE t ADD n int DEFAULT 1; SELECT nextval('s')", []),
        ("ALTER TABLE t ADD n int GENERATED ALWAYS AS (m + 1) STORED", []),
        ("ALTER TABLE t RENAME n TO m", []),
        ("ALTER SEQUENCE s RENAME TO r", []),
        ("SELECT 'ALTER TABLE a RENAME TO b'", []),
    ],
)
def test_tables_that_are_altered(sql: str, altered: list[tuple[str, str | None]]) -> None:
    assert read(sql).altered == tuple(altered)


@given(st.lists(st.sampled_from([*WORDS.split(), "\n", "\x00"])))
def test_it_never_raises(words: list[str]) -> None:
    read(" ".join(words))
    read("".join(words))


@pytest.mark.parametrize(
    ("sql", "is_true"),
    [
        ("ALTER TABLE t ADD UNIQUE (n)", True),
        ("CREATE UNIQUE INDEX ON t (n)", True),
        ("DO $$ BEGIN END $$", True),
        ("DROP SUBSCRIPTION s", True),
        ("GRANT SELECT ON t TO me", True),
        ("UPDATE t SET n = 1; ALTER TABLE t ADD UNIQUE (n)", True),
        ("INSERT INTO t VALUES (1); ALTER TABLE t ADD UNIQUE (n)", True),
        ("UPDATE t SET n = 1", False),
        ("INSERT INTO t VALUES (1)", False),
        ("SELECT 1", False),
    ],
)
def test_what_may_take_away_what_was_in_the_way(sql: str, is_true: bool) -> None:
    assert read(sql).may_alter is is_true
