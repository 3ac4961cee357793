"""Our lines between those of ``migrate``."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

from django.core import management
from django.core.management import call_command
from django.core.management.commands import migrate

from safemigrate.management.output import Lines
from tests.support.runs import LONG, in_threads

if TYPE_CHECKING:
    import pytest


def test_lines_are_held_back_until_the_line_has_ended() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.tell_line("at once")
    lines.write("  Applying...")
    lines.tell_line("later")
    lines.write("")
    lines.write(" OK\n")
    lines.write("broken off")
    lines.tell_line("at the end")
    lines.end()
    lines.end()
    assert out.getvalue() == ("at once\n  Applying... OK\nlater\nbroken off\nat the end\n")


def test_stdout_is_what_it_was_after_two_runs_at_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that begins first ends first."""
    steps = [Event() for _ in range(3)]

    class InTurn(migrate.Command):
        def handle(self, *args: Any, **options: Any) -> None:
            step = iter(steps) if options["app_label"] == "first" else iter(steps[1:])
            next(step).set()
            assert next(step).wait(LONG)

    def run(label: str) -> None:
        call_command("safemigrate", label, no_lock=True)

    monkeypatch.setitem(management.get_commands(), "migrate", InTurn())
    before = sys.stdout
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(run, "first")
        assert steps[0].wait(LONG)
        second = threads.submit(run, "second")
        first.result()
        steps[2].set()
        second.result()
    assert sys.stdout is before


def test_lines_of_two_threads_are_written_once() -> None:
    out = io.StringIO()
    lines = Lines(out)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def tell() -> None:
        for _ in range(5_000):
            lines.tell_line("told")

    try:
        in_threads(2, tell)
    finally:
        sys.setswitchinterval(interval)
    assert out.getvalue().count("told\n") == 10_000
