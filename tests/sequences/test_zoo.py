"""Every shape in which a sequence feeds a column: looked at, resynced, met in a migration."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError

from tests.support.databases import Databases, binding, execute, rows, value
from tests.support.project import Project, run_python
from tests.support.zoo import HEALED, LEFT_ALONE, RIGHT, Shape, populate

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = [*HEALED, *LEFT_ALONE, *RIGHT]


def report(*args: str, status: int, **options: Any) -> dict[str, dict[str, Any]]:
    """Run ``resyncsequences --json`` and return what it says of each sequence."""
    out = io.StringIO()
    code = 0
    try:
        call_command("resyncsequences", *args, json=True, stdout=out, **options)
    except SystemExit as left:
        code = int(str(left.code))
    assert code == status
    return {
        f"{each['schema']}.{each['sequence']}": each
        for each in json.loads(out.getvalue())["sequences"]
    }


def every_row() -> list[tuple[Any, ...]]:
    """Read each sequence's state and the newest transaction that wrote to it."""
    sequences = rows("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' ORDER BY oid")
    return [(name, *rows(f"SELECT xmin, * FROM {name}")[0]) for (name,) in sequences]


class Zoo:
    """What the command said before and after, each in a run of its own."""

    def __init__(self) -> None:
        populate()
        states = every_row()
        self.before = report("--all-schemas", "--check", status=1)
        assert every_row() == states
        self.resynced = report("--all-schemas", status=1)
        states = every_row()
        self.after = report("--all-schemas", status=1)
        assert every_row() == states
        self.drawn: dict[str, Any] = {}
        for shape in [*HEALED, *RIGHT]:
            execute("BEGIN")
            self.drawn[shape.name] = value(shape.insert.replace("%%", "%"))
            execute("ROLLBACK")


@pytest.fixture(scope="module")
def name(databases: Databases) -> Iterator[str]:
    with databases.bound("default") as name:
        yield name


@pytest.fixture(scope="module")
def zoo(name: str) -> Zoo:
    return Zoo()


def test_nothing_else_is_listed(zoo: Zoo) -> None:
    listed = set(zoo.before) - {shape.sequence for shape in EVERY}
    assert listed == {"public.twin_id_seq", "public.two_ways_id_seq"}


@pytest.mark.parametrize("shape", EVERY, ids=str)
def test_before(zoo: Zoo, shape: Shape) -> None:
    found = zoo.before[shape.sequence]
    assert (found["next_value"], found["largest_key"]) == shape.before
    assert found["new_next_value"] is None


@pytest.mark.parametrize("shape", HEALED, ids=str)
def test_resynced(zoo: Zoo, shape: Shape) -> None:
    assert zoo.before[shape.sequence]["status"] == "behind"
    found = zoo.resynced[shape.sequence]
    # What the resync has left of a cache is for its own session only.
    reported = 21 if shape.name == "cached" else shape.after
    assert (found["status"], found["new_next_value"]) == ("resynced", reported)
    assert found["reason"] is None
    assert zoo.after[shape.sequence]["status"] == "in sync"
    assert zoo.drawn[shape.name] == shape.after


@pytest.mark.parametrize("shape", LEFT_ALONE, ids=str)
def test_left_alone(zoo: Zoo, shape: Shape) -> None:
    for found in (zoo.before[shape.sequence], zoo.resynced[shape.sequence]):
        expected = "behind" if shape.before[0] else "not judged" if shape.is_unjudged else "unknown"
        assert found["status"] == expected
        assert shape.reason in found["reason"]
        assert found["new_next_value"] is None
    assert zoo.after[shape.sequence] == zoo.before[shape.sequence]


@pytest.mark.parametrize("shape", RIGHT, ids=str)
def test_right(zoo: Zoo, shape: Shape) -> None:
    for found in (zoo.before, zoo.resynced, zoo.after):
        assert found[shape.sequence]["status"] == "in sync"
    assert zoo.drawn[shape.name] == shape.after


def test_what_the_dry_run_prints_sets_right(zoo: Zoo, databases: Databases, name: str) -> None:
    with databases.bound("default"):
        populate()
        out = io.StringIO()
        call_command("resyncsequences", "--all-schemas", dry_run=True, scan=True, stdout=out)
        assert "-- Sequence public.a_serial_id_seq is behind public.a_serial.id" in out.getvalue()
        for _ in range(2):
            execute(out.getvalue())
        after = report("--all-schemas", "--check", scan=True, status=1)
    for shape in HEALED:
        assert after[shape.sequence]["status"] == "in sync"
    assert {key for key, found in after.items() if found["status"] == "behind"} == {
        "public.sentinel_id_seq",
        "public.cramped_id_seq",
    }


def test_forced_and_scanned(zoo: Zoo) -> None:
    found = report("--all-schemas", "--force", "--scan", status=1)
    assert found["public.cramped_id_seq"]["new_next_value"] == 2100000001
    assert found["public.large_id_seq"]["new_next_value"] == 1201
    assert found["public.sentinel_id_seq"]["status"] == "behind"


def test_met_in_a_migration(project: Project) -> None:
    """Each healed shape gives the key that a right sequence would have given."""
    populate()
    given: dict[str, Any] = {}

    def insert(shape: Shape) -> Any:
        def code(apps: Any, editor: Any) -> None:
            with editor.connection.cursor() as cursor:
                cursor.execute(shape.insert, () if "%%" in shape.insert else None)
                given[shape.name] = cursor.fetchone()[0]

        return run_python(code)

    project.migration(*(insert(shape) for shape in [*HEALED, *RIGHT]))
    project.migration(
        *(insert(shape) for shape in [*HEALED, *RIGHT]), dependencies=[("app", "0001_step")]
    )
    project.migrate(command="safemigrate", stderr=io.StringIO())

    for shape in [*HEALED, *RIGHT]:
        step = shape.after is not None and {"odd_node": 2, "by_tens": 10, "downward": -1}.get(
            shape.name, 1
        )
        assert given[shape.name] == (shape.after or 0) + step


def test_left_alone_in_a_migration(project: Project) -> None:
    """The error is the original; its note names the sequence, or the default, and the reason."""
    populate()
    errors: dict[str, IntegrityError] = {}

    def code(apps: Any, editor: Any) -> None:
        for shape in LEFT_ALONE:
            with pytest.raises(IntegrityError) as caught:
                editor.execute(shape.insert)
            errors[shape.name] = caught.value

    project.migration(run_python(code), atomic=False)
    project.migrate(command="safemigrate", stderr=io.StringIO())

    for shape in LEFT_ALONE:
        notes = "\n".join(getattr(errors[shape.name], "__notes__", ["(Python 3.10)"]))
        if hasattr(errors[shape.name], "add_note"):
            assert shape.reason in notes, notes
            assert shape.sequence in notes


def test_temporary_table(database: str) -> None:
    execute("CREATE TEMPORARY TABLE scratch (id serial PRIMARY KEY)")
    execute("INSERT INTO scratch VALUES (1), (7)")
    (found,) = report("--all-schemas", status=0).values()
    assert (found["status"], found["new_next_value"]) == ("resynced", 8)
    assert value("INSERT INTO scratch DEFAULT VALUES RETURNING id") == 8


def test_another_session_s_temporary_table(database: str, databases: Databases) -> None:
    from django.db import connections

    with binding("other", database):
        with connections["other"].cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE scratch (id serial PRIMARY KEY)")
        assert report("--all-schemas", status=0) == {}
