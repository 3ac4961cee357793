"""Judge an IntegrityError: what caused it, and can a resync cure it?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import IntegrityError, connections

from safemigrate import driver
from safemigrate.printing import command_line
from safemigrate.report import chain
from safemigrate.sequences.checking import obstacle_of
from safemigrate.sequences.losses import find_losses
from safemigrate.sequences.needs import needs_of_apps
from safemigrate.sequences.recheck import resync_constraint
from safemigrate.sqltext import verb_of_one_statement

from .statements import lone_write, may_draw

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.report import Audience
    from safemigrate.sequences.finding import Finding
    from safemigrate.sequences.recheck import Feeding

VIOLATIONS = {"23505", "23P01"}  # of a unique and of an exclusion constraint
NOT_NULL_VIOLATION = "23502"
PRIMARY_KEY_IN_TEXT = re.compile(r'"((?:[^"]|"")+)_pkey"')
WRITING = frozenset({"insert", "update", "merge"})
WRITING_WITHIN = re.compile(rf"\b(?:{'|'.join(WRITING)})\b", re.IGNORECASE)
DUPLICATES = (
    "{table} already holds duplicate values, so {constraint} cannot be created. No sequence is "
    "involved: find the rows with GROUP BY … HAVING count(*) > 1 and remove or change them."
)
CONCURRENT_DDL = (
    "Two sessions created the same object at once. Let only one of them migrate at a time, and run "
    "the command again."
)
GENUINE = (
    "Genuine duplicate in {table}: no sequence that feeds {columns} needs a resync. The value, or "
    "the row that has it already, came from the statement, from a trigger or function that it "
    "calls, or from what the run had done before."
)
LOST_DEFAULT = (
    "{table}.{column} has no default or identity any more, as after a restore or a copy that lost "
    "it. No sequence is behind. Type: {command} (and --force, if the table has a trigger before "
    "INSERT)"
)
ROLLED_BACK = "it was part of a transaction that was rolled back"
AGAIN = "If it ends in the same way, the migration itself puts the sequence behind."
UNSEEN = "it came from a COMMIT, or from a connection that safemigrate does not watch"
LATER = "After the rollback, check {table} with: {command}"


class Collision(NamedTuple):
    """A violation as the server reported it; ``schema`` is None if only its text was available.

    ``is_of_stored_rows`` means that no row was added: an index was to be built over duplicates.
    """

    schema: str | None
    table: str
    constraint: str
    is_of_stored_rows: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table


def collision_of(error: BaseException) -> Collision | None:
    """Return what ``error`` collided with, or None if it is not such a violation.

    The error object is asked, not its text: messages are translated and names are cut. Only an
    error that carries no diagnostics at all is searched for the ``"…_pkey"`` of PostgreSQL's
    default naming.
    """
    if not isinstance(error, IntegrityError):
        return None
    state = driver.sqlstate(error)
    if state is not None and state not in VIOLATIONS:
        return None
    diag: Any = driver.diagnostics(error)
    if diag is not None and diag.table_name:
        # The server's function that found it: sorting rows for an index, not inserting one.
        is_of_stored_rows = str(diag.source_function).startswith("comparetup_index")
        return Collision(diag.schema_name, diag.table_name, diag.constraint_name, is_of_stored_rows)
    if match := PRIMARY_KEY_IN_TEXT.search(str(error)):
        table = match[1].replace('""', '"')
        return Collision(None, table, f"{table}_pkey")
    return None


def why_not_retried(text: str, *, many: bool, retries: int) -> str:
    """Say why a statement that failed in autocommit is not retried; empty if it is."""
    if retries == 0:
        return "retries are off"
    if many:  # psycopg2 commits each, and a generator gives none a second time
        return "its first rows may be committed already, and cannot be asked for again"
    verb = verb_of_one_statement(text)
    if not verb:
        return "it may be several statements, some of them committed already"
    if verb in WRITING or (verb == "with" and WRITING_WITHIN.search(text)):
        return ""
    return f"{verb.upper()} may have committed a part already"


class Judge:
    """Asks the server about the errors of one connection, and resyncs what caused them."""

    def __init__(self, connection: BaseDatabaseWrapper, audience: Audience, *, move: bool) -> None:
        self._connection = connection
        self._audience = audience
        self._move = move

    def may_retry(self, error: BaseException, *, refusal: str = "", text: str = "") -> bool:
        """Resync what ``error`` collided on; return whether to retry. Never raises.

        A retry can help where a sequence has moved, if only by the draw that failed; ``refusal``
        says why the statement may not be sent again all the same. If it is not retried, the error
        gets a note. ``text`` is the statement's, if it is known: no sequence has given the columns
        that it gives itself.
        """
        collision = collision_of(error)
        if collision is None:
            return False
        if why := _why_no_sequence(collision):
            self._audience.explain(error, why)
            return False
        written = lone_write(text)
        try:
            feeding = resync_constraint(
                self._connection,
                collision.schema,
                collision.table,
                collision.constraint,
                listed=written.columns if written and written.name == collision.table else None,
                may_draw=may_draw(text),
                move=self._move,
            )
        except Exception as failure:  # noqa: BLE001 - the run ends with its own error
            why_not = f"{collision} could not be checked: {obstacle_of(failure)}"
            self._audience.explain(error, why_not)
            return False
        refusal = refusal or ("" if self._move else "healing is off")
        cured = _cured(feeding)
        is_retried = bool(cured) and not refusal
        for finding in feeding.findings:
            self._audience.tell_of(finding, is_retried=is_retried, is_expected=True)
        if not is_retried:
            self._audience.explain(error, _verdict(collision, feeding, cured, refusal))
        return is_retried

    def explain(self, leaving: BaseException) -> None:
        """Add a note to each collision behind ``leaving`` that no retry has judged."""
        alias = self._connection.alias
        # What no wrapper has seen (None) is not of a connection that was never opened.
        ours = {alias} if self._connection.connection is None else {alias, None}
        for error in chain(leaving):
            using = getattr(error, "safemigrate_using", None)
            if using not in ours or hasattr(error, "safemigrate_notes"):
                continue
            collision = collision_of(error)
            is_sure = using is not None or self._is_the_only_one()
            if collision is None:
                self._explain_null(error)
            elif not (is_sure and driver.is_idle(self._connection)):
                where = alias if is_sure else "ALIAS"
                command = command_line(where, "--check", schema=collision.schema)
                self._audience.explain(error, LATER.format(table=collision, command=command))
            else:
                self.may_retry(error, refusal=ROLLED_BACK if using else UNSEEN)

    def _is_the_only_one(self) -> bool:
        """Tell whether an error that came with a COMMIT can only be this connection's."""
        others = connections.all(initialized_only=True)
        return all(
            each.alias == self._connection.alias or each.connection is None for each in others
        )

    def _explain_null(self, error: BaseException) -> None:
        diag: Any = driver.diagnostics(error)
        is_null = diag is not None and diag.sqlstate == NOT_NULL_VIOLATION
        if not (is_null and driver.is_idle(self._connection)):
            return
        schema, table, column = diag.schema_name, diag.table_name, diag.column_name
        needs = [each for each in needs_of_apps(self._connection) if each.table == table]
        for loss in find_losses(self._connection, needs, [schema], force=True):
            if loss.place == (schema, table, column) and loss.status == "lost default":
                command = command_line(self._connection.alias, "--restore-defaults", schema=schema)
                note = LOST_DEFAULT.format(
                    table=f"{schema}.{table}", column=column, command=command
                )
                self._audience.explain(error, note)


def _why_no_sequence(collision: Collision) -> str:
    if collision.schema == "pg_catalog":
        return CONCURRENT_DDL
    if collision.is_of_stored_rows:
        return DUPLICATES.format(table=collision, constraint=collision.constraint)
    return ""


def _cured(feeding: Feeding) -> list[Finding]:
    return [each for each in feeding.findings if feeding.is_drawn or each.moved_to is not None]


def _verdict(collision: Collision, feeding: Feeding, cured: list[Finding], refusal: str) -> str:
    if cured:
        names = ", ".join(str(each.sequence) for each in cured)
        again = f" {AGAIN}" if refusal == ROLLED_BACK else ""
        return (
            f"{names} was behind {collision} and is in sync now. The statement was not retried, "
            f"because {refusal}: run the command again.{again}"
        )
    if left := next((each for each in feeding.findings if each.obstacle or each.is_behind), None):
        what = f"{left} and" if left.is_behind else f"{left.sequence}, which feeds {collision},"
        return f"{what} was left alone: {left.remedy}"
    if feeding.why_not:
        return feeding.why_not
    return GENUINE.format(table=collision, columns=", ".join(feeding.columns))
