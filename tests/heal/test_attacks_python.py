"""What people write in RunPython, on databases whose sequences are behind."""

from __future__ import annotations

import importlib
import threading
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.postgres.fields import ArrayField
from django.core.management import call_command
from django.db import (
    DataError,
    IntegrityError,
    connection,
    migrations,
    models,
    transaction,
)
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.models import F
from django.db.models.functions import Lower

from tests.support.databases import execute, put_behind, rows, value
from tests.support.models import create, shop
from tests.support.project import Law, Project, run_python

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.attack

Code = "Callable[[Any, Any], None]"
PROBE = "SELECT nextval('app_tag_id_seq')"
ADD_TAG = """
    CREATE FUNCTION add_tag(x text) RETURNS bigint LANGUAGE sql AS
    $$ INSERT INTO app_tag (name) VALUES (x) RETURNING id $$;
"""
WAYS: list[Any] = []
NON_ATOMIC_WAYS: list[Any] = []
EITHER = [True, False]


def way(code: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    WAYS.append(pytest.param(code, id=code.__name__.replace("_", "-")))
    return code


def sql(text: Any, params: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(text, params)
        return list(cursor.fetchall()) if cursor.description else []


@way
def an_iterator_first(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for tag in Tag.objects.order_by("id")[:5].iterator(chunk_size=2):
        Tag.objects.create(name=f"copy of {tag.name}")


@way
def an_iterator_that_is_read_while_writing(apps: Any, editor: Any) -> None:
    Tag, Product = apps.get_model("app.Tag"), apps.get_model("app.Product")
    for tag in Tag.objects.order_by("id").iterator(chunk_size=3):
        product = Product.objects.create(name=tag.name, main=tag)
        product.tags.add(tag)


@way
def create_with_a_key_and_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=1000, name="given")
    Tag.objects.create(name="drawn")
    Tag.objects.create(name="drawn again")


@way
def create_and_create_with_a_key_and_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(name="drawn")
    Tag.objects.create(pk=1000, name="given")
    Tag.objects.create(name="drawn again")


@way
def bulk_create_of_both_kinds(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.bulk_create([Tag(name="drawn"), Tag(id=900, name="given"), Tag(name="drawn")])
    Tag.objects.create(name="after")


@way
def a_negative_key(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=-1, name="unknown")
    Tag.objects.create(name="drawn")


@way
def save_moves_a_key(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    tag = Tag.objects.get(name="tag 3")
    tag.pk = None
    tag.save()
    tag.pk = 500
    tag.save()
    Tag.objects.create(name="after")


@way
def update_of_keys(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.filter(name="tag 20").update(id=F("id") + 50)
    Tag.objects.create(name="after")


@way
def delete_of_the_last_and_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    apps.get_model("app.Product").objects.all().delete()
    Tag.objects.filter(name="tag 20").delete()
    Tag.objects.create(name="after")


@way
def delete_of_all_and_create(apps: Any, editor: Any) -> None:
    apps.get_model("app.Product").objects.all().delete()
    apps.get_model("app.Tag").objects.all().delete()
    apps.get_model("app.Tag").objects.create(name="after")


@way
def get_or_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for name in ("tag 1", "new", "new", "newer"):
        Tag.objects.get_or_create(name=name)


@way
def get_or_create_that_is_sure_to_catch(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    tag, created = Tag.objects.get_or_create(name="new", defaults={"id": 77})
    Tag.objects.create(name=f"{tag.id} {created}")


@way
def update_or_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for name in ("tag 1", "new", "new"):
        tag, created = Tag.objects.update_or_create(name=name, defaults={"name": f"{name}!"})
        Tag.objects.create(name=f"{tag.id} {created}")


@way
def bulk_create_that_ignores_conflicts(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.bulk_create([Tag(name=f"new {n}") for n in range(30)], ignore_conflicts=True)


@way
def bulk_create_that_updates_conflicts(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.bulk_create(
        [Tag(name=f"new {n}") for n in range(30)],
        update_conflicts=True,
        update_fields=["name"],
        unique_fields=["id"],
    )


@way
def bulk_create_in_batches(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    new = Tag.objects.bulk_create((Tag(name=f"new {n}") for n in range(9)), batch_size=2)
    Tag.objects.create(name=" ".join(str(tag.pk) for tag in new))


@way
def add_to_a_through_table(apps: Any, editor: Any) -> None:
    product = apps.get_model("app.Product").objects.order_by("id").first()
    product.tags.add(*apps.get_model("app.Tag").objects.all())


@way
def set_on_a_through_table(apps: Any, editor: Any) -> None:
    Product, Tag = apps.get_model("app.Product"), apps.get_model("app.Tag")
    for product in Product.objects.order_by("id"):
        product.tags.set(Tag.objects.order_by("id")[product.pk : product.pk + 3])


@way
def rows_of_the_through_model(apps: Any, editor: Any) -> None:
    Through = apps.get_model("app.Product").tags.through
    Through.objects.create(product_id=2, tag_id=9)
    Through.objects.bulk_create([Through(product_id=2, tag_id=10)], ignore_conflicts=True)


@way
def create_through_a_relation(apps: Any, editor: Any) -> None:
    product = apps.get_model("app.Product").objects.order_by("id").first()
    product.tags.create(name="new")
    product.tags.get_or_create(name="newer")


@way
def a_duplicate_caught_in_a_savepoint(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for n in range(3):
        try:
            with transaction.atomic():
                Tag.objects.create(pk=5, name="taken")
        except IntegrityError:
            Tag.objects.create(name=f"caught {n}")


@way
def a_duplicate_of_another_column_caught(apps: Any, editor: Any) -> None:
    execute("CREATE UNIQUE INDEX tag_name ON app_tag (name)")
    Tag = apps.get_model("app.Tag")
    for n in range(3):
        with suppress(IntegrityError), transaction.atomic():
            Tag.objects.create(name="tag 1")
        Tag.objects.create(name=f"after {n}")


@way
def an_insert_rolled_back_to_a_savepoint(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    with suppress(DataError), transaction.atomic():
        Tag.objects.create(pk=300, name="rolled back")
        Tag.objects.create(name="rolled back")
        sql("SELECT 1 / 0")
    Tag.objects.create(name="after")


@way
def ids_preallocated(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    numbers = [n for (n,) in sql(f"{PROBE} FROM generate_series(1, 4)")]
    Tag.objects.bulk_create([Tag(pk=n, name=f"preallocated {n}") for n in numbers])
    Tag.objects.create(name="after")


@way
def ids_preallocated_one_by_one(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    for _ in range(3):
        ((number,),) = sql(PROBE)
        Tag.objects.create(pk=number, name="preallocated")


@way
def the_last_id_by_currval(apps: Any, editor: Any) -> None:
    sql("INSERT INTO app_tag (name) VALUES ('new')")
    sql("INSERT INTO app_tag (id, name) VALUES (500, currval('app_tag_id_seq')::text)")
    sql("INSERT INTO app_tag (id, name) VALUES (501, lastval()::text)")


@way
def keys_copied_and_the_sequence_set(apps: Any, editor: Any) -> None:
    sql("INSERT INTO app_tag SELECT id + 100, name FROM app_tag")
    sql("SELECT setval(pg_get_serial_sequence('app_tag', 'id'), max(id)) FROM app_tag")
    apps.get_model("app.Tag").objects.create(name="after")


@way
def the_sequence_set_too_low_for_a_moment(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    sql("SELECT setval('app_tag_id_seq', 100)")
    Tag.objects.create(name="a hundred and one")
    Tag.objects.create(name="a hundred and two")


@way
def a_sql_sequence_reset_of_djangos(apps: Any, editor: Any) -> None:
    from django.core.management.color import no_style

    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=40, name="given")
    for text in connection.ops.sequence_reset_sql(no_style(), [Tag]):
        sql(text)
    Tag.objects.create(name="after")


@way
def composed_by_the_driver(apps: Any, editor: Any) -> None:
    composed: Any = importlib.import_module("psycopg.sql" if is_psycopg3 else "psycopg2.sql")
    text = composed.SQL("INSERT INTO {} ({}) VALUES (%s)").format(
        composed.Identifier("app_tag"), composed.Identifier("name")
    )
    sql(text, ["composed"])
    sql(text, ["composed"])


@way
def names_as_is(apps: Any, editor: Any) -> None:
    if is_psycopg3:
        pytest.skip("AsIs is of psycopg2")
    from psycopg2.extensions import AsIs

    sql("INSERT INTO %s (name) VALUES (%s)", [AsIs("app_tag"), "as is"])
    sql("%s", [AsIs("INSERT INTO app_tag (name) VALUES ('all of it') ON CONFLICT DO NOTHING")])


@way
def bytes_for_a_text(apps: Any, editor: Any) -> None:
    with connection.cursor() as cursor:
        cursor.cursor.execute(b"INSERT INTO app_tag (name) VALUES ('bytes')")


@way
def past_all_wrappers(apps: Any, editor: Any) -> None:
    with connection.connection.cursor() as cursor:
        cursor.execute("INSERT INTO app_tag (name) VALUES ('raw') ON CONFLICT DO NOTHING")
        cursor.execute("INSERT INTO app_tag (name) VALUES ('raw')")


@way
def a_raw_key_and_then_the_orm(apps: Any, editor: Any) -> None:
    with connection.connection.cursor() as cursor:
        cursor.execute("INSERT INTO app_tag (id, name) VALUES (60, 'raw')")
    apps.get_model("app.Tag").objects.create(name="after")


@way
def copied_without_the_key(apps: Any, editor: Any) -> None:
    with connection.cursor() as cursor:
        if is_psycopg3:
            with cursor.copy("COPY app_tag (name) FROM STDIN") as copy:
                copy.write("a\nb\nc\n")
        else:
            import io

            cursor.copy_expert("COPY app_tag (name) FROM STDIN", io.StringIO("a\nb\nc\n"))
    apps.get_model("app.Tag").objects.create(name="after")


@way
def copied_with_the_key(apps: Any, editor: Any) -> None:
    with connection.cursor() as cursor:
        if is_psycopg3:
            with cursor.copy("COPY app_tag (id, name) FROM STDIN") as copy:
                copy.write("50\ta\n51\tb\n")
        else:
            import io

            cursor.copy_expert("COPY app_tag (id, name) FROM STDIN", io.StringIO("50\ta\n51\tb\n"))
    apps.get_model("app.Tag").objects.create(name="after")


@way
def executemany_with_returning(apps: Any, editor: Any) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_tag (name) VALUES (%s)", [["a"], ["b"], ["c"]])
        cursor.executemany(
            "INSERT INTO app_tag (name) VALUES (%s) ON CONFLICT DO NOTHING", (["d"] for _ in "12")
        )


@way
def execute_values(apps: Any, editor: Any) -> None:
    if is_psycopg3:
        pytest.skip("execute_values is of psycopg2")
    from psycopg2.extras import execute_batch, execute_values

    with connection.cursor() as cursor:
        execute_values(cursor.cursor, "INSERT INTO app_tag (name) VALUES %s", [["a"], ["b"]])
        execute_batch(cursor.cursor, "INSERT INTO app_tag (name) VALUES (%s)", [["a"], ["b"]])


@way
def a_function_that_is_called_by_callproc(apps: Any, editor: Any) -> None:
    sql(ADD_TAG)
    with connection.cursor() as cursor:
        cursor.callproc("add_tag", ["x"])
        cursor.callproc("add_tag", ["y"])


@way
def an_on_commit_that_writes(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    transaction.on_commit(lambda: Tag.objects.create(name="committed"))
    Tag.objects.create(name="first")


@way
def a_new_table_filled_with_keys_and_then_without(apps: Any, editor: Any) -> None:
    sql("CREATE TABLE app_new (id serial PRIMARY KEY, name text)")
    sql("INSERT INTO app_new SELECT id, name FROM app_tag")
    sql("SELECT setval('app_new_id_seq', (SELECT max(id) FROM app_new))")
    sql("INSERT INTO app_new (name) VALUES ('after')")


@way
def a_table_replaced_by_its_copy(apps: Any, editor: Any) -> None:
    sql("CREATE TABLE app_copy (LIKE app_product INCLUDING ALL)")
    sql("INSERT INTO app_copy (name) SELECT name FROM app_product")
    sql("ALTER TABLE app_product RENAME TO app_old")
    sql("ALTER TABLE app_copy RENAME TO app_product")
    sql("INSERT INTO app_product (name) VALUES ('after')")


@way
def a_column_made_identity_with_a_start(apps: Any, editor: Any) -> None:
    sql("CREATE TABLE app_new AS SELECT id, name FROM app_tag")
    sql("ALTER TABLE app_new ALTER id SET NOT NULL")
    sql("ALTER TABLE app_new ALTER id ADD GENERATED ALWAYS AS IDENTITY (START 21)")
    sql("ALTER TABLE app_new ADD PRIMARY KEY (id)")
    sql("INSERT INTO app_new (name) VALUES ('after')")


@way
def values_that_look_like_sql(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(name="'); INSERT INTO app_tag (id) VALUES (1); --")
    Tag.objects.create(name="100 %s of $$ and \\' and \x01")


@way
def a_constraint_deferred_and_collected(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    with transaction.atomic():
        sql("SET CONSTRAINTS ALL DEFERRED")
        product = apps.get_model("app.Product").objects.create(name="early", main_id=21)
        tag = Tag.objects.create(name="late")
        product.main = tag
        product.save()


@way
def raw_sql_that_reads_and_writes(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    new = Tag.objects.raw("INSERT INTO app_tag (name) VALUES ('raw') RETURNING id, name")
    for tag in list(new):
        Tag.objects.create(name=f"after {tag.id}")


@way
def fixtures_with_keys_and_then_without(apps: Any, editor: Any) -> None:
    from django.core import serializers

    Tag = apps.get_model("app.Tag")
    text = '[{"model": "auth.group", "pk": 700, "fields": {"name": "g"}}]'
    for loaded in serializers.deserialize("json", text):
        loaded.save()
    apps.get_model("auth.Group").objects.create(name="h")
    Tag.objects.create(name="after")


@way
def permissions_and_content_types(apps: Any, editor: Any) -> None:
    ContentType = apps.get_model("contenttypes.ContentType")
    Permission = apps.get_model("auth.Permission")
    kind = ContentType.objects.create(app_label="app", model="made by hand")
    one = Permission.objects.create(content_type=kind, codename="one", name="One")
    group, _ = apps.get_model("auth.Group").objects.get_or_create(name="editors")
    group.permissions.add(one, *Permission.objects.order_by("id")[:3])


@way
def a_user_with_groups(apps: Any, editor: Any) -> None:
    group = apps.get_model("auth.Group").objects.create(name="admins")
    user = apps.get_model("auth.User").objects.create(
        username="admin", date_joined="2020-01-01T00:00:00Z"
    )
    user.groups.add(group)
    user.user_permissions.add(*apps.get_model("auth.Permission").objects.order_by("id")[:2])


@way
def a_commit_by_hand(apps: Any, editor: Any) -> None:
    if connection.in_atomic_block:
        pytest.skip("Django forbids it in a transaction")
    connection.set_autocommit(False)
    try:
        sql("INSERT INTO app_tag (name) VALUES ('one')")
        connection.commit()
        sql("INSERT INTO app_tag (name) VALUES ('two')")
        connection.rollback()
        sql("INSERT INTO app_tag (name) VALUES ('three')")
        connection.commit()
    finally:
        connection.set_autocommit(True)


@way
def begin_by_hand(apps: Any, editor: Any) -> None:
    if connection.in_atomic_block:
        pytest.skip("there is a transaction already")
    sql("BEGIN")
    sql("INSERT INTO app_tag (name) VALUES ('one')")
    sql("SAVEPOINT s")
    sql("INSERT INTO app_tag (id, name) VALUES (400, 'gone')")
    sql("ROLLBACK TO s")
    sql("INSERT INTO app_tag (name) VALUES ('two')")
    sql("COMMIT")


@way
def a_connection_closed_on_the_way(apps: Any, editor: Any) -> None:
    if connection.in_atomic_block:
        pytest.skip("there is a transaction")
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=200, name="given")
    connection.close()
    Tag.objects.create(name="after")


@way
def another_thread_writes(apps: Any, editor: Any) -> None:
    if connection.in_atomic_block:
        pytest.skip("it would not see what the thread writes")
    Tag = apps.get_model("app.Tag")

    def write() -> None:
        Tag.objects.create(name="of the thread")
        connection.close()

    Tag.objects.create(name="before")
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    Tag.objects.create(name="after")


@way
def a_role_for_the_transaction(apps: Any, editor: Any) -> None:
    sql("DO $$ BEGIN CREATE ROLE app_writer; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    sql("GRANT ALL ON app_tag, app_tag_id_seq TO app_writer")
    sql("SET ROLE app_writer")
    apps.get_model("app.Tag").objects.create(name="as another")
    sql("RESET ROLE")


@way
def session_replication_role(apps: Any, editor: Any) -> None:
    sql("SET session_replication_role = replica")
    apps.get_model("app.Tag").objects.create(pk=80, name="given")
    apps.get_model("app.Tag").objects.create(name="drawn")
    sql("SET session_replication_role = DEFAULT")


@way
def row_level_security(apps: Any, editor: Any) -> None:
    sql("ALTER TABLE app_tag ENABLE ROW LEVEL SECURITY")
    sql("ALTER TABLE app_tag FORCE ROW LEVEL SECURITY")
    apps.get_model("app.Tag").objects.create(name="new")
    sql("ALTER TABLE app_tag DISABLE ROW LEVEL SECURITY")


@way
def a_hundred_generated_names(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.bulk_create(Tag(name=f"{n}") for n in range(100))
    for tag in islice(Tag.objects.annotate(low=Lower("name")).order_by("-id"), 3):
        Tag.objects.create(name=tag.low)


@pytest.fixture
def sold(project: Project) -> Project:
    """A shop with twenty tags, and five products that have some of them."""
    project.migration(*shop())

    def fill() -> None:
        execute("INSERT INTO app_tag (name) SELECT 'tag ' || n FROM generate_series(1, 20) AS n")
        execute(
            "INSERT INTO app_product (name, main_id) SELECT n, n FROM generate_series(1, 5) AS n"
        )
        execute(
            "INSERT INTO app_product_tags (product_id, tag_id)"
            " SELECT n, n FROM generate_series(1, 5) AS n"
        )

    project.begin_with("sold", fill)
    return project


@pytest.mark.parametrize("atomic", EITHER, ids=["atomic", "autocommit"])
@pytest.mark.parametrize("code", WAYS)
def test_python_ends_as_on_the_twin_in_sync(
    sold: Project, law: Law, code: Callable[[Any, Any], None], atomic: bool
) -> None:
    sold.migration(run_python(code), atomic=atomic)
    sold.migration(migrations.RunSQL("INSERT INTO app_tag (name) VALUES ('a later migration')"))

    assert law.holds().error is None


# --- where plain migrate fails ----------------------------------------------------------------

EFFECTS: list[str] = []


def collides_with_a_key_of_this_run(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=21, name="given")
    EFFECTS.append("called")
    Tag.objects.create(name="drawn")


def collides_with_a_key_of_bulk_create(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    EFFECTS.append("called")
    Tag.objects.bulk_create([Tag(name="drawn"), Tag(pk=22, name="given")])
    Tag.objects.create(name="drawn")


def collides_after_a_stretch(apps: Any, editor: Any) -> None:
    Tag = apps.get_model("app.Tag")
    Tag.objects.create(pk=25, name="given")
    EFFECTS.append("called")
    for _ in range(8):
        Tag.objects.create(name="drawn")


def collides_in_a_function(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql(ADD_TAG)
    sql("INSERT INTO app_tag (id, name) VALUES (21, 'given')")
    sql("SELECT add_tag('drawn')")


def collides_with_keys_by_hand(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    Tag = apps.get_model("app.Tag")
    for _ in range(3):
        largest = Tag.objects.aggregate(models.Max("id"))["id__max"]
        Tag.objects.create(pk=largest + 1, name="by hand")
    Tag.objects.create(name="drawn")


@pytest.mark.parametrize("atomic", EITHER, ids=["atomic", "autocommit"])
@pytest.mark.parametrize(
    "code",
    [
        collides_with_keys_by_hand,
        collides_with_a_key_of_this_run,
        collides_with_a_key_of_bulk_create,
        collides_after_a_stretch,
        collides_in_a_function,
    ],
)
def test_what_a_run_did_to_itself_is_healed_or_ends_as_migrate(
    sold: Project, law: Law, code: Callable[[Any, Any], None], atomic: bool
) -> None:
    EFFECTS.clear()
    sold.migration(run_python(code), atomic=atomic)
    put_behind(to=21)
    outcome = law.run("safemigrate")

    assert EFFECTS == ["called"]
    assert outcome.error is None or isinstance(outcome.error, IntegrityError)
    if outcome.error is None:
        assert value("SELECT count(*) = count(DISTINCT id) FROM app_tag")


def takes_a_key_twice(apps: Any, editor: Any) -> None:
    apps.get_model("app.Tag").objects.create(name="before")
    EFFECTS.append("called")
    apps.get_model("app.Tag").objects.create(pk=1, name="twice")


def takes_a_name_twice(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    apps.get_model("auth.Group").objects.create(name="editors")
    apps.get_model("auth.Group").objects.create(name="editors")


def takes_a_key_twice_by_executemany(apps: Any, editor: Any) -> None:
    def given() -> Iterator[list[Any]]:
        for n in (300, 301, 1, 302):
            EFFECTS.append(str(n))
            yield [n, "given"]

    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO app_tag (id, name) VALUES (%s, %s)", given())


def takes_a_key_twice_in_one_text(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql(
        "INSERT INTO app_tag (name) VALUES ('before'); INSERT INTO app_tag (id, name) VALUES (1, 'x')"
    )


def makes_an_index_over_duplicates(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql("CREATE TABLE app_double AS SELECT 1 AS id FROM app_tag")
    sql("CREATE UNIQUE INDEX ON app_double (id)")


def makes_a_type_twice(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql("CREATE TABLE app_tag (id serial)")


def raises_a_duplicate_of_its_own(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql("DO $$ BEGIN RAISE unique_violation USING MESSAGE = 'no', TABLE = 'app_tag'; END $$")


def raises_from_python(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    raise IntegrityError('duplicate key value violates unique constraint "app_tag_pkey"')


def collides_at_the_commit(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    sql(
        "CREATE TABLE app_late (id serial, number int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO app_late (number) VALUES (1), (1)"
    )


def fails_in_a_transaction_that_is_broken(apps: Any, editor: Any) -> None:
    EFFECTS.append("called")
    with transaction.atomic():
        with suppress(IntegrityError):
            apps.get_model("app.Tag").objects.create(pk=1, name="twice")
        apps.get_model("app.Tag").objects.create(name="after")


@pytest.mark.parametrize("atomic", EITHER, ids=["atomic", "autocommit"])
@pytest.mark.parametrize(
    "code",
    [
        takes_a_key_twice,
        takes_a_name_twice,
        takes_a_key_twice_by_executemany,
        takes_a_key_twice_in_one_text,
        makes_an_index_over_duplicates,
        makes_a_type_twice,
        raises_a_duplicate_of_its_own,
        raises_from_python,
        collides_at_the_commit,
        fails_in_a_transaction_that_is_broken,
    ],
)
def test_what_can_not_be_healed_fails_as_migrate_fails(
    sold: Project, law: Law, code: Callable[[Any, Any], None], atomic: bool
) -> None:
    EFFECTS.clear()
    sold.migration(run_python(code), atomic=atomic)
    outcome = ends_as_migrate(law)

    assert outcome.error is not None
    half = len(EFFECTS) // 2
    assert EFFECTS[:half] == EFFECTS[half:]
    assert EFFECTS


def ends_as_migrate(law: Law) -> Any:
    """Hold the law for all but the lines, where a note may follow the error."""
    return law.holds()


# --- runs in runs -----------------------------------------------------------------------------


def test_migrate_called_by_a_migration(sold: Project, law: Law) -> None:
    def inner(apps: Any, editor: Any) -> None:
        apps.get_model("app.Tag").objects.create(name="before")
        call_command("migrate", "auth", verbosity=0)
        apps.get_model("app.Tag").objects.create(name="after")

    sold.migration(run_python(inner), atomic=False)

    assert law.holds().error is None


def test_a_run_that_makes_its_first_tables(project: Project, law: Law) -> None:
    def fill(apps: Any, editor: Any) -> None:
        Tag = apps.get_model("app.Tag")
        Tag.objects.bulk_create([Tag(pk=n, name="given") for n in (1, 2, 3)])
        execute("SELECT setval('app_tag_id_seq', 3)")
        Tag.objects.create(name="drawn")

    project.migration(create("Tag"))
    project.migration(run_python(fill))

    assert law.holds().error is None


def test_a_field_of_many_kinds(project: Project, law: Law) -> None:
    """JSON and arrays are sent as VALUES lists with casts."""
    project.migration(
        create(
            "Tag",
            ("data", models.JSONField(null=True)),
            ("many", ArrayField(models.IntegerField(), null=True)),
        )
    )
    project.migrate()
    execute("INSERT INTO app_tag (name) VALUES ('a'), ('b'), ('c')")

    def fill(apps: Any, editor: Any) -> None:
        Tag = apps.get_model("app.Tag")
        Tag.objects.bulk_create(
            [Tag(name=f"new {n}", data={"(": [n, "')"]}, many=[n]) for n in range(5)]
        )
        Tag.objects.bulk_create([Tag(data={}, many=[])], ignore_conflicts=True)

    project.migration(run_python(fill))

    assert law.holds().error is None


def test_a_deferred_duplicate_of_a_drawn_key(project: Project, law: Law) -> None:
    project.migration(create("Tag"))
    project.migrate()
    execute("CREATE TABLE app_late (id serial UNIQUE DEFERRABLE INITIALLY DEFERRED, name text)")
    execute("INSERT INTO app_late (name) VALUES ('a'), ('b')")
    project.migration(migrations.RunSQL("INSERT INTO app_late (name) VALUES ('c'), ('d')"))

    assert law.holds().error is None


def test_a_key_that_a_trigger_fills(project: Project, law: Law) -> None:
    """No catalogue says what feeds it: it fails as the same numbers do under migrate."""
    project.migration(create("Tag"))
    project.migrate()
    execute("CREATE SEQUENCE app_keys; CREATE TABLE app_filled (id int PRIMARY KEY, name text)")
    execute(
        """
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.id := nextval('app_keys'); RETURN NEW; END $$;
        CREATE TRIGGER t BEFORE INSERT ON app_filled FOR EACH ROW EXECUTE FUNCTION fill();
        INSERT INTO app_filled (name) VALUES ('a'), ('b');
        """
    )
    execute("SELECT setval('app_keys', 1, false)")
    project.migration(migrations.RunSQL("INSERT INTO app_filled (name) VALUES ('c')"))
    outcome = law.run("safemigrate")

    assert isinstance(outcome.error, IntegrityError)
    if hasattr(outcome.error, "add_note"):
        assert "a trigger may fill it" in vars(outcome.error)["__notes__"][0]
    assert rows("SELECT id, name FROM app_filled ORDER BY id") == [(1, "a"), (2, "b")]
