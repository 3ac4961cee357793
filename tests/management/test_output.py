"""Our lines between those of ``migrate``."""

from __future__ import annotations

import io
import sys

from safemigrate.management.output import Lines
from tests.support.runs import in_threads


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
