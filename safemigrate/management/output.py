"""Lines of our own among the lines of ``migrate``."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from django.core.management.base import OutputWrapper


class Lines:
    """A stream that holds back our lines while one of ``migrate``'s is unfinished."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: deque[str] = deque()
        self._is_at_start = True
        self._is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int | None:
        written = self._stream.write(text)
        if text:
            self._is_at_start = text.endswith("\n")
            self._is_broken = False
        if self._is_at_start:
            self._let_go()
        return written

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except Exception:  # noqa: BLE001 - a stream need not have it, nor for OutputWrapper
            return False

    def flush(self) -> None:
        if hasattr(self._stream, "flush"):
            self._stream.flush()

    def tell_line(self, line: str) -> None:
        """Write ``line`` as a line of its own, at once or after the unfinished one."""
        self._held.append(line)
        if self._is_at_start:
            self._let_go()

    def line_break(self, other: Any) -> str:
        """Return what a line on ``other`` has to begin with, to be a line of its own.

        That is a line break, once, after an unfinished line of a stream that goes to the same
        terminal or file.
        """
        if self._is_at_start or self._is_broken or not _is_same_file(self._stream, other):
            return ""
        self._is_broken = True
        return "\n"

    def end(self) -> None:
        """Write what is still held back, after ending the unfinished line."""
        if self._held:
            self._held.appendleft("")
            self._let_go()

    def _let_go(self) -> None:
        """Write our lines; where that can't be done, the run goes on without them."""
        with suppress(Exception):  # also where another thread has let go of the last one
            while True:
                self._stream.write(f"{encodable(self._held.popleft(), self._stream)}\n")


def _is_same_file(one: Any, other: Any) -> bool:
    with suppress(Exception):  # a stream need not have a descriptor
        return os.path.sameopenfile(one.fileno(), other.fileno())
    return one is other


def encodable(text: str, stream: Any) -> str:
    """Return ``text`` with escapes for what the stream's encoding, if it has one, does not have."""
    try:
        return text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    except (AttributeError, LookupError, TypeError, ValueError):
        return text.encode("utf-8", "backslashreplace").decode()


def write_to(stream: OutputWrapper, line: str) -> None:
    """Write ``line`` at once; nothing where the other end has gone, as ``| head`` does."""
    out: Any = stream._out  # before Django 5 the wrapper has a fileno and an encoding of its own
    try:
        stream.write(encodable(line, out))
        stream.flush()
    except BrokenPipeError:
        # What is still in the buffer, and all that comes, is for nobody.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)
