"""Our lines between those of ``migrate``."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Timer
from typing import TYPE_CHECKING, Any

import pytest
from django.core import management
from django.core.management import call_command
from django.core.management.commands import migrate
from django.db import IntegrityError

from safemigrate.management.output import Lines
from tests.support.databases import execute, value
from tests.support.project import run_python
from tests.support.runs import LONG, in_threads, somebody_migrating

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.project import Project


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


def test_a_note_is_a_line_of_its_own(ill: None, project: Project) -> None:
    project.migration(
        run_python(lambda *_: execute("INSERT INTO t (note) VALUES ('one')")), atomic=False
    )
    terminal = io.StringIO()
    with pytest.raises(IntegrityError):
        call_command("safemigrate", max_retries=0, no_heal=True, stdout=terminal, stderr=terminal)
    *_, applying, note = terminal.getvalue().splitlines()
    assert applying.endswith("0001_step...")
    assert note.startswith("safemigrate: ")


def test_a_line_is_broken_once() -> None:
    lines = Lines(out := io.StringIO())
    assert lines.line_break(out) == ""
    lines.write("  Applying...")
    assert lines.line_break(io.StringIO()) == ""
    assert [lines.line_break(out), lines.line_break(out)] == ["\n", ""]
    lines.write("")
    assert lines.line_break(out) == ""
    lines.write(" it")
    assert lines.line_break(out) == "\n"
    lines.write(" OK\n")
    assert lines.line_break(out) == ""


@pytest.mark.parametrize("is_same", [True, False])
def test_a_line_is_broken_where_both_streams_go_to_one_file(tmp_path: Path, is_same: bool) -> None:
    names = ["both", "both" if is_same else "another"]
    with (tmp_path / names[0]).open("a") as out, (tmp_path / names[1]).open("a") as err:
        lines = Lines(out)
        lines.write("  Applying...")
        assert lines.line_break(err) == ("\n" if is_same else "")


class OnlyWrites:
    """As a class that writes to two streams mostly is, and a logger's stand-in."""

    encoding: Any = None

    def __init__(self, *, breaks_at: str = "\0") -> None:
        self.written = ""
        self.breaks_at = breaks_at

    def write(self, text: str) -> None:
        if self.breaks_at in text:
            raise BrokenPipeError
        self.written += text


@pytest.mark.parametrize("encoding", [None, "unheard of", "rot13", "\0", 8])
def test_a_stream_that_can_do_little(ill: None, project: Project, encoding: Any) -> None:
    out = OnlyWrites()
    out.encoding = encoding
    project.migration(run_python(lambda *_: None))
    call_command("safemigrate", stdout=out)
    assert "0001_step... OK" in out.written
    assert "1 sequence was behind" in out.written


class NoTerminal(OnlyWrites):
    def isatty(self) -> bool:
        raise ValueError("closed")


def test_a_stream_that_does_not_know_whether_it_is_a_terminal(project: Project) -> None:
    project.migration(run_python(lambda *_: None))
    call_command("safemigrate", stdout=(out := NoTerminal()))
    assert "0001_step... OK" in out.written


def test_a_stream_that_can_do_little_while_the_run_waits(project: Project) -> None:
    out = OnlyWrites()
    project.migrate()
    with somebody_migrating() as holder:
        timer = Timer(1.0, holder.kill)
        timer.start()
        call_command("safemigrate", stdout=out)
        timer.join()
    assert out.written.startswith("Waiting up to")


def test_our_lines_are_for_nobody_where_the_reader_has_gone(ill: None, project: Project) -> None:
    """The run has succeeded, and says so."""
    project.migration(run_python(lambda *_: None))
    out = OnlyWrites(breaks_at="sequence")
    call_command("safemigrate", "app", stdout=out)
    assert out.written.endswith("0001_step... OK\n")


def test_without_a_stdout_a_migration_may_print(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has none after ``manage.py safemigrate -v 0 >&-``."""
    project.migration(run_python(lambda *_: print("printed")))  # noqa: T201
    monkeypatch.setattr(sys, "stdout", None)
    call_command("safemigrate", verbosity=0)
    assert value("SELECT count(*) FROM django_migrations WHERE app = 'app'") == 1


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
