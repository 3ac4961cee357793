"""
What the sweep, and `resyncsequences --check`, of many tables cost the server, and how often
they ask.

    python benchmarks/scale.py [TABLES, 10,000 by default]
    python benchmarks/scale.py sweep [TABLES …, 100 300 1000 3000 by default]

The second measures the sweep alone, on catalogues that were never analysed, as a restore leaves
them, and on analysed ones. Beside it, alternating: a loop in the server that does no more than read
each table's largest key and its sequence's last value, and gives their locks back.

Beside it: one max() and one read of the sequence for each table, sent one by one; and the SELECTs
of Django's sqlsequencereset, which as shipped are one transaction that dies of "out of shared
memory", sent without their BEGIN and COMMIT. Server time is the processor's, of the backend (Linux:
/proc), so that neither the network nor the client counts. In one run, alternating, five times;
medians. The server is DATABASE_URL's, on this machine, or the embedded one.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.environments import ROOT, server

if TYPE_CHECKING:
    from collections.abc import Iterator

if {"-h", "--help"}.intersection(sys.argv):
    sys.exit(__doc__)
IS_SWEEP = sys.argv[1:2] == ["sweep"]
SIZES = [int(size) for size in sys.argv[2:]] or [100, 300, 1000, 3000]
TABLES = int(sys.argv[1]) if len(sys.argv) > 1 and not IS_SWEEP else 10_000
TIMES = 5
BATCH = 500


LOOP = """
DO $$
DECLARE
    each record;
    largest int8;
    last_value int8;
BEGIN
    FOR each IN
        SELECT d.refobjid::regclass AS table_name, d.objid::regclass AS sequence_name
        FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid
        WHERE s.relkind = 'S' AND d.deptype = 'a'
    LOOP
        BEGIN
            EXECUTE format('SELECT (SELECT max(id) FROM %s), last_value FROM %s',
                           each.table_name, each.sequence_name) INTO largest, last_value;
            RAISE EXCEPTION USING ERRCODE = 'SM000';
        EXCEPTION WHEN SQLSTATE 'SM000' THEN NULL;
        END;
    END LOOP;
END $$
"""


def make_tables(count: int) -> None:
    from tests.support.databases import execute

    for start in range(0, count, BATCH):
        execute(
            "".join(
                f"CREATE TABLE t{n} (id bigserial PRIMARY KEY, note text);"
                f"INSERT INTO t{n} (note) VALUES ('x'), ('y');"
                for n in range(start, min(start + BATCH, count))
            )
        )


def analyse() -> None:
    from tests.support.databases import execute

    execute("ANALYZE")


class Measure:
    """Round trips, the backend's processor time, and the wall's."""

    def __init__(self) -> None:
        self.sent = 0
        self.server = 0.0
        self.wall = 0.0


@contextmanager
def measured() -> Iterator[Measure]:
    """Measure the block on a connection, and so a backend, of its own."""
    from django.db import connection

    def count(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        measure.sent += 1
        return execute(sql, params, many, context)

    measure = Measure()
    connection.close()
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    before, start = processor_time(pid), time.perf_counter()
    with connection.execute_wrapper(count), ours_counted(measure):
        yield measure
    measure.wall = time.perf_counter() - start
    measure.server = processor_time(pid) - before


@contextmanager
def ours_counted(measure: Measure) -> Iterator[None]:
    """Count what passes no execute wrapper."""
    from safemigrate import driver

    plain = driver.Cursor.execute, driver.Cursor.rows

    def counting(method: Any) -> Any:
        def counted(self: Any, sql: str, params: Any = None) -> Any:
            measure.sent += 1
            return method(self, sql, params)

        return counted

    driver.Cursor.execute, driver.Cursor.rows = map(counting, plain)  # type: ignore[method-assign]
    try:
        yield
    finally:
        driver.Cursor.execute, driver.Cursor.rows = plain  # type: ignore[method-assign]


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def check() -> None:
    from django.core.management import call_command

    with suppress(SystemExit):  # t7 is behind
        call_command("resyncsequences", check=True, stdout=io.StringIO())


def one_by_one() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        for n in range(TABLES):
            cursor.execute(f"SELECT max(id) FROM t{n}")
            cursor.execute(f"SELECT last_value, is_called FROM t{n}_id_seq")


def reset_statements() -> list[str]:
    """Make a model of each table; return what sqlsequencereset would print for them."""
    from django.core.management.color import no_style
    from django.db import connection, models

    found = []
    for n in range(TABLES):
        meta = type("Meta", (), {"app_label": "app", "db_table": f"t{n}", "managed": False})
        attributes = {"__module__": "tests.app.models", "Meta": meta}
        found.append(type(f"T{n}", (models.Model,), attributes))
    return connection.ops.sequence_reset_sql(no_style(), found)


def main(settings: dict[str, Any]) -> int:
    sys.path.insert(0, str(ROOT))
    import django
    from django.conf import settings as django_settings

    django_settings.configure(
        DATABASES={"default": settings},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["safemigrate", "tests.app"],
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection

    from tests.support.databases import Databases, execute

    if IS_SWEEP:
        return sweeps()
    results: dict[str, list[Measure]] = {"--check": [], "one by one": []}
    with Databases() as databases, databases.bound("default"):
        make_tables(TABLES)
        execute("SELECT setval('t7_id_seq', 1, false)")
        analyse()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with measured() as measure:
            check()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        for _ in range(TIMES):
            for name, method in (("--check", check), ("one by one", one_by_one)):
                with measured() as measure:
                    method()
                results[name].append(measure)
        statements = reset_statements()
        with measured() as measure, connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)
        results["sqlsequencereset"] = [measure]
    return report(results, grown)


def sweeps() -> int:
    """Print what the sweep costs where nothing is behind."""
    from tests.support.databases import Databases

    print("| tables | catalogue | statements | server, ms a table | wall, ms | loop, ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        with Databases() as databases, databases.bound("default"):
            make_tables(size)
            for catalogue in ("not analysed", "analysed"):
                if catalogue == "analysed":
                    analyse()
                print(f"| {size:,} | {catalogue} | {swept(size)} |")
    return 0


def swept(size: int) -> str:
    from django.db import connection

    from safemigrate.sequences.sweep import sweep
    from tests.support.databases import execute

    ours, loops = [], []
    for _ in range(TIMES):
        with measured() as measure:
            assert list(sweep(connection)) == []
        ours.append(measure)
        with measured() as measure:
            execute(LOOP)
        loops.append(measure)
    on_server = median(each.server for each in ours) / size * 1000
    wall, loop = (median(each.wall for each in them) * 1000 for them in (ours, loops))
    ratio = median(a.wall / b.wall for a, b in zip(ours, loops, strict=True))
    return f"{ours[0].sent} | {on_server:.3f} | {wall:.0f} | {loop:.0f} | {ratio:.2f}"


def report(results: dict[str, list[Measure]], grown: int) -> int:
    print(f"{TABLES:,} tables, default settings")
    print("| | statements | server, s | ms a table | wall, s |")
    print("|---|---|---|---|---|")
    for name, measures in results.items():
        on_server = median(each.server for each in measures)
        wall = median(each.wall for each in measures)
        print(
            f"| {name} | {measures[0].sent:,} | {on_server:.2f} | "
            f"{on_server / TABLES * 1000:.3f} | {wall:.2f} |"
        )
    ours, theirs = results["--check"], results["one by one"]
    times = median(a.server / b.server for a, b in zip(ours, theirs, strict=True))
    share = ours[0].sent / theirs[0].sent
    print(f"server time: {times:.2f} times that of one by one; statements: {share:.2%} of its")
    print(f"the client's memory grew by {grown / 1024:.1f} MiB")
    return int(times > 1.2 or share >= 0.01)


if __name__ == "__main__":
    with server() as settings:
        sys.exit(main(settings))
