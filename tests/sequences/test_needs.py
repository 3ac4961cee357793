"""Which models need what of which tables."""

from __future__ import annotations

from typing import Any

from django.db import connection, models
from django.test.utils import isolate_apps

from safemigrate.sequences.losses import find_losses, restore
from safemigrate.sequences.needs import Need, needs_of
from tests.support.databases import execute, value


def model(name: str, base: Any = models.Model, meta: Any = (), **fields: Any) -> Any:
    options = type("Meta", (), {"app_label": "app", **dict(meta)})
    return type(name, (base,), {"__module__": __name__, "Meta": options, **fields})


@isolate_apps("tests.app")
def test_models_of_every_kind(database: str) -> None:
    place = model("Place")
    cafe = model("Cafe", place)
    unique = model("Unique", id=models.UUIDField(primary_key=True))
    elsewhere = model("Elsewhere", meta={"db_table": 'B b"."else where'})
    number = models.SmallAutoField(primary_key=True, db_column="Number %")
    others = models.ManyToManyField("self")
    kinds = [
        place,
        cafe,
        unique,
        elsewhere,
        model("Quoted", meta={"db_table": '"B b"."%s"'}, number=number, others=others),
        model("Proxy", place, meta={"proxy": True}),
        model("Unmanaged", meta={"managed": False}),
        model("Nameless", meta={"db_table": '""'}),
        model("Swapped", meta={"swappable": "AUTH_USER_MODEL"}),
    ]
    execute('CREATE SCHEMA "B b"')
    with connection.schema_editor() as editor:
        for kind in (place, cafe, unique, elsewhere):
            editor.create_model(kind)
    execute('CREATE TABLE "B b"."%%s" ("Number %%" smallserial PRIMARY KEY)', ())
    execute("CREATE TABLE app_unmanaged (id int); CREATE TABLE app_swapped (id int)")
    needs = needs_of(connection, kinds)
    assert needs == [
        Need(None, "app_place", "id", is_auto=True),
        Need(None, "app_cafe", "place_ptr_id", is_auto=False),
        Need(None, "app_unique", "id", is_auto=False),
        Need("B b", "else where", "id", is_auto=True),
        Need("B b", "%s", "Number %", is_auto=True),
        Need(None, "", "id", is_auto=True),
    ]
    assert find_losses(connection, needs, ["public"]) == []
    execute('ALTER TABLE "B b"."%%s" ALTER "Number %%" DROP DEFAULT', ())
    execute("ALTER TABLE app_unique DROP CONSTRAINT app_unique_pkey")
    execute('INSERT INTO "B b"."%%s" VALUES (41)', ())
    keyless, unfilled = find_losses(connection, needs, ["public"])
    assert (keyless.table, keyless.status) == ("app_unique", "lost key")
    restore(connection, unfilled)
    assert value('INSERT INTO "B b"."%%s" DEFAULT VALUES RETURNING 1 * "Number %%"', ()) == 42


class Snowflake(models.BigAutoField):  # type: ignore[type-arg]
    """An auto field whose numbers the program makes."""

    def get_internal_type(self) -> str:
        return "BigIntegerField"


class Serial(models.BigAutoField):  # type: ignore[type-arg]
    def db_type(self, connection: Any) -> str:
        return "bigserial"

    def db_type_suffix(self, connection: Any) -> None:
        return None


@isolate_apps("tests.app")
def test_an_auto_field_that_the_server_does_not_fill(database: str) -> None:
    snowflake = model("Snow", id=Snowflake(primary_key=True))
    serial = model("Serial", id=Serial(primary_key=True))
    with connection.schema_editor() as editor:
        for kind in (snowflake, serial):
            editor.create_model(kind)
    needs = needs_of(connection, [snowflake, serial])
    assert find_losses(connection, needs, ["public"]) == []
    execute("ALTER TABLE app_serial ALTER id DROP DEFAULT")
    assert [each.table for each in find_losses(connection, needs, ["public"])] == ["app_serial"]
