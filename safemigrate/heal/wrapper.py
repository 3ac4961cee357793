"""The execute wrapper of one connection: sweep first, recheck the disturbed, retry the failed."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import Error, IntegrityError
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from safemigrate import driver
from safemigrate.printing import one_line
from safemigrate.report import Audience
from safemigrate.sequences.checking import obstacle_of
from safemigrate.sequences.recheck import recheck
from safemigrate.sequences.scope import current_schemas
from safemigrate.sequences.sweep import sweep

from .collisions import Judge, why_not_retried
from .disturbed import Disturbed
from .statements import UNREAD, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.sequences.finding import Finding

    from .statements import Heads, Write

    Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]


class Wrapper:
    """What stands between the statements of one connection and the server."""

    def __init__(self, connection: BaseDatabaseWrapper, *, retries: int, move: bool) -> None:
        self.connection = connection
        self.audience = Audience(connection.alias)
        self._retries = retries
        self._move = move
        self._judge = Judge(connection, self.audience, move=move)
        self._disturbed = Disturbed()
        # The schemas that were swept, "" for all of them; those of them in which others may have
        # written since; the sequences that could not be put in sync; and whether to try once more.
        self._swept: frozenset[str] = frozenset()
        self._stale: frozenset[str] = frozenset()
        self._not_in_sync: set[int] = set()
        self._may_sweep_again = False

    def __call__(
        self,
        execute: Execute,
        sql: Any,
        params: Any,
        many: bool,  # noqa: FBT001 - as Django calls it
        context: dict[str, Any],
    ) -> Any:
        text = driver.text_of(sql, self.connection)
        heads = read(text) if text else UNREAD
        still_behind = self._prepare(heads) if heads.may_insert else []
        try:
            result = execute(sql, params, many, context)
        except Error as failure:
            self._disturbed.draw(heads.inserts, None)  # nobody knows how many it has used up
            if not isinstance(failure, IntegrityError):
                raise
            failure.safemigrate_using = self.connection.alias  # type: ignore[attr-defined]
            if not driver.is_idle(self.connection):
                raise
            send = partial(execute, sql, params, many, context)
            result = self._retry(failure, send, text, many=many)
        else:
            is_counted = heads.is_counted and not many
            self._learn(heads, context["cursor"].rowcount if is_counted else None)
        for finding in still_behind:  # told only now, for a failure is explained
            self.audience.tell_of(finding)
        return result

    # Before a statement.

    def _prepare(self, heads: Heads) -> list[Finding]:
        """Sweep and recheck; return what the INSERTs draw from and is still behind."""
        still_behind: list[Finding] = []
        self.sweep()
        for insert in heads.inserts:
            if self._disturbed.needs_recheck(insert, heads.leading):
                still_behind += self._recheck(insert)
        return still_behind

    def _schema(self) -> str:
        """Name the tenant that django-tenants, or a package like it, is migrating now."""
        return getattr(self.connection, "schema_name", None) or ""

    def sweep(self) -> None:
        """Check every sequence, once for each tenant, and resync those that are behind."""
        schema = self._schema()
        if schema not in self._swept or schema in self._stale:
            self._sweep(schema)
            self._may_sweep_again = bool(self._not_in_sync)

    def forget_sweep(self) -> None:
        """Have every sequence checked anew, because other runs have written meanwhile."""
        self._stale = self._swept

    def sweep_again(self) -> None:
        """Sweep once more, if something could not be put in sync."""
        if self._may_sweep_again:
            self._sweep(self._schema())
            self._may_sweep_again = False

    def _sweep(self, schema: str) -> None:
        """Sweep a tenant's schemas, or all.

        Of what was swept before, only this is resynced: what could not be put in sync then, and
        what others may have put behind since. What this run has given keys to is at most rechecked.
        """
        swept, fresh = self._swept, self._swept - self._stale
        not_in_sync = frozenset(self._not_in_sync)

        def was_swept_by(schemas: frozenset[str], finding: Finding) -> bool:
            # A sweep of one schema checks every table that the sequence feeds.
            names = {key.schema for key in finding.sequence.keys} if schema else {""}
            return not schemas.isdisjoint(names)

        def leaves_alone(finding: Finding) -> bool:
            return was_swept_by(swept, finding) and (
                self._disturbed.has_given(finding)
                or (was_swept_by(fresh, finding) and finding.sequence.oid not in not_in_sync)
            )

        with self._contained("The sequences could not be checked"):
            self.connection.ensure_connection()
            if not self._can_send():
                return
            self._have_swept({schema})
            schemas = current_schemas(self.connection) if schema else []
            self._have_swept(schemas)
            self._not_in_sync.clear()
            for finding in sweep(
                self.connection,
                schemas=schemas if schema else None,
                move=self._move,
                leaves_alone=leaves_alone,
            ):
                if not finding.is_behind or finding.obstacle or not self._move:
                    self.audience.tell_of(finding, is_expected=self._move)
                    self._disturbed.mark(finding)
                elif not was_swept_by(fresh, finding):
                    self._recheck_left_alone(finding)
                if finding.obstacle and finding.status in ("behind", "unknown"):
                    self._not_in_sync.add(finding.sequence.oid)

    def _have_swept(self, schemas: Iterable[str]) -> None:
        self._swept = self._swept.union(schemas)
        self._stale = self._stale.difference(schemas)

    def _recheck_left_alone(self, finding: Finding) -> None:
        for table in {key.quoted_table for key in finding.sequence.keys}:
            with self._contained(f"The table {table} could not be checked"):
                for each in recheck(self.connection, table, is_of_sweep=True).findings:
                    self.audience.tell_of(each)

    def _recheck(self, insert: Write) -> list[Finding]:
        """Check what an INSERT draws from; return what is still behind."""
        still_behind: list[Finding] = []
        if not (self._move and self._can_send()):
            return still_behind
        with self._contained(f"The table {insert.table} could not be checked"):
            found = recheck(
                self.connection,
                insert.table,
                listed=insert.columns or frozenset(),
                is_unchecked=self._disturbed.is_unchecked(insert),
                given=self._disturbed.given(insert),
            )
            self._disturbed.remember_check(insert, found)
            for finding in found.findings:
                if finding.is_behind:
                    still_behind.append(finding)
                else:
                    self.audience.tell_of(finding)
        return still_behind

    def _can_send(self) -> bool:
        """Tell whether a statement of ours can be sent, and would not get in the way."""
        return not driver.is_closed(self.connection) and driver.transaction_status(
            self.connection
        ) in (driver.IDLE, driver.IN_TRANSACTION)

    @contextmanager
    def _contained(self, what: str) -> Iterator[None]:
        """Note a failure of ours and go on as ``migrate`` would."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the run goes on, with a note
            if isinstance(error, Error) and driver.is_closed(self.connection):
                return  # the statement itself will report that
            self.audience.note(f"{what}: {obstacle_of(error)}")

    # After a statement.

    def _learn(self, heads: Heads, count: int | None) -> None:
        """Remember what a statement has written, ``count`` rows, as far as its text says."""
        if heads.inserts or heads.updates:
            self._disturbed.learn(heads.inserts, heads.updates, count)
        if heads.may_alter:
            self._disturbed.forget_late()
            self._disturbed.alter(heads.altered)

    # After one that failed in autocommit.

    def _retry(
        self, failure: IntegrityError, send: Callable[[], Any], text: str, *, many: bool
    ) -> Any:
        refusal = why_not_retried(text, many=many, retries=self._retries)
        may_retry = partial(self._judge.may_retry, refusal=refusal, text=text)
        if not may_retry(failure):
            raise failure

        def send_again() -> Any:
            # If the text was misread and is several statements, they fail as a whole.
            with driver.transaction(self.connection):
                return send()

        retrying = Retrying(
            retry=retry_if_exception(may_retry),
            stop=stop_after_attempt(self._retries),
            reraise=True,
        )
        try:
            return retrying(send_again)
        except Exception as last:  # noqa: BLE001 - whatever it is, the first is the run's
            with self._contained("It was retried, and failed"):
                self.audience.explain(failure, f"It was retried, and failed: {one_line(str(last))}")
        raise failure

    # At the end of the run.

    def conclude(self, _kind: Any, leaving: BaseException | None, _trace: Any) -> None:
        """As ``__exit__``: explain the error that the run ends with, and resync what caused it."""
        if leaving:
            with self._contained("The failed constraint could not be checked"):
                self._judge.explain(leaving)
            self.audience.tell_why(leaving)
