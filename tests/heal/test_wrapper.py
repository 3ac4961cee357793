"""Every way in which a data migration sends an INSERT, in a transaction and outside of one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, connection, connections, migrations, models, transaction

from safemigrate import driver, healing
from safemigrate.heal.block import forget_sweeps, wrapper_of
from tests.support.databases import execute, next_value, put_behind, rows, value
from tests.support.models import create, shop
from tests.support.project import Law, Project, run_python

if TYPE_CHECKING:
    from collections.abc import Callable

ATOMIC = pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])

# Django 6.1 calls it otherwise.
savepoint_create = getattr(transaction, "savepoint_create", None) or transaction.savepoint

# Copies of what a row in app_tag is, into a table that no statement names.
AUDIT = """
    CREATE TABLE app_audit (id serial PRIMARY KEY, name text);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app_audit (name) VALUES (TG_OP || ' ' || NEW.name);
        RETURN NEW;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON app_tag FOR EACH ROW EXECUTE FUNCTION audit();
    CREATE FUNCTION add_tag(name text) RETURNS bigint LANGUAGE sql AS $$
        INSERT INTO app_tag (name) VALUES (name) RETURNING id
    $$;
    CREATE FUNCTION add_audit(name text) RETURNS int LANGUAGE sql AS $$
        INSERT INTO app_audit (name) VALUES (name) RETURNING id
    $$;
"""


def tags(apps: Any) -> Any:
    return apps.get_model("app", "Tag").objects


def sql(text: Any, params: Any = None) -> Callable[[Any, Any], None]:
    def send(apps: Any, editor: Any) -> None:
        with editor.connection.cursor() as cursor:
            cursor.execute(text, params)

    return send


def by_orm(apps: Any, editor: Any) -> None:
    tags(apps).create(name="new")
    tags(apps).create(name="newer")


def by_bulk_create(apps: Any, editor: Any) -> None:
    model = apps.get_model("app", "Tag")
    model.objects.bulk_create([model(name=str(n)) for n in range(5)], batch_size=2)


def by_get_or_create(apps: Any, editor: Any) -> None:
    for name in ("old", "new", "new", "newer"):
        tags(apps).get_or_create(name=name, defaults={"name": name})
    tags(apps).update_or_create(name="newest", defaults={"name": "newest"})


def in_its_own_atomic(apps: Any, editor: Any) -> None:
    with transaction.atomic():
        tags(apps).create(name="outer")
        with transaction.atomic():
            tags(apps).create(name="inner")


def in_try_except(apps: Any, editor: Any) -> None:
    try:
        with transaction.atomic():
            tags(apps).create(name="tried")
    except IntegrityError:
        tags(apps).create(name="should not be needed")


def with_a_caught_duplicate(apps: Any, editor: Any) -> None:
    try:
        with transaction.atomic():
            tags(apps).create(id=1, name="taken")
    except IntegrityError:
        tags(apps).create(name="instead")


def with_savepoints(apps: Any, editor: Any) -> None:
    with transaction.atomic():
        kept = savepoint_create()
        tags(apps).create(name="kept")
        transaction.savepoint_commit(kept)
        dropped = savepoint_create()
        tags(apps).create(name="dropped")
        transaction.savepoint_rollback(dropped)
        tags(apps).create(name="after")


def with_on_commit(apps: Any, editor: Any) -> None:
    tags(apps).create(name="before")
    transaction.on_commit(lambda: execute("INSERT INTO app_tag (name) VALUES ('on commit')"))


def several_at_once(apps: Any, editor: Any) -> None:
    sql("INSERT INTO app_tag (name) VALUES ('a'); INSERT INTO app_tag (name) VALUES ('b')")(
        apps, editor
    )


WAYS: dict[str, Any] = {
    "orm": by_orm,
    "bulk_create": by_bulk_create,
    "get_or_create": by_get_or_create,
    "own atomic": in_its_own_atomic,
    "try": in_try_except,
    "caught duplicate": with_a_caught_duplicate,
    "savepoints": with_savepoints,
    "on_commit": with_on_commit,
    "several": several_at_once,
    "lower case": sql("insert into app_tag (name) values ('x')"),
    "parameters": sql("INSERT INTO app_tag (name) VALUES (%s), (%s)", ["x", "y"]),
    "comments": sql(
        "-- first\n/* then /* nested */ this */ INSERT INTO app_tag (name) VALUES ('x')"
    ),
    "cte": sql(
        "WITH new AS (INSERT INTO app_tag (name) VALUES ('x') RETURNING id) SELECT * FROM new"
    ),
    "select": sql("INSERT INTO app_tag (name) SELECT name || '!' FROM app_tag ORDER BY id"),
    "no columns": sql("INSERT INTO app_tag VALUES (DEFAULT, 'x')"),
    "default": sql("INSERT INTO app_tag (id, name) VALUES (DEFAULT, 'x'), (DEFAULT, 'y')"),
    "some defaults": sql("INSERT INTO app_tag (id, name) VALUES (DEFAULT, 'x'), (900, 'y')"),
    "default values": sql("INSERT INTO app_tag DEFAULT VALUES"),
    "overriding": sql("INSERT INTO app_tag (id, name) OVERRIDING USER VALUE VALUES (1, 'x')"),
    "alias": sql("INSERT INTO public.app_tag AS t (name) VALUES ('x') RETURNING t.id"),
    "bytes": sql(b"INSERT INTO app_tag (name) VALUES ('x')"),
}
# Those that insert where their text does not tell.
INDIRECT: dict[str, Any] = {
    "function": sql("SELECT add_tag('x')"),
    "function of another": sql("SELECT add_audit('x')"),
    "update": sql("UPDATE app_tag SET name = name || '!' WHERE id = 1"),
    "update all": sql("UPDATE app_tag SET name = 'same'"),
    "do": sql("DO $$ BEGIN INSERT INTO app_tag (name) VALUES ('x'); END $$"),
}
# In autocommit a DO block may have committed inside, so it is not repeated.
NOT_IN_AUTOCOMMIT = {"do"}


def old_tags(project: Project, *, triggers: bool = False) -> None:
    """Three tags with the keys 1 to 3, in a database that is migrated so far."""
    project.migration(*shop())

    def fill() -> None:
        execute("INSERT INTO app_tag (name) VALUES ('old'), ('older'), ('oldest')")
        if triggers:
            execute(AUDIT)
            execute("INSERT INTO app_audit (name) SELECT 'old' FROM generate_series(1, 4)")

    project.begin_with(f"old tags, {triggers=}", fill)


@ATOMIC
@pytest.mark.parametrize("way", WAYS)
def test_run_python(project: Project, law: Law, way: str, atomic: bool) -> None:
    old_tags(project)
    project.migration(run_python(WAYS[way]), atomic=atomic)
    outcome = law.holds()
    assert outcome.error is None
    assert any("app_tag" in notice for notice in outcome.notices)


@ATOMIC
@pytest.mark.parametrize("way", [way for way in (WAYS | INDIRECT) if way not in NOT_IN_AUTOCOMMIT])
def test_run_python_with_triggers_and_functions(
    project: Project, law: Law, way: str, atomic: bool
) -> None:
    old_tags(project, triggers=True)
    project.migration(run_python((WAYS | INDIRECT)[way]), atomic=atomic)
    outcome = law.holds(up_to_keys=True)
    assert outcome.error is None
    assert any("app_audit" in notice for notice in outcome.notices)


@pytest.mark.parametrize("way", sorted(NOT_IN_AUTOCOMMIT))
def test_run_python_in_a_transaction_only(project: Project, law: Law, way: str) -> None:
    old_tags(project, triggers=True)
    project.migration(run_python(INDIRECT[way]))
    assert law.holds(up_to_keys=True).error is None


@ATOMIC
@pytest.mark.parametrize("with_commit", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_run_sql(project: Project, law: Law, count: int, with_commit: bool, atomic: bool) -> None:
    old_tags(project)
    statements: list[Any] = [f"INSERT INTO app_tag (name) VALUES ('{n}')" for n in range(count)]
    if with_commit:
        statements = ["BEGIN", *statements, "COMMIT"]
    project.migration(
        migrations.RunSQL("; ".join(statements) + ";"),
        migrations.RunSQL(statements),
        migrations.RunSQL([("INSERT INTO app_tag (name) VALUES (%s)", ["bound"])]),
        atomic=atomic,
    )
    outcome = law.holds()
    if not (with_commit and atomic):
        assert outcome.error is None
        assert len(outcome.tables["public.app_tag"]) == 3 + 2 * count + 1


def test_composed_statements_are_read(project: Project, law: Law) -> None:
    from django.db.backends.postgresql.psycopg_any import sql as compose

    def send(apps: Any, editor: Any) -> None:
        with editor.connection.cursor() as cursor:
            cursor.execute(
                compose.SQL("INSERT INTO {} (name) VALUES ({}) ON CONFLICT DO NOTHING").format(
                    compose.Identifier("app_tag"), compose.Literal("composed")
                )
            )

    old_tags(project)
    project.migration(run_python(send))
    assert (4, "composed") in law.holds().tables["public.app_tag"]


@ATOMIC
@pytest.mark.parametrize("lazily", [False, True], ids=["list", "generator"])
@pytest.mark.parametrize("table", ["app_tag", "app_audit"])
def test_executemany(project: Project, law: Law, table: str, lazily: bool, atomic: bool) -> None:
    """No row twice, none lost; the collision is on the statement's own table, then elsewhere."""

    def send(apps: Any, editor: Any) -> None:
        params: Any = [[f"row {n}"] for n in range(5)]
        with editor.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO app_tag (name) VALUES (%s)", iter(params) if lazily else params
            )

    old_tags(project, triggers=table == "app_audit")
    project.migration(run_python(send), atomic=atomic)
    assert law.holds(put_back=[table]).error is None


@ATOMIC
def test_executemany_of_keys_that_are_there(project: Project, law: Law, atomic: bool) -> None:
    """A genuine duplicate in the middle: the rows before it are what plain migrate leaves."""

    def send(apps: Any, editor: Any) -> None:
        with editor.connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO app_tag (id, name) VALUES (%s, 'x')", [[50], [51], [1], [52]]
            )

    old_tags(project)
    project.migration(run_python(send), atomic=atomic)
    assert isinstance(law.holds().error, IntegrityError)


REPLACED = """
    ALTER TABLE app_tag RENAME TO app_x;
    CREATE TABLE app_tag (id serial PRIMARY KEY, name text);
    INSERT INTO app_tag (id, name) VALUES (1, 'a'), (2, 'b')
"""
REPLACED_AFTER_A_COPY = """
    DROP TABLE app_product, app_product_tags;
    CREATE TABLE app_other (LIKE app_tag INCLUDING ALL);
    ALTER TABLE app_other ALTER id DROP IDENTITY IF EXISTS, ALTER id DROP DEFAULT;
    CREATE SEQUENCE other;
    ALTER TABLE app_other ALTER id SET DEFAULT nextval('other');
    INSERT INTO app_other VALUES (1, 'a'), (2, 'b');
    DROP TABLE app_tag;
    ALTER TABLE app_other RENAME TO app_tag
"""


@ATOMIC
@pytest.mark.parametrize("drawn_before", [False, True])
@pytest.mark.parametrize(
    "cause",
    [
        "INSERT INTO app_tag (id, name) SELECT id + 10, name FROM app_tag",
        "INSERT INTO app_tag SELECT id + 10, name FROM app_tag",
        "UPDATE app_tag SET id = id + 10",
    ],
)
def test_keys_given_ahead_leave_the_free_values_before_them(
    project: Project, law: Law, cause: str, drawn_before: bool, atomic: bool
) -> None:
    def fill(apps: Any, editor: Any) -> None:
        if drawn_before:
            tags(apps).create(name="before")
        execute(cause)
        for name in ("after", "later"):
            tags(apps).create(name=name)
        sql("INSERT INTO app_tag (name) VALUES ('last') ON CONFLICT DO NOTHING")(apps, editor)

    old_tags(project)
    project.migration(run_python(fill), atomic=atomic)
    assert law.holds().error is None


@ATOMIC
@pytest.mark.parametrize("given", ["given", "given by an UPDATE", "given without a list"])
def test_keys_given_in_the_way_are_jumped_over(project: Project, given: str, atomic: bool) -> None:
    """Plain migrate fails here on any database."""
    cause = {
        "given": "INSERT INTO app_tag (id, name) VALUES (4, 'in the way'), (9, 'ahead')",
        "given by an UPDATE": "UPDATE app_tag SET id = 4 WHERE id = 1",
        "given without a list": "INSERT INTO app_tag VALUES (4, 'in the way')",
    }[given]

    def fill(apps: Any, editor: Any) -> None:
        execute(cause)
        tags(apps).create(name="after")
        sql("INSERT INTO app_tag (name) VALUES ('last') ON CONFLICT DO NOTHING")(apps, editor)

    old_tags(project)
    execute("SELECT setval('app_tag_id_seq', 3)")
    project.migration(run_python(fill), atomic=atomic)
    project.migrate(command="safemigrate")
    largest = value("SELECT max(id) FROM app_tag")
    assert value("SELECT name FROM app_tag WHERE id = %s", [largest]) == "last"
    assert value("SELECT name FROM app_tag WHERE id = %s", [largest - 1]) == "after"


@pytest.mark.parametrize(
    "first",
    [
        "INSERT INTO t VALUES (1, 'first')",
        "INSERT INTO t TABLE template",
        "INSERT INTO t (id, note, more) VALUES (1, 'first', 1)",
    ],
)
def test_an_insert_that_draws_nothing_moves_no_sequence(database: str, first: str) -> None:
    """A copy keeps its keys, and migrate leaves its sequence where it is."""
    execute(
        "CREATE TABLE template AS SELECT 1 AS id, 'first' AS note;"
        "CREATE TABLE t (id serial PRIMARY KEY, note text, more int)"
    )
    with healing() as report:
        execute(first)
        for key in (2, 3):
            execute(f"INSERT INTO t (id, note) VALUES ({key}, 'given')")
        assert next_value("t_id_seq") == 1
        execute("INSERT INTO t (note) VALUES ('drawn')")
    assert [each.before for each in report.resyncs] == [1]
    assert value("SELECT id FROM t WHERE note = 'drawn'") == 4


@pytest.fixture
def enter(database: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Do as django-tenants does."""

    def enter(tenant: str) -> None:
        monkeypatch.setitem(vars(connections["default"]), "schema_name", tenant)
        execute(f"SET search_path = {tenant}, public")

    return enter


def test_tenants_are_swept_one_by_one(enter: Callable[[str], None]) -> None:
    for tenant in ("a", "b", "c"):
        execute(
            f"CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.t (id serial PRIMARY KEY, note text);"
            f"INSERT INTO {tenant}.t VALUES (7)"
        )

    enter("a")
    with healing() as report:
        assert [each.schema for each in report.resyncs] == ["a"]
        enter("b")
        for _ in range(2):
            execute("INSERT INTO t (note) VALUES ('new') ON CONFLICT DO NOTHING")
    assert [each.schema for each in report.resyncs] == ["a", "b"]
    assert rows("SELECT id FROM b.t ORDER BY id") == [(7,), (8,), (9,)]
    assert next_value("c.t_id_seq") == 1


def test_what_tenants_share_is_swept_once(enter: Callable[[str], None]) -> None:
    """What a tenant's migration has given it since is left where it is, as under migrate."""
    execute("CREATE TABLE shared (id serial PRIMARY KEY, note text)")
    execute("CREATE SCHEMA a; CREATE SCHEMA b; INSERT INTO shared VALUES (7)")
    with healing() as report:
        for tenant in ("a", "b"):
            enter(tenant)
            execute("INSERT INTO shared (note) VALUES ('drawn')")
            execute(f"INSERT INTO shared VALUES ({ord(tenant)}, 'given')")
    assert [each.after for each in report.resyncs] == [8]
    assert rows("SELECT id FROM shared WHERE note = 'drawn' ORDER BY id") == [(8,), (9,)]


@pytest.mark.parametrize("then", ["the next tenant", "a wait", "a wait, with a copy"])
def test_a_sequence_of_two_schemas_is_swept_with_either(
    enter: Callable[[str], None], then: str
) -> None:
    """The run has given 1000 itself: what is free before it is drawn, as under migrate."""
    execute(
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE SEQUENCE s;"
        "CREATE TABLE a.t (id bigint PRIMARY KEY DEFAULT nextval('s'), note text);"
        "CREATE TABLE b.t (id bigint PRIMARY KEY DEFAULT nextval('s'), note text);"
        "INSERT INTO a.t VALUES (7)"
    )
    if "copy" in then:
        execute("DROP TABLE b.t")
    enter("a")
    with healing():
        if "copy" in then:
            execute("CREATE TEMPORARY TABLE copy (LIKE t INCLUDING ALL)")
        execute("INSERT INTO t VALUES (1000, 'given')")
        if "wait" in then:
            forget_sweeps(connection)
        else:
            enter("b")
        assert value("INSERT INTO t (note) VALUES ('drawn') RETURNING id") == 8


def test_what_a_tenant_s_role_may_not_read_the_next_one_s_may(
    enter: Callable[[str], None], database: str
) -> None:
    execute(
        "CREATE SCHEMA a; CREATE SCHEMA b;"
        "CREATE TABLE t (id serial PRIMARY KEY, note text); INSERT INTO t VALUES (1), (2), (3);"
        f"CREATE ROLE {database}_role; GRANT USAGE ON SCHEMA a TO {database}_role;"
        f"GRANT INSERT ON t TO {database}_role; GRANT USAGE ON t_id_seq TO {database}_role"
    )
    enter("a")
    execute(f"SET ROLE {database}_role")
    with healing():
        wrapper = wrapper_of(connections["default"])
        assert wrapper
        wrapper.sweep_again()
        execute("INSERT INTO t (note) VALUES ('a') ON CONFLICT DO NOTHING")
        execute("RESET ROLE")
        enter("b")
        execute("INSERT INTO t (note) VALUES ('b') ON CONFLICT DO NOTHING")
    execute(f"DROP OWNED BY {database}_role; DROP ROLE {database}_role")
    assert value("SELECT count(*) FROM t WHERE note = 'b'") == 1


def test_what_is_left_behind_is_told_of_a_retried_insert_too(database: str) -> None:
    """A trigger's sequence is healed; that of ``t.number`` can't be: its range is used up."""
    execute(
        "CREATE TABLE log (id serial PRIMARY KEY, note text); INSERT INTO log VALUES (1), (2);"
        "CREATE TABLE t (id serial PRIMARY KEY, note text); CREATE SEQUENCE number AS smallint;"
        "ALTER TABLE t ADD number smallint UNIQUE DEFAULT nextval('number');"
        "INSERT INTO t (number) VALUES (3), (32767);"
        "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO log (note) VALUES ('log'); RETURN NEW; END $$;"
        "CREATE TRIGGER log AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION log()"
    )
    with healing() as report:
        execute("SELECT setval('log_id_seq', 1, false)")
        execute("INSERT INTO t (note) VALUES ('healed')")
        assert [each for each in report.notes if not each.is_expected]


def test_a_key_given_within_a_free_stretch_is_jumped_over(project: Project) -> None:
    def fill(apps: Any, editor: Any) -> None:
        tags(apps).create(pk=1000, name="given")
        tags(apps).create(name="finds the stretch")
        tags(apps).create(pk=5, name="in the way")
        tags(apps).create(name="after")

    old_tags(project)
    execute("SELECT setval('app_tag_id_seq', 3)")
    project.migration(run_python(fill))
    project.migrate(command="safemigrate")
    assert rows("SELECT name FROM app_tag WHERE id > 3 ORDER BY id") == [
        (name,) for name in ("finds the stretch", "in the way", "given", "after")
    ]


@ATOMIC
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "INSERT INTO app_tag (name) VALUES ('a');"
            "INSERT INTO app_tag (name) VALUES ('b');"
            "INSERT INTO app_tag (name) VALUES ('c')",
            id="three-in-one-text",
        ),
        pytest.param(
            "INSERT INTO app_tag (name) VALUES ('a'), ('b'), ('c'); SET work_mem = '4MB'",
            id="then-a-setting",
        ),
        pytest.param(
            "INSERT INTO app_tag (name) VALUES ('a'), ('b'), ('c');"
            "UPDATE app_tag SET name = 'x' WHERE name = 'a'",
            id="then-an-update",
        ),
        pytest.param(
            "INSERT INTO app_tag (name) VALUES ('a'), ('old'), ('c') ON CONFLICT DO NOTHING",
            id="with-a-row-left-out",
        ),
        pytest.param(
            "INSERT INTO app_tag (name) VALUES ('a'), ('b'), ('bad')",
            id="with-a-row-that-fails",
        ),
    ],
)
def test_values_that_no_count_of_rows_tells(project: Project, text: str, atomic: bool) -> None:
    """Each text draws three."""

    def fill(apps: Any, editor: Any) -> None:
        tags(apps).create(pk=8, name="in the way")
        tags(apps).create(name="4")
        with suppress(IntegrityError), transaction.atomic():
            execute(text)
        with transaction.atomic():  # where nothing is retried
            tags(apps).create(name="after")

    old_tags(project)
    execute("ALTER TABLE app_tag ADD UNIQUE (name), ADD CHECK (name <> 'bad')")
    project.migration(run_python(fill), atomic=atomic)
    project.migrate(command="safemigrate")
    assert rows("SELECT id FROM app_tag WHERE name = 'after'") == [(9,)]


def test_a_free_stretch_comes_to_its_end(project: Project) -> None:
    def fill(apps: Any, editor: Any) -> None:
        tags(apps).create(pk=6, name="in the way")
        for name in ("4", "5", "7"):
            tags(apps).create(name=name)

    old_tags(project)
    execute("SELECT setval('app_tag_id_seq', 3)")
    project.migration(run_python(fill))
    project.migrate(command="safemigrate")
    assert rows("SELECT id, name FROM app_tag WHERE id > 3 ORDER BY id") == [
        (4, "4"),
        (5, "5"),
        (6, "in the way"),
        (7, "7"),
    ]


def test_a_free_stretch_is_not_checked_again_for_each_row(project: Project) -> None:
    sent: list[str] = []

    def fill(apps: Any, editor: Any) -> None:
        tags(apps).create(pk=1000, name="given")
        sent.extend(server_statements(lambda: [tags(apps).create(name=str(n)) for n in range(50)]))

    old_tags(project)
    put_behind("app_tag", to=4)
    project.migration(run_python(fill))
    project.migrate(command="safemigrate")
    assert value("SELECT count(*) FROM app_tag WHERE id BETWEEN 4 AND 53") == 50
    assert len([each for each in sent if each.startswith("SAVEPOINT")]) == 1


def server_statements(work: Callable[[], Any]) -> list[str]:
    """Return what passes our own cursors while ``work`` is done."""
    sent: list[str] = []
    execute = driver.Cursor.execute

    def record(cursor: driver.Cursor, sql: str, params: Any = None) -> None:
        sent.append(sql)
        execute(cursor, sql, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.Cursor, "execute", record)
        work()
    return sent


@pytest.mark.parametrize(
    "cause",
    [
        "ALTER SEQUENCE app_tag_id_seq RESTART",
        "SELECT setval('app_tag_id_seq', 1, false)",
        "DO $$ BEGIN PERFORM setval('app_tag_id_seq', 1, false); END $$",
        REPLACED,
        REPLACED_AFTER_A_COPY,
    ],
)
def test_a_migration_that_puts_a_sequence_behind(project: Project, cause: str) -> None:
    """Plain migrate fails here on any database; in autocommit the INSERT can be retried."""

    def fill(apps: Any, editor: Any) -> None:
        execute(cause)
        tags(apps).create(name="after")

    old_tags(project)
    project.migration(run_python(fill), atomic=False)
    project.migrate(command="safemigrate")
    largest = value("SELECT max(id) FROM app_tag")
    assert value("SELECT name FROM app_tag WHERE id = %s", [largest]) == "after"


def test_a_migration_that_puts_a_sequence_behind_in_a_transaction(
    project: Project, law: Law
) -> None:
    old_tags(project)
    project.migration(
        migrations.RunSQL("ALTER SEQUENCE app_tag_id_seq RESTART"),
        migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('x')"),
    )
    outcome = law.holds()
    assert isinstance(outcome.error, IntegrityError)


@ATOMIC
def test_a_table_of_the_same_name_for_a_while(project: Project, atomic: bool) -> None:
    def fill(apps: Any, editor: Any) -> None:
        with transaction.atomic():
            execute("ALTER TABLE app_tag RENAME TO app_old")
            execute("CREATE TABLE app_tag (id serial PRIMARY KEY, name text)")
            tags(apps).create(name="gone")
            transaction.set_rollback(True)
        sql("INSERT INTO app_tag (name) VALUES ('x') ON CONFLICT DO NOTHING")(apps, editor)

    old_tags(project)
    put_behind("app_tag")
    project.migration(run_python(fill), atomic=atomic)
    project.migrate(command="safemigrate")
    assert value("SELECT name FROM app_tag WHERE id = 4") == "x"


@ATOMIC
@pytest.mark.parametrize("update", [False, True], ids=["ignore", "update"])
def test_bulk_create_loses_and_overwrites_nothing(
    project: Project, law: Law, update: bool, atomic: bool
) -> None:
    def fill(apps: Any, editor: Any) -> None:
        model = apps.get_model("app", "Tag")
        how: dict[str, Any] = {"ignore_conflicts": True}
        if update:
            how = {"update_conflicts": True, "update_fields": ["name"], "unique_fields": ["id"]}
        model.objects.bulk_create([model(name=f"new {n}") for n in range(3)], **how)

    old_tags(project)
    project.migration(run_python(fill), atomic=atomic)
    rows = law.holds().tables["public.app_tag"]
    assert rows == [
        *((n, name) for n, name in enumerate(["old", "older", "oldest"], 1)),
        *((n + 4, f"new {n}") for n in range(3)),
    ]


@ATOMIC
@pytest.mark.parametrize(
    "conflict",
    ["DO NOTHING", "(id) DO NOTHING", "(id) DO UPDATE SET name = 'overwritten'"],
)
def test_on_conflict_by_hand(project: Project, law: Law, conflict: str, atomic: bool) -> None:
    old_tags(project)
    project.migration(
        migrations.RunSQL(f"INSERT INTO app_tag (name) VALUES ('x') ON CONFLICT {conflict}"),
        atomic=atomic,
    )
    assert (4, "x") in law.holds().tables["public.app_tag"]


@ATOMIC
@pytest.mark.parametrize("behind", ["django_migrations", "app_tag"])
@pytest.mark.parametrize("target", ["(name)", "ON CONSTRAINT by_name", "(lower(name))"])
def test_a_row_that_is_there_may_take_a_value_that_is_taken(
    project: Project, law: Law, behind: str, target: str, atomic: bool
) -> None:
    """The conflict with its name comes before that with the key: a draw that does no harm."""
    old_tags(project)
    execute("ALTER TABLE app_tag ADD CONSTRAINT by_name UNIQUE (name)")
    execute("CREATE UNIQUE INDEX ON app_tag (lower(name))")
    upsert = f"INSERT INTO app_tag (name) VALUES ('old'), ('new') ON CONFLICT {target} DO UPDATE"
    project.migration(
        migrations.RunSQL("INSERT INTO app_tag (id, name) VALUES (4, 'given')"),
        migrations.RunSQL(f"{upsert} SET name = excluded.name"),
        atomic=atomic,
    )
    assert (5, "new") in law.holds(put_back=[behind]).tables["public.app_tag"]


@ATOMIC
@pytest.mark.parametrize("operation", ["insert", "update", "merge"])
def test_keys_that_exist_already_are_the_plain_error(
    project: Project, law: Law, operation: str, atomic: bool
) -> None:
    """Also where the sequence is behind; what was committed before is not written again."""
    if operation == "merge" and connection.pg_version < 150000:  # type: ignore[attr-defined]
        pytest.skip("MERGE came with PostgreSQL 15")
    statement = {
        "insert": "INSERT INTO app_tag (id, name) VALUES (2, 'x')",
        "update": "UPDATE app_tag SET id = 2 WHERE id = 1",
        "merge": "MERGE INTO app_tag AS t USING (SELECT 2 AS id) AS s ON false"
        " WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, 'x')",
    }[operation]
    old_tags(project)
    project.migration(
        migrations.RunSQL("INSERT INTO app_tag (id, name) VALUES (10, 'committed before')"),
        migrations.RunSQL(statement),
        atomic=atomic,
    )
    outcome = law.holds()
    assert isinstance(outcome.error, IntegrityError)


@ATOMIC
@pytest.mark.parametrize(
    "taking",
    [
        "DELETE FROM app_tag WHERE id = 3",
        "DELETE FROM app_tag",
        "TRUNCATE app_tag CASCADE",
        "TRUNCATE app_tag RESTART IDENTITY CASCADE",
    ],
)
def test_a_key_that_was_taken_back_is_not_given_again(
    project: Project, law: Law, taking: str, atomic: bool
) -> None:
    """Others may remember it: a sequence that was right would have gone on."""
    old_tags(project)
    project.migration(
        migrations.RunSQL(taking),
        migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('new')"),
        atomic=atomic,
    )
    assert law.holds().error is None


VIEW = "CREATE VIEW app_view AS SELECT id, name AS label FROM app_tag WHERE name <> ''"


@ATOMIC
def test_through_a_view_nothing_is_lost(project: Project, law: Law, atomic: bool) -> None:
    old_tags(project)
    execute(VIEW)
    project.migration(
        migrations.RunSQL("INSERT INTO app_view (label) VALUES ('x') ON CONFLICT DO NOTHING"),
        atomic=atomic,
    )
    assert (4, "x") in law.holds().tables["public.app_tag"]


@ATOMIC
def test_through_a_view_a_duplicate_is_genuine(project: Project, law: Law, atomic: bool) -> None:
    old_tags(project)
    execute(VIEW)
    project.migration(
        migrations.RunSQL("INSERT INTO app_view (id, label) VALUES (2, 'x')"), atomic=atomic
    )
    assert isinstance(law.holds().error, IntegrityError)


@ATOMIC
def test_a_failed_statement_leaves_the_transaction_failed(
    project: Project, law: Law, atomic: bool
) -> None:
    """Code that goes on after an error fares as it does under plain migrate."""

    def fill(apps: Any, editor: Any) -> None:
        with suppress(IntegrityError):
            execute("INSERT INTO app_audit (name) VALUES (NULL)")
        with suppress(IntegrityError):
            execute("INSERT INTO app_tag (name) VALUES ('after')")

    old_tags(project)
    execute(
        "CREATE TABLE app_audit (id serial PRIMARY KEY, name text UNIQUE);"
        "CREATE FUNCTION twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO app_tag (id, name) VALUES (1, 'named by the trigger'); RETURN NEW; END $$;"
        "CREATE TRIGGER twice BEFORE INSERT ON app_audit"
        " FOR EACH ROW EXECUTE FUNCTION twice();"
    )
    project.migration(run_python(fill), atomic=atomic)
    outcome = law.holds()
    assert (outcome.error is not None) == atomic


def test_models_with_inherited_keys(project: Project, law: Law) -> None:
    """A child's key names its parent's: no sequence feeds it, and nothing is looked at twice."""

    def fill(apps: Any, editor: Any) -> None:
        for n in range(3):
            apps.get_model("app", "Special").objects.create(name=str(n))

    old_tags(project)
    project.migration(
        migrations.CreateModel(
            "Special",
            [
                (
                    "tag_ptr",
                    models.OneToOneField(
                        "app.Tag", models.CASCADE, parent_link=True, primary_key=True
                    ),
                )
            ],
            bases=("app.Tag",),
        ),
        run_python(fill),
        create("Later"),
    )
    assert law.holds().error is None
