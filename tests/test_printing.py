"""Names that would be more than names where they are printed."""

from __future__ import annotations

import shlex

import pytest

from safemigrate.management.commands import resyncsequences
from safemigrate.printing import (
    command_line,
    one_line,
    printable,
    printable_ascii,
    sql_literal,
    sql_name,
)
from tests.support.databases import execute, value

HOSTILE = [
    "x\ndrop table victim; --",
    "\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "a\rb\x0bc\x85d\u2028e\x7f",
    "q\"u'o\\te\n",
    "\\+000041\n",
    "tail\U000e0001",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_is_printed_is_one_line_without_controls(name: str) -> None:
    for text in (printable(name), printable_ascii(name), one_line(name)):
        assert text.isprintable()
    assert printable_ascii(name).isascii()
    assert sql_name(name, name).isprintable()
    assert sql_literal(name).isprintable()


def test_what_can_be_printed_stays_as_it_is() -> None:
    assert sql_name('public."ä b"', "public", "ä b") == 'public."ä b"'
    assert printable('public."Bestellung Nr. 7"') == 'public."Bestellung Nr. 7"'
    assert printable("märz заказ") == "märz заказ"
    assert printable_ascii("märz") == "m\\xe4rz"


@pytest.mark.parametrize("name", ["-s", "--force"])
def test_a_name_that_looks_like_an_option_is_none(name: str) -> None:
    typed = shlex.split(command_line("default", "--check", schema=name))[2:]
    parser = resyncsequences.Command().create_parser("manage.py", typed.pop(0))
    options = parser.parse_args(typed)
    assert (options.schemas, options.force) == ([name], False)


def test_a_text_of_several_lines_becomes_one() -> None:
    assert one_line("refused\n\tIs the server running?\n") == "refused Is the server running?"


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_the_server_reads_the_escapes_as_the_name(database: str, name: str) -> None:
    assert value(f"SELECT {sql_literal(name)}") == name
    execute(f"CREATE TABLE {sql_name(name, name)} (id int)")
    assert value("SELECT relname FROM pg_class WHERE relkind = 'r' AND oid >= 16384") == name


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("name", ["a\\b", "o'clock", "\\'"])
def test_a_literal_that_can_be_printed(name: str, conforming: str) -> None:
    execute(f"SET standard_conforming_strings = {conforming}; SET backslash_quote = off")
    assert value(f"SELECT {sql_literal(name)}") == name
