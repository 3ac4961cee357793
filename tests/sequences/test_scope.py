"""Which tables are meant where none is named."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db import connection

from safemigrate.sequences.scope import feeds_of
from tests.support.databases import execute, value

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
