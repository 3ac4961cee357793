"""How far a command is, for somebody who waits for it at a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from threading import Timer
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# After so many seconds one wants to know, and every so many seconds it is kept up to date.
PATIENCE = 2.0
PAUSE = 0.2


class Progress:
    """One line on a terminal, once it takes longer; nothing anywhere else."""

    def __init__(self, stream: Any, total: int) -> None:
        self.total = total
        self._stream = stream
        self._is_seen = stream.isatty()
        self._due = monotonic() + PATIENCE
        self._shown = ""

    def show(self, done: int) -> None:
        if self._is_seen and monotonic() >= self._due:
            self._replace(f"Checked {done} of {self.total} sequences")
            self._due = monotonic() + PAUSE

    def clear(self) -> None:
        """Leave the line to what is printed next."""
        if self._shown:
            self._replace("")

    def _replace(self, text: str) -> None:
        # Its style is for errors.
        self._stream.write(f"\r{text.ljust(len(self._shown))}\r", style_func=str, ending="")
        self._stream.flush()
        self._shown = text


@contextmanager
def saying_if_slow(text: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Tell ``text`` if the block is not over after :data:`PATIENCE`."""
    timer = Timer(PATIENCE, tell, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
