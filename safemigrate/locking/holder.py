"""Who holds the migration lock, as far as the server shows it, and what to do about it."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from safemigrate.printing import printable_ascii

if TYPE_CHECKING:
    from safemigrate.driver import Cursor

NAME_LENGTH = 63
NAME = r"(?a)safemigrate (?P<token>\d+_[0-9a-f]{8}) -?\d+ (?P<host>.*)"

# Of other roles' sessions, everyone sees the role and the application's name, and nothing else. The
# name may be anybody's, and the pid in it a pooler's: so the backend must be in our database, and
# the same role's.
WHO_HOLDS_IT = """
SELECT session.pid,
       session.usename AS role,
       session.application_name AS name,
       pg_catalog.to_char(
           pg_catalog.timezone('UTC', session.xact_start), 'YYYY-MM-DD HH24:MI:SS') AS since,
       worker.pid AS worker,
       worker.state,
       worker.query,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() - worker.query_start)::pg_catalog.float8
           AS duration
  FROM pg_catalog.pg_locks AS lock
  JOIN pg_catalog.pg_database AS here
    ON here.oid = lock.database AND here.datname = pg_catalog.current_database()
  JOIN pg_catalog.pg_stat_activity AS session
    ON session.pid = lock.pid
  LEFT JOIN pg_catalog.pg_stat_activity AS worker
    ON worker.datid = lock.database
   AND worker.usesysid = session.usesysid
   AND worker.pid::pg_catalog.text = pg_catalog.split_part(session.application_name, ' ', 3)
 WHERE lock.locktype = 'advisory'
   AND lock.granted
   AND lock.objsubid = 2
   AND lock.classid::pg_catalog.int8 = %s
   AND lock.objid::pg_catalog.int8 = %s
"""

# The verb, and the table if it comes next: no more of a statement, for the rest may be secret.
HEAD = r"""(?xia)
    (?:INSERT\s+INTO | UPDATE | DELETE\s+FROM | (?:ALTER|CREATE|DROP|TRUNCATE)\s+TABLE)
        (?:\s+ONLY | \s+IF\s+(?:NOT\s+)?EXISTS)*
        \s+(?P<table>(?:"[^"']+"|\w+)(?:\.(?:"[^"']+"|\w+))?)
    | [a-z]+ (?:\s+(?:UNIQUE\s+)?INDEX(?:\s+CONCURRENTLY)?\b | \s+CONSTRAINTS\b)?
"""


class Holder(NamedTuple):
    """A session that holds the migration lock; ``token`` is empty if it is not a run of ours.

    ``role`` and ``name`` are set only where it is empty.
    ``worker`` is the backend that migrates for it, or None if a pooler or privileges hide it.
    """

    pid: int | None = None
    role: str = ""
    name: str = ""
    token: str = ""
    host: str = ""
    since: str = ""
    worker: int | None = None
    running: str = ""

    @property
    def process(self) -> str:
        return self.token.partition("_")[0]

    def advice(self) -> str:
        """Say how to end the run: the session of its lock must outlive the one that migrates."""
        if not self.token:
            return "Find out what that session is for, and have it ended."
        if self.worker:
            return (
                "If that run hangs, end the session that migrates "
                f"(SELECT pg_terminate_backend({self.worker}))."
            )
        return f"If that run hangs, end process {self.process} on {self.host}."

    def __str__(self) -> str:
        return printable_ascii(self._run() if self.token else self._session())

    def _run(self) -> str:
        since = f", since {self.since} UTC" if self.since else ""
        running = f", now {self.running}" if self.running else ""
        return f"process {self.process} on {self.host}{since}{running}"

    def _session(self) -> str:
        if self.pid is None:
            return "a session that has ended since"
        return (
            f'session {self.pid} of role "{self.role}" (application_name "{self.name}"), which is '
            "no run of safemigrate"
        )


def name_of_run(token: str, backend: int) -> str:
    """Return an application_name that tells the others who holds the migration lock."""
    name = f"safemigrate {token} {backend} "
    return name + hostname()[len(name) - NAME_LENGTH :]


def hostname() -> str:
    return socket.gethostname().partition(".")[0]


def holder_of(cursor: Cursor, key: tuple[int, int]) -> Holder:
    """Ask who holds the advisory lock of these two numbers."""
    row = cursor.row(WHO_HOLDS_IT, [key[0], key[1] % 2**32])
    if row is None:
        return Holder()
    name = re.fullmatch(NAME, row.name or "")
    if name is None:
        return Holder(pid=row.pid, role=row.role or "", name=row.name or "")
    return Holder(
        pid=row.pid,
        token=name["token"],
        host=name["host"] or "its host",
        since=row.since or "",
        worker=row.worker,
        running=_running(row),
    )


def _running(row: Any) -> str:
    if row.state != "active":
        return row.state or ""
    return f"running for {row.duration or 0:.0f} s: {head(row.query)}"


def head(sql: str) -> str:
    """Return the verb of a statement and its table, without anything that could be a value."""
    found = re.match(HEAD, sql.strip())
    return " ".join(found[0].split()) if found else "a statement"
