"""Keys that a run gives itself, and draws beside them that collide with nothing.

On the twin in sync each draw takes its value. A recheck may move a sequence only where the draw
would have failed: where the column alone is unique, at once, in the table that the row goes to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, migrations, transaction

import safemigrate
from tests.support.databases import execute, rows, value
from tests.support.project import Law, Project, run_python

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.attack

THREE = "INSERT INTO app_other (name) VALUES ('a'), ('b'), ('c');"
NUMBERED = """
    CREATE TABLE app_other (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number serial, name text {unique}
    );
"""
INVOICES = """
    CREATE TABLE app_invoice (year int DEFAULT 2026, number serial, {kind} (year, number));
    INSERT INTO app_invoice SELECT 2025, n FROM generate_series(1, 40) AS n;
"""


def case(name: str, *script: str, setup: str = "") -> Any:
    return pytest.param(setup, list(script), id=name.replace(" ", "-"))


CASES = [
    case(
        "not unique",
        "INSERT INTO app_other (number, name) VALUES (4, 'given')",
        "INSERT INTO app_other (name) VALUES ('drawn')",
        setup=NUMBERED.format(unique="") + THREE,
    ),
    case(
        "indexed and not unique",
        "INSERT INTO app_other (number, name) VALUES (4, 'given')",
        "INSERT INTO app_other (name) VALUES ('drawn')",
        setup=NUMBERED.format(unique="") + "CREATE INDEX ON app_other (number);" + THREE,
    ),
    case(
        "unique with a name",
        "INSERT INTO app_other (name, number) VALUES ('b', 4)",
        "INSERT INTO app_other (name) VALUES ('a')",
        setup=NUMBERED.format(unique=", UNIQUE (name, number)") + THREE,
    ),
    case(
        "taken by another tenant",
        "INSERT INTO app_other (tenant, id, name) VALUES (2, 7, 'given')",
        "INSERT INTO app_other (tenant, name) VALUES (1, 'drawn')",
        setup="""
            CREATE TABLE app_other (tenant int, id serial, name text, PRIMARY KEY (tenant, id));
            INSERT INTO app_other (tenant, name) SELECT 1 + n % 2, n FROM generate_series(1, 6) n;
        """,
    ),
    case(
        "taken in another partition",
        "INSERT INTO app_part (id, at, name) VALUES (19, 5, 'given')",
        "INSERT INTO app_part (at, name) VALUES (15, 'drawn')",
        setup="""
            CREATE TABLE app_part (id serial, at int, name text, PRIMARY KEY (id, at))
            PARTITION BY RANGE (at);
            CREATE TABLE app_part_1 PARTITION OF app_part FOR VALUES FROM (0) TO (10);
            CREATE TABLE app_part_2 PARTITION OF app_part FOR VALUES FROM (10) TO (20);
            INSERT INTO app_part (at, name) SELECT n, n FROM generate_series(1, 18) AS n;
        """,
    ),
    case(
        "taken in an inheriting table",
        "INSERT INTO app_child (id, name) VALUES (4, 'given')",
        "INSERT INTO app_other (id, name) VALUES (100, 'given')",
        "INSERT INTO app_other (name) VALUES ('drawn')",
        setup="""
            CREATE TABLE app_other (id serial PRIMARY KEY, name text);
            CREATE TABLE app_child (PRIMARY KEY (id)) INHERITS (app_other);
        """
        + THREE,
    ),
    case(
        "taken in another table of the same sequence",
        "INSERT INTO app_one (id, name) VALUES (5, 'given')",
        "INSERT INTO app_two (id, name) VALUES (90, 'given')",
        "INSERT INTO app_two (name) VALUES ('drawn')",
        setup="""
            CREATE SEQUENCE app_keys;
            CREATE TABLE app_one (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
            CREATE TABLE app_two (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
            INSERT INTO app_one (name) VALUES ('a'), ('b');
            INSERT INTO app_two (name) VALUES ('a'), ('b');
        """,
    ),
    case(
        "nothing ahead but in another table of the same sequence",
        "INSERT INTO app_one (id, name) VALUES (90, 'given')",
        "INSERT INTO app_two (id, name) VALUES (1, 'given')",
        "INSERT INTO app_two (name) VALUES ('drawn')",
        setup="""
            CREATE SEQUENCE app_keys;
            CREATE TABLE app_one (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
            CREATE TABLE app_two (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
            INSERT INTO app_one (name) VALUES ('a'), ('b');
            INSERT INTO app_two (name) VALUES ('a'), ('b');
        """,
    ),
    case(
        "taken until the given row has moved",
        """
        BEGIN;
        INSERT INTO app_other (id, name) VALUES (4, 'given')
        """,
        "INSERT INTO app_other (name) VALUES ('drawn')",
        "UPDATE app_other SET id = 100 WHERE name = 'given'; COMMIT",
        setup="""
            CREATE TABLE app_other (id serial UNIQUE DEFERRABLE INITIALLY DEFERRED, name text);
        """
        + THREE,
    ),
    case(
        "deleted before the draw",
        "INSERT INTO app_item (id, name) VALUES (21, 'probe')",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "moved before the draw",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "UPDATE app_item SET id = 500 WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('drawn')",
    ),
    case(
        "deleted before the draw in one text",
        "INSERT INTO app_item (id, name) VALUES (21, 'probe')",
        "DELETE FROM app_item WHERE id = 21; INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "moved before the draw in one text",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "UPDATE app_item SET id = 500 WHERE id = 21; INSERT INTO app_item (name) VALUES ('x')",
    ),
    case(
        "deleted and drawn by one statement",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        """
        WITH gone AS (DELETE FROM app_item WHERE id = 21 RETURNING name)
        INSERT INTO app_item (name) SELECT name FROM gone
        """,
    ),
    case(
        "truncated before the draw in one text",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "TRUNCATE app_item; INSERT INTO app_item (name) VALUES ('first')",
    ),
    case(
        "given by a trigger instead",
        "INSERT INTO app_other (id, name) VALUES (4, 'given')",
        "INSERT INTO app_other (name) VALUES ('numbered')",
        "DROP TRIGGER t ON app_other",
        "DELETE FROM app_other WHERE id = 4",
        "INSERT INTO app_other (name) VALUES ('drawn')",
        setup="CREATE TABLE app_other (id serial PRIMARY KEY, name text);"
        + THREE
        + """
            CREATE FUNCTION numbers() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN NEW.id := NEW.id + 1000; RETURN NEW; END $$;
            CREATE TRIGGER t BEFORE INSERT ON app_other FOR EACH ROW
            WHEN (NEW.name = 'numbered') EXECUTE FUNCTION numbers();
        """,
    ),
    case(
        "only explained",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "EXPLAIN INSERT INTO app_item (name) VALUES ('x')",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "only written into a function",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        """
        CREATE FUNCTION adds() RETURNS void LANGUAGE sql AS
        $$ INSERT INTO app_item (name) VALUES ('x') $$
        """,
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "only written into a text",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "INSERT INTO app_log (name) VALUES ('done; INSERT INTO app_item (name) VALUES (1)')",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "in another table by the schema that the text sets",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "SET LOCAL search_path = other; INSERT INTO app_item (name) VALUES ('x')",
        "INSERT INTO public.app_log (name) VALUES ('after')",
        "SET search_path = public",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
        setup="CREATE SCHEMA other; CREATE TABLE other.app_item (id serial, name text);",
    ),
    case(
        "through a view to another table",
        "INSERT INTO app_view (id, name) VALUES (21, 'given')",
        "INSERT INTO app_view (name) VALUES ('log')",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
        setup="""
            CREATE VIEW app_view AS SELECT id, name FROM app_item;
            CREATE FUNCTION views() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN
                IF NEW.id IS NULL THEN INSERT INTO app_log (name) VALUES (NEW.name);
                ELSE INSERT INTO app_item VALUES (NEW.id, NEW.name); END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER t INSTEAD OF INSERT ON app_view FOR EACH ROW EXECUTE FUNCTION views();
        """,
    ),
    case(
        "elsewhere by a rule",
        "INSERT INTO app_item (id, name) VALUES (21, 'given')",
        "CREATE RULE r AS ON INSERT TO app_item DO INSTEAD INSERT INTO app_log (name) VALUES ('r')",
        "INSERT INTO app_item (name) VALUES ('x')",
        "DROP RULE r ON app_item",
        "DELETE FROM app_item WHERE id = 21",
        "INSERT INTO app_item (name) VALUES ('after')",
    ),
    case(
        "descending",
        "INSERT INTO app_other (id, name) VALUES (50, 'given')",
        "INSERT INTO app_other (name) VALUES ('x'), ('y')",
        "INSERT INTO app_other (name) VALUES ('z')",
        setup="""
            CREATE SEQUENCE app_keys INCREMENT -1 MAXVALUE 100 START 100;
            CREATE TABLE app_other (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
        """
        + THREE,
    ),
    case(
        "by tens",
        "INSERT INTO app_other (id, name) VALUES (34, 'given')",
        "INSERT INTO app_other (name) VALUES ('x'), ('y')",
        "INSERT INTO app_other (name) VALUES ('z')",
        setup="""
            CREATE SEQUENCE app_keys INCREMENT 10 START 3;
            CREATE TABLE app_other (id int DEFAULT nextval('app_keys') PRIMARY KEY, name text);
        """
        + THREE,
    ),
    case(
        "a trigger that drops the row",
        "INSERT INTO app_other (name) VALUES ('skip')",
        "INSERT INTO app_other (id, name) VALUES (7, 'given')",
        "INSERT INTO app_other (name) VALUES ('skip')",
        "INSERT INTO app_other (name) VALUES ('x')",
        setup="CREATE TABLE app_other (id serial PRIMARY KEY, name text);"
        + THREE
        + """
            CREATE FUNCTION drops() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RETURN CASE NEW.name WHEN 'skip' THEN NULL ELSE NEW END; END $$;
            CREATE TRIGGER t BEFORE INSERT ON app_other FOR EACH ROW EXECUTE FUNCTION drops();
        """,
    ),
    case(
        "a trigger that makes room for the statement",
        "INSERT INTO app_other (id, name) VALUES (4, 'old')",
        "INSERT INTO app_other (name) VALUES ('new')",
        "INSERT INTO app_other (name) VALUES ('newer')",
        setup="CREATE TABLE app_other (id serial PRIMARY KEY, name text);"
        + THREE
        + """
            CREATE FUNCTION makes_room() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN DELETE FROM app_other WHERE name = 'old'; RETURN NULL; END $$;
            CREATE TRIGGER t BEFORE INSERT ON app_other EXECUTE FUNCTION makes_room();
        """,
    ),
]


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize(("setup", "script"), CASES)
def test_a_draw_that_collides_with_nothing_takes_its_value(
    filled: Project, law: Law, setup: str, script: list[Any], atomic: bool
) -> None:
    if setup:
        execute(setup)
    if atomic:
        script = [text.replace("BEGIN;", "").replace("; COMMIT", "") for text in script]
    filled.migration(migrations.RunSQL(script), atomic=atomic)

    assert law.holds(put_back=["nothing"]).error is None


# --- what a recheck can't know (docs/limits.md) ------------------------------------------------


def test_a_value_is_freed_for_a_statement_that_draws_none(filled: Project, law: Law) -> None:
    """The statement's text does not tell; the numbers go on past the given key."""
    filled.migration(
        migrations.RunSQL(
            [
                "INSERT INTO app_item (id, name) VALUES (21, 'probe')",
                "INSERT INTO app_item (name) SELECT 'x' WHERE false",
                "DELETE FROM app_item WHERE id = 21",
                "INSERT INTO app_item (name) VALUES ('after')",
            ]
        )
    )
    assert law.run("safemigrate").error is None
    assert rows("SELECT id FROM app_item WHERE name = 'after'") == [(22,)]


def test_a_draw_that_is_expected_to_fail_succeeds(filled: Project, law: Law) -> None:
    """As a migration has it whose author has met a sequence that is behind."""

    def fill(apps: Any, editor: Any) -> None:
        Item, Log = apps.get_model("app.Item"), apps.get_model("app.Log")
        Item.objects.create(pk=21, name="given")
        for tries in range(5):
            try:
                with transaction.atomic():
                    Item.objects.create(name="drawn")
            except IntegrityError:
                Log.objects.create(name=f"try {tries} failed")

    filled.migration(run_python(fill))
    assert law.run("safemigrate").error is None
    assert value("SELECT count(*) FROM app_item WHERE name = 'drawn'") == 5
    assert rows("SELECT name FROM app_log WHERE id > 20") == []


# --- numbers that restart on purpose ----------------------------------------------------------


def first_number_of_2026(
    project: Project, law: Law, *script: str, setup: Sequence[str], atomic: bool = True
) -> Any:
    for text in setup:
        execute(text)
    execute("SELECT setval('app_invoice_number_seq', 1, false)")
    project.migration(migrations.RunSQL(list(script)), atomic=atomic)
    assert law.run("safemigrate").error is None
    return rows("SELECT number FROM app_invoice WHERE year = 2026")


DRAW = "INSERT INTO app_invoice (year) VALUES (2026)"
A_YEAR_BEFORE = "INSERT INTO app_invoice SELECT 2024, n FROM generate_series(1, 30) AS n"


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param([], id="plainly"),
        pytest.param(["INSERT INTO app_invoice VALUES (2025, 41)"], id="beside-a-given-one"),
        pytest.param(
            ["UPDATE app_invoice SET number = number + 100 WHERE year = 2024"],
            id="beside-an-update",
        ),
        pytest.param(["INSERT INTO app_invoice VALUES (2023, 1), (2023, 2)"], id="beside-a-year"),
    ],
)
def test_a_numbering_restarted_each_year(
    filled: Project, law: Law, script: list[str], atomic: bool
) -> None:
    setup = [INVOICES.format(kind="UNIQUE"), A_YEAR_BEFORE]
    assert first_number_of_2026(filled, law, *script, DRAW, setup=setup, atomic=atomic) == [(1,)]


def test_a_numbering_restarted_for_the_first_time(filled: Project, law: Law) -> None:
    setup = [INVOICES.format(kind="UNIQUE")]
    assert first_number_of_2026(filled, law, DRAW, setup=setup) == [(1,)]


def test_a_primary_key_restarted_for_the_first_time(filled: Project, law: Law) -> None:
    """Of one year the data can't tell, and most such keys are never restarted."""
    setup = [INVOICES.format(kind="PRIMARY KEY")]
    assert first_number_of_2026(filled, law, DRAW, setup=setup) == [(41,)]


def test_a_numbering_whose_years_do_not_overlap(filled: Project, law: Law) -> None:
    earlier = "INSERT INTO app_invoice SELECT 2024, n FROM generate_series(100, 140) AS n"
    setup = [INVOICES.format(kind="UNIQUE"), earlier]
    assert first_number_of_2026(filled, law, DRAW, setup=setup) == [(1,)]


@pytest.mark.parametrize("atomic", [True, False], ids=["atomic", "autocommit"])
def test_a_number_that_is_unique_while_it_is_open(filled: Project, law: Law, atomic: bool) -> None:
    execute(
        "CREATE TABLE app_ticket (number serial, open bool);"
        "CREATE UNIQUE INDEX ON app_ticket (number) WHERE open;"
        "INSERT INTO app_ticket SELECT n, false FROM generate_series(1, 40) AS n"
    )
    script: Any = [
        "INSERT INTO app_ticket VALUES (41, false)",
        "INSERT INTO app_ticket (open) VALUES (true)",
    ]
    filled.migration(migrations.RunSQL(script), atomic=atomic)

    assert law.run("safemigrate").error is None
    assert rows("SELECT number FROM app_ticket WHERE open") == [(1,)]


@pytest.mark.parametrize("columns", ["", "(id, number, note)"])
def test_keys_that_the_run_gives_before_they_are_unique(database: str, columns: str) -> None:
    """The table is too large for the sweep; on a healthy database nothing moves."""
    execute(
        "CREATE TABLE t (id int, number serial, note text);"
        "INSERT INTO t (id, note) SELECT n, repeat('x', 90) FROM generate_series(1, 20000) AS n"
    )
    with safemigrate.healing() as report:
        execute(f"INSERT INTO t {columns} VALUES (1, 100000, 'given')")
        execute("CREATE UNIQUE INDEX ON t (number)")
        execute(f"INSERT INTO t {columns} VALUES (1, 100001, 'given')")
        execute("INSERT INTO t (id, note) VALUES (1, 'new')")
    assert rows("SELECT number FROM t WHERE note = 'new'") == [(20001,)]
    assert report.resyncs == []
