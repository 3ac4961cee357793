"""What models need of their tables, and what a table may have lost of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from django.apps import apps
from django.db import router
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import AutoField

from safemigrate.sqltext import NAMES, unquoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from django.db.backends.base.base import BaseDatabaseWrapper

Status = Literal["lost default", "foreign sequence", "lost key", "collation mismatch"]


class Need(NamedTuple):
    """A model's primary key; ``schema`` is None where the model's table names none."""

    schema: str | None
    table: str
    column: str
    is_auto: bool


class Loss(NamedTuple):
    """What a model's table needs of ``column`` and does not have.

    ``sql`` puts it back, a default past the largest key; empty where a human has to decide how, as
    ``advice`` says. No index is made unasked: of a lost key the first statement finds the rows that
    stand in the way. ``failure`` is why putting it back failed.
    """

    schema: str
    table: str
    column: str
    status: Status
    reason: str
    sql: tuple[str, ...] = ()
    advice: str = ""
    failure: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        return self.schema, self.table, self.column

    @property
    def is_restorable(self) -> bool:
        return self.status in ("lost default", "foreign sequence") and bool(self.sql)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}: {self.status}; {self.why}"

    @property
    def why(self) -> str:
        return f"{self.reason}; not restored: {self.failure}" if self.failure else self.reason


# Those of the needed tables that the schemas have.
WANTED = """
wanted AS MATERIALIZED (
    SELECT w.place, w.is_auto, c.oid, a.attnum::pg_catalog.int4 AS attribute
    FROM ROWS FROM (
        pg_catalog.unnest(%(own_schemas)s::pg_catalog.text[]),
        pg_catalog.unnest(%(tables)s::pg_catalog.text[]),
        pg_catalog.unnest(%(columns)s::pg_catalog.text[]),
        pg_catalog.unnest(%(autos)s::pg_catalog.bool[])
    ) WITH ORDINALITY AS w (schema, table_name, column_name, is_auto, place)
    JOIN pg_catalog.pg_class AS c
      ON c.relname = w.table_name::pg_catalog.name AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace AS n
      ON n.oid = c.relnamespace
     AND CASE WHEN w.schema IS NOT NULL THEN n.nspname = w.schema::pg_catalog.name
              WHEN %(schemas)s::pg_catalog.name[] IS NULL
              THEN NOT pg_catalog.pg_is_other_temp_schema(n.oid)
              ELSE n.nspname = ANY (%(schemas)s::pg_catalog.name[]) END
    JOIN pg_catalog.pg_attribute AS a
      ON a.attrelid = c.oid AND a.attname = w.column_name::pg_catalog.name AND NOT a.attisdropped
)"""


def needs_of_apps(connection: BaseDatabaseWrapper, labels: Collection[str] = ()) -> list[Need]:
    """List the primary keys of the apps' models; without labels of all, and of Django's record.

    Raises LookupError for a label that no installed app has.
    """
    recorded: list[Any] = [] if labels else [MigrationRecorder.Migration]
    return needs_of(connection, [*recorded, *models_of(connection, labels)])


def models_of(connection: BaseDatabaseWrapper, labels: Iterable[str] = ()) -> list[Any]:
    """List the models of apps, without labels of all, that the routers allow on the alias.

    Where tenants have schemas, it is all models: a router goes by the tenant whose turn it is.
    """
    configs = [apps.get_app_config(label) for label in labels] or list(apps.get_app_configs())
    has_tenants = hasattr(connection, "schema_name")
    return [
        model
        for config in configs
        for model in config.get_models(include_auto_created=True)
        if has_tenants or router.allow_migrate_model(connection.alias, model)
    ]


def place_of_model(connection: BaseDatabaseWrapper, model: Any) -> tuple[str | None, str]:
    """Return the schema, None where it names none, and the name of a model's table.

    A db_table may hold a schema and quotes of its own: ``shop"."order``.
    """
    names = NAMES.findall(connection.ops.quote_name(model._meta.db_table))
    *schemas, table = map(unquoted, names or [""])
    return (schemas[-1] if schemas else None), table


def needs_of(connection: BaseDatabaseWrapper, models: Iterable[Any]) -> list[Need]:
    """List the primary keys of those models that have a table of their own here."""
    return [
        Need(*place_of_model(connection, model), field.column, _is_auto(field, connection))
        for model in models
        if model._meta.can_migrate(connection)
        for field in model._meta.local_concrete_fields
        if field.primary_key
    ]


def _is_auto(field: Any, connection: BaseDatabaseWrapper) -> bool:
    # One of the project's own may leave its numbers to the program.
    kind = f"{field.db_type(connection)} {field.db_type_suffix(connection)}".lower()
    return isinstance(field, AutoField) and ("identity" in kind or "serial" in kind)


def parameters_of(needs: list[Need], schemas: Iterable[str] | None) -> dict[str, Any]:
    """Return the parameters of :data:`WANTED`."""
    return {
        "own_schemas": [need.schema for need in needs],
        "tables": [need.table for need in needs],
        "columns": [need.column for need in needs],
        "autos": [need.is_auto for need in needs],
        "schemas": None if schemas is None else list(schemas),
    }
