"""``safemigrate.resync()``: what it moves, what it says, and what it leaves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, connections, models, transaction
from django.test.utils import isolate_apps

import safemigrate
from safemigrate.signals import sequence_resynced
from tests.support.databases import (
    behind,
    binding,
    execute,
    next_value,
    put_behind,
    rows,
    sqlite,
    value,
)
from tests.support.runs import hearing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.project import Project

TABLES = """
    CREATE TABLE ill (id serial PRIMARY KEY);
    INSERT INTO ill VALUES (1), (7);
    CREATE TABLE other (id serial PRIMARY KEY);
    INSERT INTO other VALUES (3);
"""


@pytest.fixture
def tables(database: str) -> None:
    execute(TABLES)


@pytest.fixture
def resynced() -> Iterator[list[Any]]:
    with hearing(sequence_resynced) as heard:
        yield heard


@pytest.fixture
def auth(project: Project) -> None:
    project.migrate()
    put_behind()


def names(findings: list[safemigrate.Finding]) -> list[str]:
    return sorted(finding.sequence.name for finding in findings)


def test_one_table(tables: None, resynced: list[Any]) -> None:
    (finding,) = safemigrate.resync("ill")
    assert (finding.status, finding.next_value, finding.largest) == ("resynced", 1, 7)
    assert (next_value("ill_id_seq"), next_value("other_id_seq")) == (8, 1)
    assert [str(record) for record in resynced] == [
        "Resynced public.ill_id_seq from 1 to 8 for ill.id"
    ]


def test_nothing_is_moved_where_nothing_is_behind(tables: None, resynced: list[Any]) -> None:
    execute("SELECT setval('ill_id_seq', 70)")
    before = rows("SELECT xmin, * FROM ill_id_seq")
    (finding,) = safemigrate.resync("ill")
    assert finding.status == "in sync"
    assert rows("SELECT xmin, * FROM ill_id_seq") == before
    assert resynced == []


def test_all(tables: None) -> None:
    execute("CREATE SCHEMA aside; CREATE TABLE aside.t (id serial PRIMARY KEY)")
    execute("INSERT INTO aside.t VALUES (1)")
    assert names(safemigrate.resync()) == ["ill_id_seq", "other_id_seq"]
    assert behind() == ["t"]
    safemigrate.resync("aside.t")
    assert behind() == []


def test_a_model_and_its_many_to_many_tables(auth: None) -> None:
    execute("INSERT INTO auth_group VALUES (5, 'a')")
    execute("INSERT INTO auth_group_permissions VALUES (9, 5, 1)")
    assert names(safemigrate.resync(Group)) == [
        "auth_group_id_seq",
        "auth_group_permissions_id_seq",
    ]
    assert "auth_permission" in behind()
    group = Group.objects.create(name="b")
    group.permissions.add(Permission.objects.get(pk=2))
    assert (group.pk, value("SELECT max(id) FROM auth_group_permissions")) == (6, 10)


@isolate_apps("tests.app")
def test_a_model_that_names_its_schema(database: str) -> None:
    meta = type("Meta", (), {"app_label": "app", "db_table": 'B b"."order'})
    others = models.ManyToManyField("self")
    order = type("Order", (models.Model,), {"__module__": "app", "Meta": meta, "others": others})
    execute('CREATE SCHEMA "B b"')
    execute('CREATE TABLE "B b"."order" (id serial PRIMARY KEY)')
    execute('CREATE TABLE "B b"."order_others" (id serial PRIMARY KEY)')
    execute('INSERT INTO "B b"."order" VALUES (4)')
    assert names(safemigrate.resync(order)) == ["order_id_seq", "order_others_id_seq"]
    assert next_value('"B b".order_id_seq') == 5


@isolate_apps("tests.app")
def test_a_model_for_the_many_to_many_relation_is_one_of_its_own(database: str) -> None:
    def model(name: str, **fields: Any) -> Any:
        meta = type("Meta", (), {"app_label": "app"})
        return type(name, (models.Model,), {"__module__": "app", "Meta": meta, **fields})

    tag = model("Tag")
    product = model("Product", tags=models.ManyToManyField(tag, through="Tagging"))
    ends = {each: models.ForeignKey(each, models.CASCADE) for each in ("Tag", "Product")}
    model("Tagging", tag=ends["Tag"], product=ends["Product"])
    for table in ("app_tag", "app_product", "app_tagging"):
        execute(f"CREATE TABLE {table} (id serial PRIMARY KEY); INSERT INTO {table} VALUES (4)")
    assert names(safemigrate.resync(product)) == ["app_product_id_seq"]
    assert next_value("app_tagging_id_seq") == 1


def test_several_of_both_kinds_each_once(auth: None) -> None:
    found = safemigrate.resync(ContentType, "django_migrations", ContentType, "public.auth_group")
    assert names(found) == [
        "auth_group_id_seq",
        "django_content_type_id_seq",
        "django_migrations_id_seq",
    ]


def test_a_child_draws_its_key_from_the_parent_s_table(auth: None) -> None:
    from django.apps.registry import Apps

    class Staff(User):
        class Meta:
            app_label = "auth"
            apps = Apps()

    execute("CREATE TABLE auth_staff (user_ptr_id int PRIMARY KEY REFERENCES auth_user)")
    assert "auth_user_id_seq" in names(safemigrate.resync(Staff))


def test_a_view_stands_for_the_table_beneath(tables: None) -> None:
    execute("CREATE VIEW seen AS SELECT * FROM ill")
    assert names(safemigrate.resync("seen")) == ["ill_id_seq"]


@pytest.mark.parametrize("name", ["nosuch", "no.such", "two words", "", '"', "a.b.c.d", "%s"])
def test_a_table_that_is_not_there(tables: None, name: str) -> None:
    with pytest.raises(LookupError, match="There is no table"):
        safemigrate.resync("ill", name)
    with transaction.atomic():
        with pytest.raises(LookupError, match="There is no table"):
            safemigrate.resync("ill", name)
        assert value("SELECT 1") == 1
    assert next_value("ill_id_seq") == 1


def test_in_a_transaction(tables: None) -> None:
    """It sees the transaction's rows, and what it moved stays moved after a rollback."""
    with transaction.atomic():
        execute("LOCK TABLE ill IN ACCESS EXCLUSIVE MODE; INSERT INTO ill VALUES (20)")
        execute("CREATE TABLE fresh (id serial PRIMARY KEY); INSERT INTO fresh VALUES (4)")
        found = safemigrate.resync("ill", "fresh")
        assert [(each.largest, each.status) for each in found] == [
            (20, "resynced"),
            (4, "resynced"),
        ]
        assert value("INSERT INTO fresh DEFAULT VALUES RETURNING id") == 5
        transaction.set_rollback(True)
    assert next_value("ill_id_seq") == 21


def test_after_a_failed_statement_of_a_transaction(tables: None) -> None:
    with transaction.atomic():
        with pytest.raises(IntegrityError), transaction.atomic():
            execute("INSERT INTO ill DEFAULT VALUES")
        safemigrate.resync("ill")
        execute("INSERT INTO ill DEFAULT VALUES")


def test_what_can_not_be_checked_is_said(
    tables: None, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        binding("other", database),
        caplog.at_level(logging.INFO, logger="safemigrate"),
        connections["other"].cursor() as cursor,
    ):
        cursor.execute("BEGIN; LOCK TABLE ill IN ACCESS EXCLUSIVE MODE")
        found = {each.sequence.name: each for each in safemigrate.resync("ill", "other")}
    assert found["other_id_seq"].status == "resynced"
    finding = found["ill_id_seq"]
    assert finding.status == "unknown"
    assert "locked" in str(finding.obstacle)
    levels = {record.levelname: record.getMessage() for record in caplog.records}
    assert levels["WARNING"].startswith("public.ill_id_seq could not be checked: ")
    assert levels["INFO"].startswith("Resynced public.other_id_seq from 1 to 4")


def test_another_database(database: str, other_database: str) -> None:
    execute(TABLES)
    with connections["other"].cursor() as cursor:
        cursor.execute(TABLES)
    assert names(safemigrate.resync("ill", using="other")) == ["ill_id_seq"]
    assert next_value("ill_id_seq") == 1
    with connections["other"].cursor() as cursor:
        cursor.execute("SELECT nextval('ill_id_seq')")
        assert cursor.fetchone() == (8,)


def test_other_vendors() -> None:
    with sqlite() as other:
        assert safemigrate.resync(Group, "nosuch", using="other") == []
        assert other.connection is None


def test_inside_healing_it_is_reported_there(tables: None) -> None:
    with safemigrate.healing("default") as report:
        put_behind()
        safemigrate.resync("ill")
    assert [each.sequence for each in report.resyncs] == [
        "ill_id_seq",
        "other_id_seq",
        "ill_id_seq",
    ]


def test_after_bulk_create_with_keys(auth: None) -> None:
    Group.objects.bulk_create([Group(pk=n, name=f"group {n}") for n in range(1, 50)])
    safemigrate.resync(Group)
    assert Group.objects.create(name="next").pk == 50


def test_an_abstract_model_has_no_table(database: str) -> None:
    class Nothing(models.Model):
        class Meta:
            abstract = True
            app_label = "app"

    with pytest.raises(LookupError, match="There is no table"):
        safemigrate.resync(Nothing)
