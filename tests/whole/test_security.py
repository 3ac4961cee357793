"""What a role with few rights leaves lying about is not run by a superuser's resync."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations import Migration, RunSQL
from django.db.models.signals import pre_migrate

from safemigrate import driver
from safemigrate.locking.blockers import WHO_BLOCKS
from safemigrate.locking.concurrently import invalid_indexes
from safemigrate.locking.lock import migration_lock
from safemigrate.locking.timeouts import lock_timeout
from safemigrate.sequences.losses import record_that_takes_no_row
from safemigrate.sequences.sweep import sweep
from tests.support.databases import execute, next_value, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

# Roles are the whole server's, and another run of these tests may be there.
MALLORY = f"mallory_{os.getpid()}"

# Everything of mallory's ends in ring(), which notes it in a way that no rollback takes back.
TRAPS = """
    CREATE SEQUENCE alarm;
    CREATE SEQUENCE draws;
    CREATE FUNCTION ring() RETURNS void LANGUAGE plpgsql IMMUTABLE
        SET search_path = pg_catalog AS $$
        BEGIN
            IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
                PERFORM pg_catalog.nextval('mallory.alarm');
            END IF;
        END $$;
    CREATE FUNCTION trap(bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM mallory.ring(); RETURN $1; END $$;
    CREATE FUNCTION sprung() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN NEW; END $$;

    CREATE TABLE plain (id serial PRIMARY KEY);
    CREATE TABLE with_default (
        id serial PRIMARY KEY, other bigint UNIQUE DEFAULT mallory.trap(nextval('draws')));
    CREATE TABLE with_trigger (id serial PRIMARY KEY);
    CREATE TRIGGER sprung BEFORE INSERT OR UPDATE ON with_trigger
        FOR EACH STATEMENT EXECUTE FUNCTION sprung();
    CREATE DOMAIN trapped AS integer CHECK (mallory.trap(VALUE) > 0);
    CREATE SEQUENCE for_domain;
    CREATE TABLE with_domain (id trapped PRIMARY KEY DEFAULT nextval('for_domain'));
    CREATE TYPE grade AS ENUM ('a');
    CREATE FUNCTION to_grade(bigint) RETURNS grade LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN 'a'; END $$;
    CREATE FUNCTION from_grade(grade) RETURNS numeric LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN 1; END $$;
    CREATE CAST (bigint AS grade) WITH FUNCTION to_grade AS ASSIGNMENT;
    CREATE CAST (grade AS numeric) WITH FUNCTION from_grade;
    CREATE SEQUENCE for_grade;
    CREATE TABLE with_cast (id grade PRIMARY KEY DEFAULT nextval('for_grade'));
    INSERT INTO with_cast VALUES ('a');
    CREATE TABLE with_check (id serial PRIMARY KEY, CHECK (mallory.trap(1) = 1));
    CREATE TABLE with_policy (id serial PRIMARY KEY);
    ALTER TABLE with_policy ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY p ON with_policy USING (mallory.trap(1) = 1);
    CREATE TABLE parent_of_checked (id serial PRIMARY KEY);
    CREATE TABLE checked_child (CHECK (mallory.trap(1) = 1)) INHERITS (parent_of_checked);

    CREATE TABLE with_index (id serial PRIMARY KEY);
    CREATE INDEX ON with_index (mallory.trap(1));
    CREATE TABLE with_predicate (id serial PRIMARY KEY);
    CREATE INDEX ON with_predicate (id) WHERE mallory.trap(1) = 1;
    CREATE OPERATOR === (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = trapped_equals);
    CREATE TABLE with_operator (id serial PRIMARY KEY);
    CREATE INDEX ON with_operator ((1::bigint OPERATOR(mallory.===) 1::bigint));
    CREATE TABLE with_statistics (id serial PRIMARY KEY, a int);
    CREATE TABLE with_partition_key (id serial, a int) PARTITION BY RANGE ((a + mallory.trap(1)));
    CREATE TABLE with_partition_key_1 PARTITION OF with_partition_key (PRIMARY KEY (id)) DEFAULT;
"""
# Before PostgreSQL 14 there are none on expressions.
STATISTICS = "CREATE STATISTICS st ON (mallory.trap(1) + a), a FROM with_statistics"
EQUALS = """
    CREATE FUNCTION trapped_equals(bigint, bigint) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM mallory.ring(); RETURN true; END $$;
"""
# Names of the server's own, waiting in a search_path that asks mallory first.
IMPOSTORS = """
    CREATE FUNCTION max(bigint) RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN 1; END $$;
    CREATE FUNCTION nextval(regclass) RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN 1; END $$;
    CREATE FUNCTION setval(regclass, bigint) RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN 1; END $$;
    CREATE FUNCTION current_schemas(boolean) RETURNS name[] LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN NULL; END $$;
    CREATE FUNCTION unnest(name[]) RETURNS SETOF name LANGUAGE plpgsql AS
        $$ BEGIN PERFORM mallory.ring(); RETURN; END $$;
    CREATE TABLE pg_class (oid oid, relname name, relnamespace oid, relkind "char");
    CREATE TABLE pg_sequence (seqrelid oid);
"""
OPERATORS = [
    *(
        (sign, kind, kind)
        for sign in ("=", "<>", "<", "<=", ">", ">=", "~")
        for kind in ("oid", "name", "bigint", "integer", "numeric", '"char"', "text", "boolean")
    ),
    # The server has none of just these types: they are found in whatever place of the search_path.
    ("=", "oid", "regclass"),
    ("<>", "oid", "regnamespace"),
]
UNTRAPPED = [
    "plain",
    "with_default",
    "with_trigger",
    "with_domain",
    "with_check",
    "with_policy",
    "parent_of_checked",
]
TRAPPED = ["with_index", "with_predicate", "with_operator", "with_partition_key"]


@pytest.fixture
def mallory(database: str) -> Iterator[None]:
    """Let a role without any rights but to its own schema set its traps."""
    execute(f"CREATE ROLE {MALLORY}; CREATE SCHEMA mallory AUTHORIZATION {MALLORY}")
    try:
        execute(f"SET ROLE {MALLORY}; SET search_path = mallory")
        execute(EQUALS + TRAPS)
        if knows_statistics():
            execute(STATISTICS)
        for table in [*UNTRAPPED, *TRAPPED, "with_statistics"]:
            execute(f"INSERT INTO {table} (id) VALUES (7)")
        execute(IMPOSTORS)
        for sign, left, right in OPERATORS:
            execute(
                f"CREATE OR REPLACE FUNCTION impostor({left}, {right}) RETURNS boolean LANGUAGE "
                "plpgsql IMMUTABLE AS $$ BEGIN PERFORM mallory.ring(); RETURN true; END $$;"
                f"CREATE OPERATOR {sign} "
                f"(LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = mallory.impostor)"
            )
        execute("RESET ROLE; RESET search_path")
        execute(f'ALTER DATABASE "{database}" SET search_path = mallory, pg_catalog, public')
        connection.close()
        yield
    finally:
        connection.close()
        execute("RESET ROLE; SET search_path = pg_catalog")
        execute(f"DROP OWNED BY {MALLORY} CASCADE; DROP ROLE {MALLORY}")


def knows_statistics() -> bool:
    return bool(value("SHOW server_version_num") >= "140000")


def untrapped() -> list[str]:
    return UNTRAPPED if knows_statistics() else [*UNTRAPPED, "with_statistics"]


def trapped() -> list[str]:
    return [*TRAPPED, "with_statistics"] if knows_statistics() else TRAPPED


def has_rung() -> bool:
    return bool(value("SELECT is_called FROM mallory.alarm"))


def resync(*args: str, status: int) -> dict[str, dict[str, Any]]:
    out = io.StringIO()
    with pytest.raises(SystemExit) as left:
        call_command("resyncsequences", *args, json=True, stdout=out)
    assert left.value.code == status
    found = json.loads(out.getvalue())["sequences"]
    return {column["table"]: each for each in found for column in each["columns"]}


def test_the_alarm_works(mallory: None) -> None:
    """A superuser's plain SELECT rings it, which is why such tables are not read."""
    execute("SET search_path = pg_catalog; BEGIN")
    assert not has_rung()
    rang = []
    for table in trapped():
        execute(f"SELECT max(id) FROM mallory.{table} WHERE id BETWEEN 1 AND 100")
        if has_rung():
            rang.append(table)
            execute("SELECT setval('mallory.alarm', 1, false)")
    execute("ROLLBACK")
    assert {"with_index", "with_operator"} <= set(rang)


def test_a_superuser_s_resync_runs_nothing_of_others(mallory: None) -> None:
    found = resync("--all-schemas", status=3)
    assert not has_rung()
    for table in untrapped():
        assert found[table]["status"] == "resynced"
    for table in trapped():
        assert found[table]["status"] == "unknown"
        assert f"calls a function of role {MALLORY}," in found[table]["reason"]
        assert found[table]["advice"] == (
            f"run as {MALLORY}, or, if that role is trusted, with --force"
        )
    resync("--all-schemas", "--check", status=3)
    assert not has_rung()


def test_in_the_hostile_schema_itself(mallory: None) -> None:
    found = resync(status=3)
    assert not has_rung()
    resynced = {table for table, each in found.items() if each["status"] == "resynced"}
    assert resynced == {*untrapped(), "checked_child"}


def test_the_owner_may_read_its_own(mallory: None) -> None:
    execute(f"SET ROLE {MALLORY}")
    found = resync("--schema", "mallory", status=3)
    execute("RESET ROLE; SET search_path = pg_catalog")
    for table in {*untrapped(), *trapped()} - {"with_policy"}:
        assert found[table]["status"] == "resynced"
    assert "row-level security" in found["with_policy"]["reason"]


def test_forced(mallory: None) -> None:
    call_command("resyncsequences", "--all-schemas", "--force", stdout=io.StringIO())
    execute("SET search_path = pg_catalog")
    assert next_value("mallory.with_index_id_seq") == 8


@pytest.mark.parametrize("is_ours", [False, True], ids=["tables of others", "tables of our own"])
def test_a_superuser_s_sweep_runs_nothing_of_others(mallory: None, is_ours: bool) -> None:
    """Whose the table is says nothing: what counts is whose the function in its index is."""
    for table in trapped() if is_ours else ():
        execute(f"ALTER TABLE mallory.{table} OWNER TO SESSION_USER")
    execute("SELECT setval('mallory.alarm', 1, false)")
    found = list(sweep(connection))
    assert not has_rung()
    statuses = {key.table: finding.status for finding in found for key in finding.sequence.keys}
    assert {statuses[table] for table in untrapped()} == {"resynced"}
    assert {statuses[table] for table in trapped()} == {"unknown"}


@pytest.fixture
def bait(mallory: None) -> None:
    """Have something there that is not left out before an operator of mallory's is asked."""
    execute(
        "CREATE TABLE mallory.keyless (id int NOT NULL); CREATE INDEX i ON mallory.keyless (id);"
        "UPDATE pg_catalog.pg_index SET indisvalid = false "
        "WHERE indexrelid OPERATOR(pg_catalog.=) 'mallory.i'::regclass::pg_catalog.oid"
    )


@pytest.mark.usefixtures("bait")
def test_what_is_asked_on_the_session_s_own_search_path_runs_nothing_of_others() -> None:
    """Where a name means what a statement of the run would mean by it."""
    execute("CREATE TABLE mallory.django_migrations (id int)")
    with driver.cursor(connection) as ours:
        ours.rows(WHO_BLOCKS, [0])
    with (
        migration_lock(connection, patience=5, tell=print),
        lock_timeout(connection, 5, patience=5, retry_python=False, tell=print),
    ):
        pre_migrate.send(None, using="default", plan=[(Migration("m", "m"), False)])
        invalid_indexes(connection, "CREATE INDEX CONCURRENTLY i ON plain (id)")
        record_that_takes_no_row(connection)
    assert not has_rung()


@pytest.mark.usefixtures("bait")
@pytest.mark.parametrize("options", [(), ("--lock-timeout", "5")], ids=["", "with a lock timeout"])
def test_a_superuser_s_run_runs_nothing_of_others(
    project: Project, options: tuple[str, ...]
) -> None:
    """Under a search_path that asks mallory last: public, say, where everybody may create."""
    name = connection.settings_dict["NAME"]
    execute(f'ALTER DATABASE "{name}" SET search_path = public, mallory')
    connection.close()
    project.migrate()
    index = "CREATE INDEX CONCURRENTLY i ON public.django_migrations (app)"
    project.migration(RunSQL(index), atomic=False)
    project.migrate(*options, command="safemigrate")
    assert not has_rung()
