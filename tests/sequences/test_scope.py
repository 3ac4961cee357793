"""Which tables are meant where none is named."""

from __future__ import annotations

import os

import pytest
from django.apps import apps
from django.db import connection

from safemigrate.sequences.scope import feeds_in, feeds_of, tables_of_app
from tests.support.databases import execute, value

# Roles are the whole server's, and another run of these tests may be there.
POOR = f"poor_{os.getpid()}"

LONG = "s" * 70, "t" * 70


@pytest.mark.parametrize("managed", [True, False])
@pytest.mark.parametrize(
    ("written", "schema", "table"),
    [
        ('shop"."order', "shop", "order"),
        ('"SHOP"."%s"', "SHOP", "%s"),
        ('"sh""op"."or""der"', 'sh"op', 'or"der'),
        ('"catalogue"."shop"."order"', "shop", "order"),
        ('"."'.join(LONG), *LONG),
    ],
    ids=["as usual", "in capitals", "with quotes", "with a catalogue", "cut by the server"],
)
def test_tables_of_models_that_name_another_schema(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    schema: str,
    table: str,
    *,
    managed: bool,
) -> None:
    names = [name.replace('"', '""').replace("%", "%%") for name in (schema, table)]
    quoted = '"{}"."{}"'.format(*names)
    execute(f'CREATE SCHEMA "{names[0]}"; CREATE TABLE {quoted} (id serial PRIMARY KEY)', ())
    assert feeds_of(connection) == []
    options = apps.get_model("auth.Group")._meta
    monkeypatch.setattr(options, "db_table", written)
    monkeypatch.setattr(options, "managed", managed)
    [[feed]] = feeds_of(connection)
    assert feed.relation == value(f"SELECT '{quoted}'::regclass::oid", ())


@pytest.mark.parametrize("label", ["", "auth"], ids=["all", "an app's"])
def test_a_schema_that_the_role_may_not_use(
    database: str, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    """What is in its way is told of each sequence; it stops nothing."""
    execute(
        f"CREATE ROLE {POOR}; CREATE TABLE auth_group (id serial PRIMARY KEY);"
        "CREATE SCHEMA hidden; CREATE TABLE hidden.auth_user (id serial PRIMARY KEY)"
    )
    monkeypatch.setattr(apps.get_model("auth.User")._meta, "db_table", 'hidden"."auth_user')
    execute(f"SET ROLE {POOR}")
    try:
        found = (
            feeds_in(connection, tables=tables_of_app(connection, label))
            if label
            else (feeds_of(connection))
        )
    finally:
        execute(f"RESET ROLE; DROP ROLE {POOR}")
    assert {value(f"SELECT {feed.relation}::regclass::text") for [feed] in found} == {
        "auth_group",
        "hidden.auth_user",
    }
