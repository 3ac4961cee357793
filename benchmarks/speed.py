"""
What safemigrate costs, side by side with migrate, in one run, alternating.

    python benchmarks/speed.py [--pairs 15] [--only a,b,c,d,e]

(a) an empty database and (b) nothing to do, each as a whole process of the example project; (c) a
data migration of 20,000 single-row create() calls and one of 5,000 many-to-many add() calls; (d)
one heal, with the sequence behind by 1 and by 1,000,000; (e) 50 tables behind in one migration,
against a script that catches the error, resyncs and runs migrate again. Prints medians with their
quartiles, the median of the pairs' ratios, and the statements sent. The server is DATABASE_URL's,
or the embedded one.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from environments import ROOT, server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = f"speed_{os.getpid()}"
EMPTY, FULL = f"{NAME}_empty", f"{NAME}_full"
ROWS, ADDS, TABLES = 20_000, 5_000, 50


class Counter:
    """An execute wrapper that counts what passes, ours included."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        self.count += 1
        return execute(sql, params, many, context)


def administer(sql: str) -> None:
    from django.db import connection

    with connection._nodb_cursor() as cursor:
        cursor.execute(sql)


@contextmanager
def database(template: str = EMPTY) -> Iterator[None]:
    """Bind the connection to a new database."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import connection

    administer(f'CREATE DATABASE "{NAME}" TEMPLATE "{template}"')
    connection.settings_dict["NAME"] = NAME
    ContentType.objects.clear_cache()
    gc.collect()
    try:
        yield
    finally:
        connection.close()
        administer(f'DROP DATABASE "{NAME}" WITH (FORCE)')


def measured(work: Callable[[], Any]) -> tuple[float, int]:
    """Return the milliseconds that ``work`` took and the statements it sent."""
    from django.db import connection

    connection.ensure_connection()
    counter = Counter()
    connection.execute_wrappers.insert(0, counter)
    start = time.perf_counter()
    try:
        work()
    finally:
        elapsed = (time.perf_counter() - start) * 1000
        connection.execute_wrappers.remove(counter)
    return elapsed, counter.count


def compare(
    title: str,
    names: tuple[str, str],
    once: Callable[[str], tuple[float, int]],
    pairs: int,
    limit: float | None,
) -> None:
    """Measure both in turn, changing who goes first, and print what came of it."""
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for number in range(pairs + 1):  # the first pair warms up
        for name in names if number % 2 else reversed(names):
            result = once(name)
            if number:
                found[name].append(result)
    print(f"\n{title}")
    for name in names:
        times = [elapsed for elapsed, _ in found[name]]
        low, _, high = quantiles(times, n=4)
        statements = sorted({count for _, count in found[name]})
        print(
            f"  {name:<28} {median(times):9.1f} ms  [{low:.1f}, {high:.1f}]"
            f"  statements: {', '.join(map(str, statements))}"
        )
    ratios = [
        new / old for (old, _), (new, _) in zip(found[names[0]], found[names[1]], strict=True)
    ]
    low, _, high = quantiles(ratios, n=4)
    wanted = f"  (wanted: at most {limit})" if limit else ""
    print(f"  ratio of {pairs} pairs: {median(ratios):.3f}  [{low:.3f}, {high:.3f}]{wanted}")


def command(name: str, **options: Any) -> tuple[float, int]:
    from django.core.management import call_command

    return measured(lambda: call_command(name, stdout=io.StringIO(), **options))


def process(name: str) -> tuple[float, int]:
    """Run the command as a deploy script does, in a process of its own."""
    environment = {**os.environ, "SHOP_DATABASE": NAME, "PYTHONPATH": str(ROOT)}
    manage = [sys.executable, str(ROOT / "example_project" / "manage.py"), name]
    start = time.perf_counter()
    subprocess.run(manage, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000, 0


def whole(template: str) -> Callable[[str], tuple[float, int]]:
    """Time the process; count the statements, the lock's own four aside, in another run."""

    def once(name: str) -> tuple[float, int]:
        with database(template):
            elapsed, _ = process(name)
        with database(template):
            _, count = command(name)
        return elapsed, count

    return once


def create_rows() -> None:
    from shop.models import Tag

    for number in range(ROWS):
        Tag.objects.create(name=str(number))


def add_tags() -> None:
    from shop.models import Category, Product, Tag

    product = Product.objects.create(
        category=Category.objects.create(name="many"), name="many", price=1
    )
    for tag in Tag.objects.bulk_create([Tag(name=str(number)) for number in range(ADDS)]):
        product.tags.add(tag)


def data_migration(work: Callable[[], None]) -> Callable[[str], tuple[float, int]]:
    from django.db import transaction

    from safemigrate import healing

    def once(name: str) -> tuple[float, int]:
        with database(FULL):
            context: Any = healing() if name == "safemigrate" else nullcontext()

            def run() -> None:
                with context, transaction.atomic():
                    work()

            return measured(run)

    return once


def heal(name: str) -> tuple[float, int]:
    from django.db import connection, transaction

    from safemigrate import healing
    from shop.models import Tag

    gap = int(name.rpartition(" ")[2].replace(",", ""))
    with database(FULL):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO shop_tag (id, name) VALUES (%s, 'last')", [gap + 1000])
            cursor.execute("SELECT setval('shop_tag_id_seq', 1000)")

        def run() -> None:
            with healing(), transaction.atomic():
                Tag.objects.create(name="one more")

        return measured(run)


MANY = """
from django.db import migrations
STATEMENTS = [f"INSERT INTO many_{{number}} (name) VALUES ('new')" for number in range({tables})]
class Migration(migrations.Migration):
    dependencies = [("shop", "{last}")]
    operations = [migrations.RunSQL(statement) for statement in STATEMENTS]
"""


def many_tables(name: str) -> tuple[float, int]:
    from django.core.management import call_command
    from django.db import IntegrityError, connection

    def again_and_again() -> None:
        while True:
            try:
                call_command("migrate", stdout=io.StringIO())
            except IntegrityError as error:
                table = error.__cause__.diag.table_name  # type: ignore[union-attr]
                with connection.cursor() as cursor:
                    cursor.execute(
                        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id))"
                        f" FROM {table}"
                    )
            else:
                break

    with database(FULL):
        with connection.cursor() as cursor:
            for number in range(TABLES):
                cursor.execute(
                    f"CREATE TABLE many_{number} (id serial PRIMARY KEY, name text);"
                    f"INSERT INTO many_{number} (id, name)"
                    " SELECT n, 'old' FROM generate_series(1, 100) AS n"
                )
        if name == "safemigrate":
            return command(name)
        return measured(again_and_again)


@contextmanager
def one_more_migration() -> Iterator[None]:
    """Give the shop a migration that inserts into many tables."""
    from django.test import override_settings

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "many_migrations"
        shutil.copytree(ROOT / "example_project" / "shop" / "migrations", package)
        last = max(path.stem for path in package.glob("0*.py"))
        (package / "0999_many.py").write_text(MANY.format(tables=TABLES, last=last))
        sys.path.insert(0, folder)
        with override_settings(MIGRATION_MODULES={"shop": "many_migrations"}):
            yield


def run(pairs: int, only: str) -> None:
    both = ("migrate", "safemigrate")
    if "a" in only:
        compare("(a) from an empty database", both, whole(EMPTY), pairs, 1.03)
    if "b" in only:
        compare("(b) nothing to do", both, whole(FULL), pairs, 1.03)
    if "c" in only:
        for title, work in ((f"{ROWS:,} create()", create_rows), (f"{ADDS:,} add()", add_tags)):
            compare(f"(c) {title} in one transaction", both, data_migration(work), pairs, 1.05)
    if "d" in only:
        compare("(d) one heal", ("behind by 1", "behind by 1,000,000"), heal, pairs, 1.2)
        compare("(d) the same INSERT", ("behind by -100", "behind by 1"), heal, pairs, None)
    if "e" in only:
        names = ("resync and run again", "safemigrate")
        with one_more_migration():
            compare(f"(e) {TABLES} tables behind in one migration", names, many_tables, pairs, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="abcde", help="some of the letters a to e")
    options = parser.parse_args()
    with server() as settings:
        host = settings["HOST"] or settings["OPTIONS"].get("host", "")
        os.environ["DATABASE_URL"] = (
            f"postgresql://{quote(settings['USER'])}:{quote(settings['PASSWORD'])}"
            f"@/{settings['NAME']}?host={quote(host, safe='')}&port={settings['PORT'] or 5432}"
        )
        sys.path[:0] = [str(ROOT), str(ROOT / "example_project")]
        os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
        measure(options.pairs, options.only)


def measure(pairs: int, only: str) -> None:
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection

    django.setup()
    settings.DEBUG = False
    own = connection.settings_dict["NAME"]
    administer(f'CREATE DATABASE "{EMPTY}"')
    administer(f'CREATE DATABASE "{FULL}"')
    try:
        connection.settings_dict["NAME"] = FULL
        call_command("migrate", verbosity=0)
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version")
            print(f"PostgreSQL {cursor.fetchone()[0]}, {connection.Database.__name__}")
        connection.close()
        run(pairs, only)
    finally:
        connection.settings_dict["NAME"] = own
        for name in (EMPTY, FULL):
            administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


if __name__ == "__main__":
    main()
