"""How a name is printed that anybody may have chosen: on one line, and as nothing but a name."""

from __future__ import annotations

import shlex

from django.db import DEFAULT_DB_ALIAS


def printable(text: str) -> str:
    """Return ``text`` with escapes for what a terminal would not show as a character.

    A line break would end a comment and begin a statement, ESC would command the terminal, and
    U+202E would reverse the text that follows it.
    """
    shown = "".join(each if each.isprintable() else _escaped(each) for each in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def printable_ascii(text: str) -> str:
    """Do the same for a stream whose encoding is not known."""
    return printable(text).encode("ascii", "backslashreplace").decode()


def comment(text: str) -> str:
    """Return ``text`` as SQL's comment of one line, whatever it holds."""
    return f"-- {printable(text)}"


def one_line(text: str) -> str:
    """Return a text of several lines, such as a driver's error, as a single one."""
    return printable(" ".join(text.split()))


def first_line(error: BaseException | None) -> str:
    """Return what fits into a notice: the drivers' connection errors have many lines."""
    return str(error).strip().partition("\n")[0]


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def command_line(alias: str, *options: str, schema: str | None = None) -> str:
    """Return what to type to have ``resyncsequences`` do more about a database."""
    words = ["python", "manage.py", "resyncsequences", *options]
    words += option("--database", alias) if alias != DEFAULT_DB_ALIAS else []
    words += option("--schema", schema) if schema and schema != "public" else []
    return shlex.join(words)


def option(name: str, value: str) -> list[str]:
    """Return the words of an option; it is a single one where the value looks like an option."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def sql_name(quoted: str, *parts: str) -> str:
    """Return a quoted name, or its ``parts`` with Unicode escapes if it holds what acts."""
    if quoted.isprintable():
        return quoted
    return ".".join(f'U&"{_unicode_escapes(part, quote=chr(34))}"' for part in parts)


def sql_literal(text: str) -> str:
    """Quote ``text`` for a statement that is printed, with escapes if it holds what acts."""
    if text.isprintable():
        quoted = "'{}'".format(text.replace("'", "''"))
        return "E" + quoted.replace("\\", "\\\\") if "\\" in quoted else quoted
    return f"U&'{_unicode_escapes(text, quote=chr(39))}'"


def _unicode_escapes(text: str, quote: str) -> str:
    return "".join(
        each * 2 if each in (quote, "\\") else each if each.isprintable() else f"\\+{ord(each):06X}"
        for each in text
    )
