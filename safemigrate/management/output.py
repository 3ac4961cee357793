"""Lines of our own among the lines of ``migrate``."""

from __future__ import annotations

from typing import Any, TextIO


class Lines:
    """A stream that holds back our lines while one of ``migrate``'s is unfinished."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] = []
        self._is_at_start = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int | None:
        written = self._stream.write(text)
        self._is_at_start = text.endswith("\n") if text else self._is_at_start
        if self._is_at_start:
            self._let_go()
        return written

    def tell_line(self, line: str) -> None:
        """Write ``line`` as a line of its own, at once or after the unfinished one."""
        self._held.append(line)
        if self._is_at_start:
            self._let_go()

    def end(self) -> None:
        """Write what is still held back, breaking the line that nobody ended."""
        if self._held:
            self._stream.write("\n")
            self._let_go()

    def _let_go(self) -> None:
        for line in self._held:
            self._stream.write(f"{line}\n")
        self._held.clear()
