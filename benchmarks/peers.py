"""
The zoo of the tests, set right by safemigrate and by what else there is; a Markdown table.

    python benchmarks/peers.py

Side by side with the SQL of Django's sqlsequencereset, for a model of each table, and with the SQL
of the PostgreSQL wiki's "Fixing Sequences" (a SELECT that writes a setval() for each sequence that
a column owns), written anew here after its description. The server is DATABASE_URL's, or the
embedded one.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.zoo import Shape

# Ownership decides, max() of an empty table is 1, and any sequence goes where max() is.
FIXING_SEQUENCES = """
    SELECT format(
        'SELECT SETVAL(%L, COALESCE(MAX(%I), 1)) FROM %I.%I;',
        quote_ident(sn.nspname) || '.' || quote_ident(s.relname), c.attname, tn.nspname, t.relname)
    FROM pg_class AS s
    JOIN pg_namespace AS sn ON sn.oid = s.relnamespace
    JOIN pg_depend AS d ON d.objid = s.oid AND d.classid = 'pg_class'::regclass
        AND d.deptype = 'a' AND d.refobjsubid > 0
    JOIN pg_class AS t ON t.oid = d.refobjid
    JOIN pg_namespace AS tn ON tn.oid = t.relnamespace
    JOIN pg_attribute AS c ON c.attrelid = t.oid AND c.attnum = d.refobjsubid
    WHERE s.relkind = 'S'
    ORDER BY s.relname
"""
COLUMNS = """
    SELECT c.relname, a.attname FROM pg_class AS c
    JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
      AND (pg_get_serial_sequence(quote_ident(c.relname), a.attname) IS NOT NULL
           OR EXISTS (SELECT FROM pg_attrdef WHERE adrelid = c.oid AND adnum = a.attnum))
    ORDER BY 1, 2
"""
TEXTS = {
    "right": "right",
    "behind": "**behind still**",
    "skipped": "past, but not the next value",
    "back": "**moved backward**",
    "moved": "**moved for good**",
}
# What resyncsequences leaves alone for its price only; with --scan it does not.
SCANNED = {"large_without_index": 1201}


def by_safemigrate() -> list[str]:
    from django.core.management import call_command

    with suppress(SystemExit):  # of what it has to leave alone
        call_command("resyncsequences", "--all-schemas", "--scan", stdout=io.StringIO())
    return []


def by_django() -> list[str]:
    """Return what sqlsequencereset would print, had each table of the zoo a model."""
    from django.core.management.color import no_style
    from django.db import connection, models

    from tests.support.databases import rows

    found = []
    for number, (table, column) in enumerate(rows(COLUMNS)):
        attributes: dict[str, Any] = {
            "__module__": "tests.app.models",
            "Meta": type("Meta", (), {"app_label": "app", "db_table": table}),
            "key": models.AutoField(primary_key=True, db_column=column),
        }
        found.append(type(f"Model{number}", (models.Model,), attributes))
    return connection.ops.sequence_reset_sql(no_style(), found)


def by_the_wiki() -> list[str]:
    from tests.support.databases import rows

    return [sql for (sql,) in rows(FIXING_SEQUENCES)]


def outcome(shape: Shape) -> str:
    """Draw what the application would be given next, and say what to think of it."""
    from django.db import Error, transaction

    from tests.support.databases import next_value, rows, value

    schema, name = shape.sequence.split(".")
    (quoted,) = rows("SELECT format('%%I.%%I', %s::text, %s::text)", [schema, name])[0]
    now = next_value(quoted)
    before = shape.before[0] if shape.before[0] is not None else 1
    step = value("SELECT seqincrement FROM pg_sequence WHERE seqrelid = %s::regclass", [quoted])
    if (now - before) * step < 0:
        return "back"
    after = SCANNED.get(shape.name, shape.after)
    if after is None:
        return "right" if now == before else "moved"
    try:
        with transaction.atomic():
            key = value(shape.insert.replace("%%", "%"))
            transaction.set_rollback(True)
    except Error:
        return "behind"
    if (key - after) * step < 0:
        return "behind"
    return "right" if key == after else "skipped"


def _try(sql: str) -> None:
    from django.db import Error

    from tests.support.databases import execute

    try:
        execute(sql)
    except Error as error:
        print(f"{sql}: {error}", file=sys.stderr)


def run(method: Callable[[], list[str]], databases: Any) -> dict[str, str]:
    from tests.support.zoo import HEALED, LEFT_ALONE, RIGHT, populate

    with databases.bound("default"):
        populate()
        for sql in method():
            _try(sql)
        return {shape.name: outcome(shape) for shape in [*HEALED, *LEFT_ALONE, *RIGHT]}


def main(settings: dict[str, Any]) -> int:
    sys.path.insert(0, str(ROOT))
    import django
    from django.conf import settings as django_settings

    django_settings.configure(
        DATABASES={"default": settings}, INSTALLED_APPS=["safemigrate", "tests.app"], USE_TZ=True
    )
    django.setup()
    from tests.support.databases import Databases
    from tests.support.zoo import HEALED, LEFT_ALONE, RIGHT

    with Databases() as databases:
        methods = (by_safemigrate, by_django, by_the_wiki)
        results = [run(method, databases) for method in methods]
    print("| shape | resyncsequences | Django's sqlsequencereset | wiki, Fixing Sequences |")
    print("|---|---|---|---|")
    for shapes, title in (
        (HEALED, ""),
        (LEFT_ALONE, ", to be left alone"),
        (RIGHT, ", right before"),
    ):
        for shape in shapes:
            cells = [TEXTS[result[shape.name]] for result in results]
            name = shape.name if len(shape.name) < 40 else "a name of 63 characters"
            print(f"| {name}{title} | {' | '.join(cells)} |")
    totals = [sum(each == "right" for each in result.values()) for result in results]
    print(f"| of {len(results[0])} | {' | '.join(map(str, totals))} |")
    return int(totals[0] < len(results[0]))


if __name__ == "__main__":
    with server() as settings:
        sys.exit(main(settings))
