"""
What safemigrate costs, side by side with migrate, in one run, alternating.

    python benchmarks/speed.py [--pairs 15] [--only abcdefg]

(a) an empty database and (b) nothing to do, each as a whole process of the example project; (c) a
data migration of 20,000 single-row create() calls and one of 5,000 many-to-many add() calls; (d)
one heal, with the sequence behind by 1 and by 1,000,000; (e) 50 tables behind in one migration,
against a script that catches the error, resyncs and runs migrate again; (f) data migrations that
are hard on whoever reads statements: 1,000 caught IntegrityErrors, 3,000 create() with a function
in the INSERT, bulk_create() of 10,000 rows with 20 columns, 50,000 INSERT statements in one text,
and one literal of 10 MB; (g) keys that are given and drawn in turn in one table. Prints medians
with their quartiles, the median of the pairs' ratios, the statements sent, and for data migrations
the peak memory of a process. The server is DATABASE_URL's, or the embedded one.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = f"speed_{os.getpid()}"
EMPTY, FULL = f"{NAME}_empty", f"{NAME}_full"
ROWS, ADDS, TABLES = 20_000, 5_000, 50
TURNS = 200
CAUGHT, FUNCTIONS, BULK, COLUMNS, STATEMENTS, LITERAL = 1_000, 3_000, 10_000, 20, 50_000, 10 << 20


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


def measured(work: Callable[[], Any]) -> float:
    """Return the milliseconds that ``work`` took."""
    from django.db import connection

    connection.ensure_connection()
    connection.queries_log.clear()
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the statements of a run that nobody times, BEGIN and COMMIT and our own among them."""
    from django.db import connection

    found: list[int] = []
    connection.force_debug_cursor = True
    connection.queries_log = deque()
    try:
        yield found
    finally:
        connection.force_debug_cursor = False
        found.append(len(connection.queries_log))
        connection.queries_log = deque(maxlen=connection.queries_limit)


def compare(
    title: str,
    names: tuple[str, str],
    once: Callable[[str], float],
    pairs: int,
    limit: float | None,
    count: Callable[[str], float] | None = None,
    *,
    has_memory: bool = False,
) -> None:
    """Measure both in turn, changing who goes first, and print what came of it."""
    statements = {}
    for name in names:  # which warms up, too
        with counted() as found:
            (count or once)(name)
        statements[name] = found[0]
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(pairs):
        for name in names if number % 2 else reversed(names):
            times[name].append(once(name))
    print(f"\n{title}")
    for name in names:
        low, middle, high = quantiles(times[name], n=4)
        spread = f"[{low:.1f}, {high:.1f}]"
        print(f"  {name:<21}{middle:9.1f} ms  {spread:<19} statements: {statements[name]}")
    ratios = [new / old for old, new in zip(times[names[0]], times[names[1]], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    wanted = f"  (wanted: at most {limit})" if limit else ""
    print(f"  ratio of {pairs} pairs {middle:8.3f}     [{low:.3f}, {high:.3f}]{wanted}", flush=True)
    if has_memory:
        old, new = (peak(once, name) for name in names)
        print(f"  peak memory {old:.0f} and {new:.0f} MB, ratio {new / old:.3f}", flush=True)


def peak(once: Callable[[str], float], name: str) -> float:
    """Return how many megabytes a process of its own has at most."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            once(name)
            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(writing, str(kilobytes).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        kilobytes = int(answer.read())
    os.wait()
    return kilobytes / 1024


def command(name: str, **options: Any) -> float:
    from django.core.management import call_command

    return measured(lambda: call_command(name, stdout=io.StringIO(), **options))


def process(name: str) -> float:
    """Run the command as a deploy script does, in a process of its own."""
    environment = {**os.environ, "SHOP_DATABASE": NAME, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a deployment doesn't compile at every start
    manage = [sys.executable, str(ROOT / "example_project" / "manage.py"), name]
    start = time.perf_counter()
    subprocess.run(manage, env=environment, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def on(template: str, run: Callable[[str], float]) -> Callable[[str], float]:
    """Give each run a database of its own."""

    def once(name: str) -> float:
        with database(template):
            return run(name)

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


def catch_errors() -> None:
    from django.db import IntegrityError, transaction

    from shop.models import Tag

    first = Tag.objects.create(name="first")
    for _ in range(CAUGHT):
        with suppress(IntegrityError), transaction.atomic():
            Tag.objects.create(pk=first.pk, name="again")


def create_with_functions() -> None:
    from django.db.models import Value
    from django.db.models.functions import Lower

    from shop.models import Tag

    for number in range(FUNCTIONS):
        Tag.objects.create(name=Lower(Value(f"Tag {number}")))


def bulk_create() -> None:
    from django.db import connection, models

    fields = {f"column_{number}": models.TextField() for number in range(COLUMNS)}
    meta = type("Meta", (), {"app_label": "shop"})
    with suppress_reloading():
        wide: Any = type("Wide", (models.Model,), {"__module__": __name__, "Meta": meta, **fields})
    with connection.schema_editor() as editor:
        editor.create_model(wide)
    wide.objects.bulk_create(
        wide(**{name: f"{name} of {number}" for name in fields}) for number in range(BULK)
    )


def give_and_draw() -> None:
    from shop.models import Tag

    for number in range(TURNS):
        Tag.objects.create(pk=1_000_000 + number, name=f"given {number}")
        Tag.objects.create(name=f"drawn {number}")


@contextmanager
def suppress_reloading() -> Iterator[None]:
    """Let a model be made anew without a warning."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def run_one_text() -> None:
    run_sql("".join(f"INSERT INTO shop_tag (name) VALUES ('{n}');" for n in range(STATEMENTS)))


def insert_literal() -> None:
    run_sql("CREATE TABLE long (id serial PRIMARY KEY, body text)")
    run_sql(f"INSERT INTO long (body) VALUES ('{'x' * LITERAL}')")


def run_sql(text: str) -> None:
    """Send a text as RunSQL does."""
    from django.db import connection

    with connection.schema_editor() as editor:
        editor.execute(text, params=None)


def data_migration(work: Callable[[], None]) -> Callable[[str], float]:
    from django.db import transaction

    from safemigrate import healing

    def once(name: str) -> float:
        with database(FULL):
            context: Any = healing() if name == "safemigrate" else nullcontext()

            def run() -> None:
                with context, transaction.atomic():
                    work()

            return measured(run)

    return once


def heal(name: str) -> float:
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


def many_tables(name: str) -> float:
    from django.core.management import call_command
    from django.db import IntegrityError, connection

    def table_that_collides() -> str | None:
        try:
            call_command("migrate", stdout=io.StringIO())
        except IntegrityError as error:
            return str(error.__cause__.diag.table_name)  # type: ignore[union-attr]
        return None

    def again_and_again() -> None:
        while (table := table_that_collides()) is not None:
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
                )

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


DATA_MIGRATIONS = [
    ("c", f"{ROWS:,} create()", create_rows),
    ("c", f"{ADDS:,} add()", add_tags),
    ("f", f"{CAUGHT:,} caught IntegrityErrors", catch_errors),
    ("f", f"{FUNCTIONS:,} create() with a function", create_with_functions),
    ("f", f"bulk_create() of {BULK:,} rows with {COLUMNS} columns", bulk_create),
    ("f", f"{STATEMENTS:,} INSERT statements in one text", run_one_text),
    ("f", f"one literal of {LITERAL >> 20} MB", insert_literal),
]


# No limit: a migration that does this is rare.
IN_TURN = f"(g) {TURNS} keys given and drawn in turn in one transaction"


def run(pairs: int, only: str) -> None:
    both = ("migrate", "safemigrate")
    if "a" in only:
        compare(
            "(a) from an empty database", both, on(EMPTY, process), pairs, 1.01, on(EMPTY, command)
        )
    if "b" in only:
        compare("(b) nothing to do", both, on(FULL, process), pairs, 1.01, on(FULL, command))
    for letter, title, work in DATA_MIGRATIONS:
        if letter in only:
            name = f"({letter}) {title} in one transaction"
            compare(name, both, data_migration(work), pairs, 1.03, has_memory=True)
    if "d" in only:
        compare("(d) one heal", ("behind by 1", "behind by 1,000,000"), heal, pairs, 1.2)
        compare("(d) the same INSERT", ("behind by -100", "behind by 1"), heal, pairs, None)
    if "e" in only:
        names = ("resync and run again", "safemigrate")
        with one_more_migration():
            compare(f"(e) {TABLES} tables behind in one migration", names, many_tables, pairs, None)

    if "g" in only:
        compare(IN_TURN, both, data_migration(give_and_draw), pairs, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="abcdefg", help="some of the letters a to g")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("quartiles take at least two --pairs")
    with server() as settings:
        os.environ["DATABASE_URL"] = url_of(settings)
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
