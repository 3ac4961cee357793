"""What models need and a database has lost: found, and put back."""

from __future__ import annotations

import os
from subprocess import CalledProcessError
from typing import TYPE_CHECKING

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import modify_settings

from safemigrate.sequences.losses import find_losses, restore
from safemigrate.sequences.needs import Loss, Need, needs_of_apps
from safemigrate.sequences.scope import current_schemas
from tests.support.databases import Databases, execute, rows, value
from tests.support.models import create
from tests.support.runs import resyncsequences
from tests.support.servers import tool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.project import Project

TABLE = "auth_group_permissions"
DEFINITION = """
    SELECT data_type, is_nullable, column_default, is_identity, identity_generation,
        pg_get_serial_sequence(quote_ident(table_schema) || '.' || quote_ident(table_name), 'id')
    FROM information_schema.columns WHERE table_name = %s AND column_name = 'id'
"""


def found() -> list[Loss]:
    return find_losses(connection, needs_of_apps(connection), current_schemas(connection))


def statuses() -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for loss in found():
        tables.setdefault(loss.table, []).append(loss.status)
    return tables


def copied(how: str) -> str:
    """Return what leaves a copy in the table's stead."""
    return f"CREATE TABLE copy {how}; DROP TABLE {TABLE}; ALTER TABLE copy RENAME TO {TABLE}"


ZOO: dict[str, tuple[list[str], str]] = {
    "DROP IDENTITY": (["lost default"], f"ALTER TABLE {TABLE} ALTER id DROP IDENTITY"),
    "CREATE TABLE AS": (["lost default", "lost key"], copied(f"AS TABLE {TABLE}")),
    "LIKE": (
        ["lost default", "lost key"],
        copied(f"(LIKE {TABLE}); INSERT INTO copy TABLE {TABLE}"),
    ),
    "LIKE INCLUDING INDEXES": (
        ["lost default"],
        copied(f"(LIKE {TABLE} INCLUDING INDEXES); INSERT INTO copy TABLE {TABLE}"),
    ),
    "no primary key": (["lost key"], f"ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey"),
    "an index that is not valid": (
        ["lost key"],
        f"""
        ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey;
        CREATE UNIQUE INDEX i ON {TABLE} (id);
        UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'i'::regclass
        """,
    ),
    "an index of some rows": (
        ["lost key"],
        f"""
        ALTER TABLE {TABLE} DROP CONSTRAINT {TABLE}_pkey;
        CREATE UNIQUE INDEX ON {TABLE} (id) WHERE id > 7
        """,
    ),
    "another table's sequence": (
        ["foreign sequence"],
        f"""
        CREATE TABLE other (id serial);
        ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
        ALTER TABLE {TABLE} ALTER id SET DEFAULT nextval('other_id_seq')
        """,
    ),
}


@pytest.fixture
def healthy(project: Project) -> Project:
    project.migrate()
    execute(
        "INSERT INTO auth_group (name) VALUES ('a'); "
        f"INSERT INTO {TABLE} (id, group_id, permission_id) SELECT id, 1, id FROM auth_permission"
    )
    return project


def restore_all() -> None:
    for loss in found():
        if loss.is_restorable:
            restore(connection, loss)


def migrates_on(project: Project) -> None:
    """Migrate with what records a migration and what its signals write: each table's next key."""
    project.migration(create("Later"))
    project.migrate(command="safemigrate")
    largest = value(f"SELECT max(id) FROM {TABLE}")
    group = value("INSERT INTO auth_group (name) VALUES ('later') RETURNING id")
    insert = f"INSERT INTO {TABLE} (group_id, permission_id) VALUES (%s, 1) RETURNING id"
    assert value(insert, [group]) == largest + 1


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo(healthy: Project, name: str) -> None:
    before = rows(DEFINITION, [TABLE])
    expected, sql = ZOO[name]
    execute(sql)
    execute(f"DELETE FROM {TABLE} WHERE permission_id = 1")
    assert statuses() == {TABLE: expected}
    restore_all()
    assert statuses() == ({TABLE: ["lost key"]} if "lost key" in expected else {})
    assert rows(DEFINITION, [TABLE]) == before
    for loss in found():
        duplicates, statement = loss.sql
        assert rows(duplicates) == []
        execute(statement)
    assert found() == []
    migrates_on(healthy)


@pytest.mark.parametrize(
    "owned", [f"ALTER SEQUENCE s OWNED BY {TABLE}.id", f"ALTER SEQUENCE s RENAME TO {TABLE}_id_seq"]
)
@pytest.mark.parametrize("step", [1, 10])
def test_a_serial_whose_sequence_is_still_there(healthy: Project, owned: str, step: int) -> None:
    """It is the column's default again, in its own residue."""
    execute(
        f"""
        ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
        CREATE SEQUENCE s AS bigint START 5 INCREMENT {step};
        {owned}
        """
    )
    (loss,) = found()
    restore(connection, loss)
    assert found() == []
    sequence = value(f"SELECT pg_get_serial_sequence('{TABLE}', 'id')")
    assert value(f"SELECT '{sequence}'::regclass::text") in loss.sql[1]
    largest, given = value(f"SELECT max(id) FROM {TABLE}"), value(f"SELECT nextval('{sequence}')")
    assert largest < given <= largest + step
    assert step == 1 or given % step == 5


def test_a_sequence_of_a_serial_that_became_a_bigserial(healthy: Project) -> None:
    execute(
        f"""
        ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
        CREATE SEQUENCE {TABLE}_id_seq AS integer;
        DELETE FROM {TABLE} WHERE permission_id = 1;
        UPDATE {TABLE} SET id = 3000000000 WHERE permission_id = 2
        """
    )
    restore_all()
    insert = f"INSERT INTO {TABLE} (group_id, permission_id) VALUES (1, 1) RETURNING id"
    assert value(insert) == 3000000001


# --- By the real tools ----------------------------------------------------------------------------


@pytest.fixture
def dump(healthy: Project, tmp_path: Path) -> str:
    path = str(tmp_path / "dump")
    name = connection.settings_dict["NAME"]
    tool("pg_dump", "--format=custom", f"--file={path}", database=name)
    return path


def pg_restore(dump: str, *options: str, fails: bool = False) -> None:
    target = connection.settings_dict["NAME"]
    try:
        tool("pg_restore", *options, f"--dbname={target}", dump, database=target)
    except CalledProcessError:
        assert fails
    else:
        assert not fails


def test_pg_restore(healthy: Project, dump: str, databases: Databases) -> None:
    with databases.bound("default"):
        pg_restore(dump)
        assert found() == []


def test_pg_restore_of_single_tables(healthy: Project, dump: str, databases: Databases) -> None:
    """--table leaves identities and keys out."""
    tables = ["django_migrations", "django_content_type", "auth_permission", TABLE]
    before = {table: rows(DEFINITION, [table]) for table in tables}
    with databases.bound("default"):
        call_command("migrate", verbosity=0)
        execute(f"DROP TABLE {', '.join(tables)} CASCADE")
        pg_restore(dump, *(f"--table={table}" for table in tables))
        assert statuses() == {table: ["lost default", "lost key"] for table in tables}
        healthy.migration(create("Early"))
        with pytest.raises(CommandError, match="no migration could be recorded"):
            healthy.migrate(command="safemigrate")
        assert value("SELECT to_regclass('app_early')") is None
        restore_all()
        assert {table: rows(DEFINITION, [table]) for table in tables} == before
        for loss in found():
            execute(loss.sql[1])
        assert found() == []
        migrates_on(healthy)


def test_pg_restore_whose_primary_key_fails(
    healthy: Project, dump: str, databases: Databases
) -> None:
    """A duplicate that a broken index had let in."""
    with databases.bound("default"):
        pg_restore(dump, "--section=pre-data", "--section=data")
        execute("INSERT INTO auth_permission SELECT * FROM auth_permission WHERE id = 3")
        pg_restore(dump, "--section=post-data", fails=True)
        assert statuses() == {"auth_permission": ["lost key"]}
        (loss,) = found()
        duplicates, statement = loss.sql
        assert rows(duplicates) == [(3, 2)]
        execute(
            "DELETE FROM auth_permission WHERE ctid = (SELECT max(ctid) FROM auth_permission "
            "WHERE id = 3)"
        )
        execute(statement)
        assert found() == []
        migrates_on(healthy)


def test_pg_restore_of_data_only(healthy: Project, dump: str, databases: Databases) -> None:
    """Into tables that somebody made from a template without its identities."""
    before = rows(DEFINITION, [TABLE])
    with databases.bound("default"):
        pg_restore(dump, "--schema-only")
        tables = [need.table for need in needs_of_apps(connection)]
        for table in tables:
            execute(f"ALTER TABLE {table} ALTER id DROP IDENTITY")
        pg_restore(dump, "--data-only", "--disable-triggers", fails=True)
        assert statuses() == {table: ["lost default"] for table in tables}
        restore_all()
        assert rows(DEFINITION, [TABLE]) == before
        migrates_on(healthy)


@pytest.mark.parametrize("template", ["ALTER id ADD GENERATED BY DEFAULT AS IDENTITY", "serial"])
def test_a_schema_cloned_by_like(healthy: Project, template: str) -> None:
    """A serial of a clone draws from the sequence of its template; an identity does not."""
    execute(f"CREATE SCHEMA b; CREATE TABLE b.{TABLE} (LIKE {TABLE} INCLUDING ALL)")
    if template == "serial":
        execute(
            f"""
            ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
            CREATE SEQUENCE {TABLE}_id_seq OWNED BY {TABLE}.id;
            ALTER TABLE {TABLE} ALTER id SET DEFAULT nextval('{TABLE}_id_seq');
            DROP TABLE b.{TABLE};
            CREATE TABLE b.{TABLE} (LIKE {TABLE} INCLUDING ALL);
            INSERT INTO b.{TABLE} TABLE {TABLE}
            """
        )
    needs = needs_of_apps(connection)
    lost = find_losses(connection, needs, None)
    if template != "serial":
        assert lost == []
        return
    assert [(loss.schema, loss.table, loss.status) for loss in lost] == [
        ("b", TABLE, "foreign sequence")
    ]
    restore(connection, lost[0])
    assert find_losses(connection, needs, None) == []
    largest = value(f"SELECT max(id) FROM b.{TABLE}")
    given = value(f"INSERT INTO b.{TABLE} (group_id, permission_id) VALUES (7, 7) RETURNING id")
    assert given == largest + 1
    execute("DROP SCHEMA b CASCADE")
    assert found() == []


def test_a_clone_of_a_sequence_that_nobody_owns(healthy: Project) -> None:
    execute(
        f"""
        ALTER TABLE {TABLE} ALTER id DROP IDENTITY;
        CREATE SEQUENCE {TABLE}_id_seq;
        ALTER TABLE {TABLE} ALTER id SET DEFAULT nextval('{TABLE}_id_seq');
        CREATE SCHEMA b;
        CREATE TABLE b.{TABLE} (LIKE {TABLE} INCLUDING ALL);
        CREATE SEQUENCE b.{TABLE}_id_seq
        """
    )
    (loss,) = find_losses(connection, needs_of_apps(connection), ["b"])
    assert loss.status == "foreign sequence"
    restore(connection, loss)
    assert find_losses(connection, needs_of_apps(connection), None) == []
    assert value(f"SELECT pg_get_serial_sequence('b.{TABLE}', 'id')") == f"b.{TABLE}_id_seq"


# --- What is healthy ------------------------------------------------------------------------------

CONTRIB = [f"django.contrib.{name}" for name in "admin sessions sites flatpages redirects".split()]


def test_django_s_own_apps(database: str) -> None:
    with modify_settings(INSTALLED_APPS={"append": CONTRIB}):
        assert found() == []  # nothing is migrated yet
        call_command("migrate", verbosity=0)
        assert found() == []
        tables = {need.table for need in needs_of_apps(connection)}
        assert {"django_session", "auth_user_groups", "django_migrations"} <= tables
        execute("ALTER TABLE django_session DROP CONSTRAINT django_session_pkey")
        assert statuses() == {"django_session": ["lost key"]}


HEALTHY = {
    "serial": "CREATE TABLE t (id serial PRIMARY KEY)",
    "generated": """
        CREATE TABLE t (id serial PRIMARY KEY, twice int GENERATED ALWAYS AS (number * 2) STORED,
                        number int)
    """,
    "unique": "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY UNIQUE)",
    "computed": "CREATE TABLE t (id bigint DEFAULT random() * 1000 PRIMARY KEY)",
    "loose": """
        CREATE SEQUENCE s;
        CREATE TABLE t (id int DEFAULT nextval('s') PRIMARY KEY)
    """,
    "by name": """
        CREATE SEQUENCE s;
        CREATE TABLE t (id int DEFAULT nextval('s'::text) PRIMARY KEY)
    """,
    "domain": """
        CREATE SEQUENCE s;
        CREATE DOMAIN d AS int DEFAULT nextval('s');
        CREATE TABLE t (id d PRIMARY KEY)
    """,
    "shared on purpose": """
        CREATE SCHEMA ids;
        CREATE SEQUENCE ids.s;
        CREATE TABLE other (id int DEFAULT nextval('ids.s'));
        CREATE TABLE t (id int DEFAULT nextval('ids.s') PRIMARY KEY)
    """,
    "partitioned": """
        CREATE TABLE t (id serial, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)
    """,
    "partitioned without a key": """
        CREATE TABLE t (id serial, at date) PARTITION BY RANGE (at)
    """,
    "partition": """
        CREATE TABLE root (id serial, at date) PARTITION BY RANGE (at);
        CREATE TABLE t PARTITION OF root FOR VALUES FROM ('2020-01-01') TO ('2030-01-01')
    """,
    "hypertable": "CREATE TABLE t (id serial); CREATE TABLE heir () INHERITS (t)",
    "heir": """
        CREATE TABLE parent (id serial PRIMARY KEY);
        CREATE TABLE t (PRIMARY KEY (id)) INHERITS (parent)
    """,
    "a key of two": "CREATE TABLE t (id serial, tenant int, PRIMARY KEY (tenant, id))",
    "unique together": "CREATE TABLE t (id serial, tenant int, UNIQUE (tenant, id))",
    "another key": "CREATE TABLE t (id serial, number int PRIMARY KEY)",
    "view": "CREATE VIEW t AS SELECT 1 AS id",
    "before its change to a number": "CREATE TABLE t (id uuid PRIMARY KEY)",
    "before its column is added": "CREATE TABLE t (number int)",
    "before it is created": "SELECT 1",
    "filled by a trigger": """
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION fill()
    """,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_tables_that_have_what_is_needed(database: str, name: str) -> None:
    execute(HEALTHY[name])
    assert find_losses(connection, [Need(None, "t", "id", is_auto=True)], ["public"]) == []


# --- What can't be put back -----------------------------------------------------------------------


def test_a_key_that_is_no_integer(database: str) -> None:
    execute("CREATE TABLE t (id numeric PRIMARY KEY)")
    (loss,) = find_losses(connection, [Need(None, "t", "id", is_auto=True)], ["public"])
    assert (loss.status, loss.sql, loss.is_restorable) == ("lost default", (), False)


def test_another_role_s_function(database: str) -> None:
    execute(
        f"""
        CREATE ROLE {database}_stranger;
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
        ALTER FUNCTION f OWNER TO {database}_stranger;
        CREATE INDEX ON t (f(id))
        """
    )
    try:
        (loss,) = find_losses(connection, [Need(None, "t", "id", is_auto=True)], ["public"])
        assert not loss.is_restorable
    finally:
        execute(f"DROP OWNED BY {database}_stranger CASCADE; DROP ROLE {database}_stranger")


# Each would be run, where it is not found: the caller may do everything.
CODE = {
    "an heir's index": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text);
        CREATE TABLE heir () INHERITS (auth_group);
        INSERT INTO heir VALUES (5, 'old');
        CREATE INDEX ON heir (trap(1))
    """,
    "a partition's index": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text) PARTITION BY RANGE (id);
        CREATE TABLE heir PARTITION OF auth_group DEFAULT;
        INSERT INTO heir VALUES (5, 'old');
        CREATE INDEX ON heir (trap(1))
    """,
    "a CHECK of a nullable column's table": """
        CREATE TABLE auth_group (id int UNIQUE, name text, CHECK (trap(1) = 1));
        INSERT INTO auth_group VALUES (5, 'old')
    """,
    "an heir's CHECK": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text);
        CREATE TABLE heir (CHECK (trap(1) = 1)) INHERITS (auth_group);
        INSERT INTO heir VALUES (5, 'old')
    """,
}
CODE |= {
    "a domain in an index": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text);
        CREATE INDEX ON auth_group ((id + 5::risky));
        INSERT INTO auth_group VALUES (5, 'old')
    """,
    "an array of a domain in an index": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text);
        CREATE INDEX ON auth_group ((ARRAY[id] || '{1,2}'::int[]::risky[]::int[]));
        INSERT INTO auth_group VALUES (5, 'old')
    """,
    "a column of a domain": """
        CREATE TABLE auth_group (id int PRIMARY KEY, name text, a risky) PARTITION BY RANGE (id);
        CREATE TABLE heir PARTITION OF auth_group DEFAULT;
        INSERT INTO auth_group VALUES (5, 'old')
    """,
    "a CHECK that calls nobody's": """
        CREATE TABLE auth_group (id int UNIQUE, name text, CHECK (length(name) > 1));
        INSERT INTO auth_group VALUES (5, 'old')
    """,
}
IS_RESTORED = {"a CHECK that calls nobody's", "a column of a domain"}


@pytest.mark.parametrize("is_printed", [False, True])
@pytest.mark.parametrize("name", CODE)
def test_code_of_others_is_not_run(project: Project, name: str, is_printed: bool) -> None:
    project.migrate()
    stranger = f"stranger_{os.getpid()}"
    execute(
        f"""
        DROP TABLE auth_group CASCADE;
        CREATE ROLE {stranger}; CREATE SCHEMA own AUTHORIZATION {stranger};
        CREATE SEQUENCE own.alarm;
        CREATE FUNCTION trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
            $$ BEGIN PERFORM nextval('own.alarm'); RETURN 1; END $$;
        ALTER FUNCTION trap OWNER TO {stranger};
        CREATE DOMAIN risky AS int CHECK (trap(1) = 1);
        ALTER DOMAIN risky OWNER TO {stranger};
        {CODE[name]};
        SELECT setval('own.alarm', 1, false)
        """
    )
    connection.close()  # a new session has planned nothing yet
    try:
        status = 0 if name in IS_RESTORED else 1
        options = ["auth", "--restore-defaults", *(["--dry-run"] if is_printed else [])]
        printed = resyncsequences(*options, status=0 if is_printed else status)
        assert ("use --restore-defaults --force" in printed) == (name not in IS_RESTORED)
        if is_printed:
            execute(f"SELECT 1; {printed}")
        assert not value("SELECT is_called FROM own.alarm")
        (_, _, _, is_identity, *_) = rows(DEFINITION, ["auth_group"])[0]
        assert (is_identity == "YES") == (name in IS_RESTORED)
        resyncsequences("auth", "--restore-defaults", "--force")
        assert value("INSERT INTO auth_group (name) VALUES ('new') RETURNING id") == 6
    finally:
        execute(f"DROP OWNED BY {stranger} CASCADE; DROP ROLE {stranger}")


# --- What is restored beside others ---------------------------------------------------------------

NEED = [Need(None, "t", "id", is_auto=True)]
BESIDE = {
    "an heir": """
        CREATE TABLE t (id int PRIMARY KEY, name text);
        CREATE SEQUENCE other START 1000;
        CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (t);
        ALTER TABLE heir ALTER id SET DEFAULT nextval('other')
    """,
    "an heir, and the sequence of a serial": """
        CREATE TABLE t (id int PRIMARY KEY, name text);
        CREATE SEQUENCE t_id_seq;
        CREATE SEQUENCE other START 1000;
        CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (t);
        ALTER TABLE heir ALTER id SET DEFAULT nextval('other')
    """,
    "an heir that draws from another table's sequence": """
        CREATE TABLE another (id serial);
        ALTER SEQUENCE another_id_seq RESTART 1000;
        CREATE TABLE t (id int PRIMARY KEY DEFAULT nextval('another_id_seq'), name text);
        CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (t)
    """,
}


@pytest.mark.parametrize("name", BESIDE)
def test_heirs_keep_their_defaults(database: str, name: str) -> None:
    execute(BESIDE[name])
    (loss,) = find_losses(connection, NEED, ["public"])
    restore(connection, loss)
    assert value("INSERT INTO heir (name) VALUES ('x') RETURNING id") == 1000
    assert value("INSERT INTO t (name) VALUES ('x') RETURNING id") == 1


PARTITIONED = """
    CREATE TABLE t (id int, name text) PARTITION BY LIST (name);
    CREATE TABLE part PARTITION OF t FOR VALUES IN ('x');
"""


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "CREATE SEQUENCE s OWNED BY t.id; ALTER TABLE part ALTER id SET DEFAULT nextval('s')",
        "CREATE TABLE u (id serial); ALTER TABLE t ALTER id SET DEFAULT nextval('u_id_seq')",
        "CREATE SEQUENCE s; ALTER TABLE part ALTER id SET DEFAULT nextval('s')",
    ],
)
def test_a_partitioned_table_is_restored_whole(database: str, sql: str) -> None:
    execute(f"{PARTITIONED}; INSERT INTO t VALUES (7, 'x'); {sql}")
    (loss,) = find_losses(connection, NEED, ["public"])
    restore(connection, loss)
    assert value("INSERT INTO t (name) VALUES ('x') RETURNING id") == 8
    assert find_losses(connection, NEED, ["public"]) == []


USED = {
    "by name": "CREATE TABLE u (id int DEFAULT nextval(('t_id_seq'::text)::regclass), name text)",
    "by a domain": """
        CREATE DOMAIN d AS int DEFAULT nextval('t_id_seq');
        CREATE TABLE u (id d, name text)
    """,
    "by another's default": "CREATE TABLE u (id int DEFAULT nextval('t_id_seq'), name text)",
}


@pytest.mark.parametrize("how", USED)
def test_a_sequence_that_others_use_is_not_taken(database: str, how: str) -> None:
    execute("CREATE TABLE t (id int PRIMARY KEY); CREATE SEQUENCE t_id_seq")
    execute(USED[how])
    (loss,) = find_losses(connection, NEED, ["public"])
    restore(connection, loss)
    execute("DROP TABLE t")
    assert value("INSERT INTO u (name) VALUES ('x') RETURNING id") == 1


def test_a_sequence_that_it_owns_and_others_use_stays_where_it_is(database: str) -> None:
    execute(
        """
        CREATE TABLE t (id serial PRIMARY KEY, name text);
        CREATE TABLE u (id int DEFAULT nextval('t_id_seq'));
        INSERT INTO t (name) VALUES ('a');
        SELECT setval('t_id_seq', 50);
        ALTER TABLE t ALTER id DROP DEFAULT
        """
    )
    (loss,) = find_losses(connection, NEED, ["public"])
    restore(connection, loss)
    assert value("SELECT last_value FROM t_id_seq") == 50
    assert value("INSERT INTO t (name) VALUES ('b') RETURNING id") == 2


FILL = "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
TRIGGER = "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION"


@pytest.mark.parametrize(
    "sql",
    [
        f"{FILL}; {TRIGGER} fill(); ALTER TABLE t DISABLE TRIGGER g",
        f"{TRIGGER} tsvector_update_trigger(words, 'pg_catalog.simple', name)",
    ],
)
def test_a_trigger_that_fills_nothing(database: str, sql: str) -> None:
    execute(f"CREATE TABLE t (id int PRIMARY KEY, name text, words tsvector); {sql}")
    assert [each.status for each in find_losses(connection, NEED, ["public"])] == ["lost default"]


def test_a_trigger_that_may_fill_it(database: str) -> None:
    execute(f"CREATE TABLE t (id int PRIMARY KEY, name text); {FILL}; {TRIGGER} fill()")
    assert find_losses(connection, NEED, ["public"]) == []
    (loss,) = find_losses(connection, NEED, ["public"], force=True)
    restore(connection, loss)
    assert value("INSERT INTO t (name) VALUES ('x') RETURNING id") == 1
