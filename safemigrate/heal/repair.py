"""What is done about a statement that collided, until it goes through or can't be healed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import Error, IntegrityError
from tenacity import Retrying, retry_if_exception

from safemigrate.sequences.state import (
    SAVEPOINT,
    drain,
    look,
    looking,
    obstacle_of,
    own_transaction,
    resync,
    settle,
    table_of,
)

from .collisions import collision_of, explanation

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.report import Audience
    from safemigrate.sequences.catalogue import Sequence, Table
    from safemigrate.sequences.state import Finding

    from .collisions import Collision
    from .statements import Statement
    from .trust import Trust

ALONE = "what it gives is not a sequence's own next value, so it was left alone."


@dataclass(frozen=True)
class Attempt:
    """A statement on its way, and how to send it."""

    send: Callable[[], Any]
    statement: Statement
    is_guarded: bool
    may_repeat_in_autocommit: bool


@dataclass(frozen=True)
class Reading:
    """What a statement says of the key that it collided on."""

    names: bool = False
    leaves: bool = False
    # A function that it calls may have collided instead.
    is_opaque: bool = False

    @property
    def is_genuine(self) -> bool:
        return self.names and not self.leaves and not self.is_opaque


def reading(
    statement: Statement, table: Table, columns: tuple[str, ...] | list[str], trust: Trust
) -> Reading:
    """Read whether ``statement`` names, and whether it leaves, any of ``columns`` of ``table``."""
    names = leaves = False
    for insert in statement.inserts:
        target = trust.get(insert.table)
        if target and (target.oid in table.lineage or table.oid in target.lineage):
            names |= any(insert.names(each, target.columns) for each in columns)
            leaves |= any(insert.leaves(each, target.columns) for each in columns)
    for change in statement.changes:
        target = trust.get(change.table)
        if target is None or target.oid in table.lineage:
            names |= any(each in change.columns for each in columns)
    return Reading(names, leaves, statement.ends_trust)


def fed_columns(table: Table, collision: Collision) -> list[str]:
    return [each for each in table.indexes.get(collision.constraint, ()) if each in table.fed]


def feeders(table: Table, collision: Collision) -> list[Sequence]:
    """Return the sequences that feed the columns of the constraint that was violated."""
    return table.feeders(table.indexes.get(collision.constraint, ()))


def table_in(cursor: Any, collision: Collision) -> Table | None:
    """Read the table that an error names, by its own schema where the error gave one."""
    if collision.schema is None:
        quoted = collision.table.replace('"', '""')
        oid = settle(cursor, f'"{quoted}"')
        return None if oid is None else table_of(cursor, oid=oid)
    settle(cursor)
    return table_of(cursor, schema=collision.schema, table=collision.table)


class Repairer:
    """Resyncs, tells of it, and knows how often a statement may be repeated."""

    def __init__(
        self, connection: BaseDatabaseWrapper, audience: Audience, *, retries: int, touch: bool
    ) -> None:
        self.connection = connection
        self.audience = audience
        self.retries = retries
        self.touch = touch

    def resync(
        self, cursor: Any, table: Table, sequence: Sequence, *, repeated: bool = False
    ) -> Finding:
        """Move ``sequence`` past its keys, or only look where nothing may be touched."""
        finding = resync(cursor, sequence) if self.touch else look(cursor, [sequence])[0]
        self.audience.tell_of(finding, table.lineage, repeated=repeated)
        return finding


class Repair:
    """One statement that collided; in a transaction (``inside``) it stands behind its guard."""

    def __init__(self, repairer: Repairer, attempt: Attempt, trust: Trust, *, inside: bool) -> None:
        self.repairer = repairer
        self.connection = repairer.connection
        self.explain = repairer.audience.explain
        self.attempt = attempt
        self._statement = attempt.statement
        self.trust = trust
        self.inside = inside
        self.repeats: Counter[int] = Counter()
        self.unexplained: set[int] = set()

    def mend(self, failure: IntegrityError) -> Any:
        """Heal what ``failure`` names and repeat the statement, again and again; or raise."""
        self.first = failure
        if not self._heals(failure):
            raise failure
        try:
            return Retrying(retry=retry_if_exception(self._heals), reraise=True)(self._repeat)
        except IntegrityError as error:
            in_vain = collision_of(error) == collision_of(failure)
            if not in_vain:
                raise
        # The same again: what migrate would have raised is the first one.
        raise failure

    def _repeat(self) -> Any:
        if self.inside:
            return self.attempt.send()
        with own_transaction(self.connection):
            return self.attempt.send()

    def _heals(self, error: BaseException) -> bool:
        """Resync what ``error`` names; tell whether it is worth sending the statement again."""
        collision = collision_of(error) if isinstance(error, IntegrityError) else None
        if collision is None:
            return False
        try:
            why_not = self._treat(error, collision)
        except Error as obstacle:
            why_not = f"Could not heal {collision.table}: {obstacle_of(obstacle)}"
        # A vain repeat's error will not be the one that gets out.
        is_the_same = collision == collision_of(self.first)
        self.explain(self.first if is_the_same else error, why_not or "")
        return why_not is None

    def _treat(self, error: BaseException, collision: Collision) -> str | None:
        """Resync; return why the statement should not be repeated, None where it should."""
        if self.inside:
            with self.connection.cursor() as cursor:
                cursor.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
        with looking(self.connection) as cursor:
            table = table_in(cursor, collision)
            if table is None:
                return ""
            why_not = self._innocence(error, table, collision)
            if why_not is not None:
                return why_not
            self.repeats[table.oid] += 1
            refusal = self._refusal(table)
            findings = [
                self.repairer.resync(cursor, table, each, repeated=not refusal)
                for each in feeders(table, collision)
            ]
            if any(finding.moved_to is not None for finding in findings):
                return f"{table} was resynced, but the statement {refusal}." if refusal else None
            if left := next((each for each in findings if each.obstacle or each.is_behind), None):
                return f"{left.sequence}, which feeds {table}, was left alone: {left.remedy}"
            if refusal:
                return f"No sequence that feeds {table} is behind now; the statement {refusal}."
            return self._drawn_again(cursor, table, collision, findings)

    def _innocence(self, error: BaseException, table: Table, collision: Collision) -> str | None:
        """Say why no sequence is to blame, None where one may be."""
        if feeders(table, collision):
            is_genuine = self._said(table, collision).is_genuine
            return explanation(error, self._statement) if is_genuine else None
        columns = table.indexes.get(collision.constraint, ())
        if reading(self._statement, table, columns, self.trust).leaves:
            return f"The default of the key of {table} is computed: {ALONE}"
        return explanation(error, self._statement)

    def _said(self, table: Table, collision: Collision) -> Reading:
        return reading(self._statement, table, fed_columns(table, collision), self.trust)

    def _drawn_again(
        self, cursor: Any, table: Table, collision: Collision, findings: list[Finding]
    ) -> str | None:
        """Allow one repeat where nothing is behind: the failed draw itself moved the sequence."""
        names = self._said(table, collision).names
        if names or table.oid in self.unexplained or not self.repairer.touch:
            return f"No sequence that feeds {table} is behind now."
        self.unexplained.add(table.oid)
        for finding in findings:
            drain(cursor, finding)
        return None

    def _refusal(self, table: Table) -> str:
        if self.repeats[table.oid] > self.repairer.retries:
            return f"was not repeated more than {self.repairer.retries} times"
        if not self.inside and not self.attempt.may_repeat_in_autocommit:
            return "was not repeated: a part of it may be committed already"
        return ""
