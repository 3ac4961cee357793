"""What is read off a text, and what is not."""

from __future__ import annotations

import pytest

from safemigrate.statements import UNREADABLE, Change, Insert, Statement, bare_name, read

ID = ("id", "name")
MERGE = "MERGE INTO t USING s ON true"


@pytest.mark.parametrize(
    ("sql", "table", "names", "leaves"),
    [
        ('INSERT INTO "t" ("name") VALUES (%s)', '"t"', False, True),
        ('INSERT INTO "t" ("id", "name") VALUES (%s, %s)', '"t"', True, False),
        ("insert into T(NAME) values ('a''b', \"x\")", '"t"', False, True),
        ('INSERT INTO s."T ""x""" (id) VALUES (1)', '"s"."T ""x"""', True, False),
        ("INSERT INTO t VALUES (1, 'x')", '"t"', True, False),
        ("INSERT INTO t VALUES (DEFAULT, f(1, default_x))", '"t"', False, True),
        ("INSERT INTO t (name, id) VALUES ('x')", '"t"', False, True),
        ("INSERT INTO t (id) VALUES (DEFAULT), (5)", '"t"', True, True),
        ("INSERT INTO t (id) VALUES (ARRAY[1, 2]), (5)", '"t"', True, False),
        ("INSERT INTO t DEFAULT VALUES", '"t"', False, True),
        ("INSERT INTO t SELECT 1, 'x'", '"t"', True, False),
        ("INSERT INTO t (SELECT 1, 'x')", '"t"', True, False),
        ("INSERT INTO t (name) SELECT 'x'", '"t"', False, True),
        ("INSERT INTO t (id) OVERRIDING USER VALUE VALUES (1)", '"t"', False, True),
        ("INSERT INTO t (id) OVERRIDING SYSTEM VALUE VALUES (1)", '"t"', True, False),
        ("INSERT INTO t AS x (name) VALUES ('x') ON CONFLICT DO NOTHING", '"t"', False, True),
        ("INSERT INTO t (a.b, c[1], name) VALUES (1, 2, 3)", '"t"', False, True),
        ("/* a /* b */ COMMIT; */ INSERT INTO t (id) VALUES (E'\\'; COMMIT')", '"t"', True, False),
        ("WITH x AS (SELECT 1) INSERT INTO t (name) SELECT * FROM x", '"t"', False, True),
        (
            f"{MERGE} WHEN NOT MATCHED THEN INSERT (id) VALUES (1)",
            '"t"',
            True,
            False,
        ),
        (
            f"{MERGE} WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
            '"t"',
            False,
            True,
        ),
        ("INSERT INTO Größe (id) VALUES (1)", '"größe"', True, False),
    ],
)
def test_an_insert(sql: str, table: str, names: bool, leaves: bool) -> None:
    statement = read(sql)
    (insert,) = statement.inserts
    assert insert.table == table
    assert (insert.names("id", ID), insert.leaves("id", ID)) == (names, leaves)
    assert not statement.controls_transaction


@pytest.mark.parametrize(
    ("sql", "changes"),
    [
        ('UPDATE "t" SET "id" = 1, name = f(a, b) WHERE x = 1', [Change('"t"', ("id", "name"))]),
        (
            "UPDATE ONLY s.t AS x SET (id, name) = (1, 2) FROM y",
            [Change('"s"."t"', ("id", "name"))],
        ),
        ("DELETE FROM ONLY t WHERE id = 1", [Change('"t"')]),
        ("SELECT 1 FROM t FOR UPDATE", []),
        ("SELECT 1 FROM t FOR NO KEY UPDATE", []),
        (
            "INSERT INTO t (name) VALUES (1) ON CONFLICT (name) DO UPDATE SET id = 2",
            [Change('"t"', ("id",))],
        ),
        (
            f"{MERGE} WHEN MATCHED THEN UPDATE SET id = 1 WHEN NOT MATCHED THEN DO NOTHING",
            [Change('"t"', ("id",))],
        ),
    ],
)
def test_a_change(sql: str, changes: list[Change]) -> None:
    assert list(read(sql).changes) == changes


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*), max(id), now() FROM t WHERE id IN (1, 2) AND EXISTS (SELECT 1)",
        "SELECT pg_catalog.count(1)",
        "WITH x (a) AS (VALUES (1)) SELECT * FROM x AS y (b)",
        'CREATE INDEX "i" ON "t" (lower("name"))',
        "SET lock_timeout = '1s'",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "COMMENT ON TABLE t IS 'x'",
        "",
        " ; -- nothing",
    ],
)
def test_what_does_nothing_of_note(sql: str) -> None:
    assert read(sql) == Statement()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT f(1)",
        'SELECT * FROM "My Function"(1)',
        "SELECT other.count(1)",
        "SELECT * INTO t FROM s",
        "EXPLAIN ANALYZE INSERT INTO t DEFAULT VALUES",
        "COPY t FROM '/tmp/x'",
        "EXECUTE prepared",
        "REFRESH MATERIALIZED VIEW v",
        "SELECT 'unterminated",
        "SELECT /* unterminated",
        'SELECT U&"d\\0061t"',
        "nonsense",
    ],
)
def test_what_may_do_anything(sql: str) -> None:
    statement = read(sql)
    assert statement.ends_trust
    assert statement.may_write_elsewhere


@pytest.mark.parametrize("sql", ["CALL p()", "DO $x$ BEGIN; COMMIT; END $x$"])
def test_what_is_never_repeated_in_autocommit(sql: str) -> None:
    statement = read(sql)
    assert statement.never_in_autocommit
    assert not statement.controls_transaction


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN; SELECT 1",
        "SELECT 'C:\\'; COMMIT",
        "SELECT 1; /* /* */ */ commit",
        "START TRANSACTION",
        "ROLLBACK TO SAVEPOINT x",
        "RELEASE SAVEPOINT x",
        "PREPARE TRANSACTION 'x'",
    ],
)
def test_transaction_control(sql: str) -> None:
    assert read(sql).controls_transaction


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'COMMIT; BEGIN'",
        "SELECT $a$; COMMIT; $a$",
        'SELECT "; COMMIT"',
        "SELECT 1 -- ; COMMIT",
        "PREPARE p AS SELECT 1",
    ],
)
def test_no_transaction_control(sql: str) -> None:
    assert not read(sql).controls_transaction


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ('CREATE TABLE "app_tag" ("id" int)', {"app_tag"}),
        ("CREATE TEMP TABLE IF NOT EXISTS s.T (id int)", {"t"}),
        ('ALTER TABLE ONLY "a" RENAME TO "b"', {"a", "b"}),
        ('ALTER TABLE "a" RENAME COLUMN "x" TO "y"', {"a"}),
        ("DROP TABLE a, s.b CASCADE", {"a", "b"}),
    ],
)
def test_a_definition_of_tables(sql: str, tables: set[str]) -> None:
    assert read(sql) == Statement(redefines=frozenset(tables))


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER SEQUENCE s RESTART",
        "ALTER TABLE a SET SCHEMA b",
        "TRUNCATE a",
        "DROP SCHEMA s CASCADE",
        "CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION f()",
        "SET search_path = x",
        "SET LOCAL ROLE x",
        "RESET ALL",
        "DISCARD ALL",
    ],
)
def test_what_ends_the_trust(sql: str) -> None:
    assert read(sql) == Statement(ends_trust=True)


def test_several_statements() -> None:
    statement = read("CREATE TABLE a (id int); INSERT INTO b (id) VALUES (1); UPDATE c SET x = 1;")
    assert statement == Statement(
        inserts=(Insert('"b"', ("id",), 1),),
        changes=(Change('"c"', ("x",)),),
        redefines=frozenset({"a"}),
    )


def test_bare_name() -> None:
    assert bare_name('"s"."T ""x"""') == 'T "x"'


def test_a_long_text_is_read_and_not_kept() -> None:
    rows = ", ".join(["(DEFAULT, %s)"] * 3000)
    statement = read(f"INSERT INTO t (id, name) VALUES {rows}")
    assert not statement.inserts[0].names("id", ID)


def test_unreadable_is_what_may_do_anything() -> None:
    assert UNREADABLE.ends_trust
    assert UNREADABLE.may_write_elsewhere
