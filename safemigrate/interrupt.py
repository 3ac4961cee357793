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

from django.db import connections

from safemigrate import driver

if TYPE_CHECKING:
    from collections.abc import Iterator

# A signal may come just before a statement is sent.
CANCEL_EVERY = 0.1
# What SIGTERM does not end within so many seconds waits for a server that does not answer.
PATIENCE = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends whatever KeyboardInterrupt would end."""

    status = 128 + signal.SIGTERM


_handler_has_run = threading.Event()


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Raise Terminated on SIGTERM, and let neither it nor Ctrl-C wait for a statement to end.

    Only in the main thread, only if the process has no handler of its own, and only where one would
    run before the statement has ended.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and driver.lets_threads_run()
    )
    if not is_ours:
        yield
        return
    _handler_has_run.clear()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _Canceller() if driver.WAITS_IN_C else nullcontext():
            yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(signum: int, frame: Any) -> None:
    _handler_has_run.set()
    raise Terminated


# What ends a run, and cancels its statement; not where the project has put a handler of its own.
HANDLERS: dict[int, Any] = {
    signal.SIGTERM: _terminate,
    signal.SIGINT: signal.default_int_handler,
}


def end_by(error: KeyboardInterrupt) -> None:
    """End the process as the signal behind ``error`` would, so that a shell sees it so."""
    if isinstance(error, Terminated):
        sys.exit(Terminated.status)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


class _Fork(threading.local):
    """A fork of a run that ends on signals: in the child they do what they do without us.

    SIGTERM is blocked meanwhile: Python drops what arrives before a child has begun, and a pool
    that ends its workers would wait for them for ever.
    """

    mask: Any = None

    def before(self) -> None:
        if signal.getsignal(signal.SIGTERM) is _terminate:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def in_child(self) -> None:
        if self.mask is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            self.end()

    def end(self) -> None:
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.mask = None


_fork = _Fork()
with suppress(AttributeError):  # Windows does not fork
    os.register_at_fork(
        before=_fork.before, after_in_child=_fork.in_child, after_in_parent=_fork.end
    )


def _end_in_time() -> None:
    """End as without a handler where none is run: psycopg2 connects in C, for minutes maybe."""
    if not _handler_has_run.wait(PATIENCE):
        with suppress(OSError):
            os.write(2, b"safemigrate: Ended by SIGTERM, though the server has not answered.\n")
        os._exit(Terminated.status)


class _Canceller:
    """A thread that, on a signal, cancels the statement that the main thread is waiting for.

    Python writes the signal's number to a socket at once, whatever the main thread is doing.
    """

    def __init__(self) -> None:
        # This thread's connections, whether or not they are open yet.
        self.connections = []
        for alias in connections:
            with suppress(Exception):  # whatever keeps a backend from being loaded
                self.connections.append(connections[alias])
        self.process = os.getpid()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        self.ours, self.pythons = socket.socketpair()
        self.pythons.setblocking(False)
        self.before = signal.set_wakeup_fd(self.pythons.fileno(), warn_on_full_buffer=False)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self.process:  # a forked child: the socket is its parent's
            return
        self.is_over.set()
        signal.set_wakeup_fd(self.before)
        self.pythons.close()
        with suppress(OSError):  # the other end is closed, unless a forked child still holds it
            self.ours.shutdown(socket.SHUT_RD)
        self.thread.join()
        self.ours.close()

    def _wait(self) -> None:
        with suppress(OSError):  # of gevent's sockets at the shutdown
            while heard := self.ours.recv(1):
                self._hear(heard)

    def _hear(self, heard: bytes) -> None:
        if self.before != -1:  # somebody else's, such as an event loop
            with suppress(OSError):
                os.write(self.before, heard)
        if heard[0] in HANDLERS and signal.getsignal(heard[0]) is HANDLERS[heard[0]]:
            if heard[0] == signal.SIGTERM:
                threading.Thread(target=_end_in_time, daemon=True).start()
            self._cancel()

    def _cancel(self) -> None:
        """Cancel the statements that are running, or that start within a moment."""
        for _ in range(2):
            for connection in self.connections:
                with suppress(Exception):  # it may be closed, or another vendor's
                    if driver.transaction_status(connection) == driver.ACTIVE:
                        connection.connection.cancel()
                        return
            self.is_over.wait(CANCEL_EVERY)
