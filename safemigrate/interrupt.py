"""End a run that is told to stop, by SIGTERM as by Ctrl-C.

As the first process of a container, Python ignores SIGTERM; elsewhere it ends without telling the
server. psycopg 3 cancels its statement on KeyboardInterrupt. psycopg2 waits in C, where none of
Python's handlers runs until the server has answered.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

# A signal may come just before a statement is sent.
CANCEL_EVERY = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends whatever KeyboardInterrupt would end."""

    status = 128 + signal.SIGTERM


@contextmanager
def ending_on_signals(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Raise Terminated on SIGTERM, and let neither it nor Ctrl-C wait for a statement to end.

    Only in the main thread, and only if the process has no handler of its own.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield
        return
    process = os.getpid()

    def terminate(signum: int, frame: Any) -> None:
        if os.getpid() != process:  # forked, as by a pool that ends its workers so
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        with _Canceller(connection) if driver.waits_in_c(connection) else nullcontext():
            yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_by(error: KeyboardInterrupt) -> None:
    """End the process as the signal behind ``error`` would, so that a shell sees it so."""
    if isinstance(error, Terminated):
        sys.exit(Terminated.status)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


class _Canceller:
    """A thread that, on a signal, cancels the statement that the main thread is waiting for.

    Python writes the signal's number to a socket at once, whatever the main thread is doing.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        self.ours, self.pythons = socket.socketpair()
        self.pythons.setblocking(False)
        self.before = signal.set_wakeup_fd(self.pythons.fileno(), warn_on_full_buffer=False)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        signal.set_wakeup_fd(self.before)
        self.pythons.close()
        self.ours.shutdown(socket.SHUT_RD)  # a forked child may still hold the other end
        self.thread.join()
        self.ours.close()

    def _wait(self) -> None:
        while heard := self.ours.recv(1):
            if heard[0] in (signal.SIGTERM, signal.SIGINT):
                self._cancel()

    def _cancel(self) -> None:
        """Cancel the statement that is running, or that starts within a moment."""
        for _ in range(2):
            with suppress(Exception):  # the connection may be gone
                if driver.transaction_status(self.connection) == driver.ACTIVE:
                    self.connection.connection.cancel()
                    return
            self.is_over.wait(CANCEL_EVERY)
