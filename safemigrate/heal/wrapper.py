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
from safemigrate.sequences.recheck import recheck
from safemigrate.sequences.scope import current_schemas
from safemigrate.sequences.sweep import sweep

from .collisions import Judge, why_not_retried
from .disturbed import Disturbed
from .statements import UNREAD, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        # The tenants swept since other runs may have written; those swept at all; whether one more
        # sweep may find what this one could not check; and whether there was a wait for others.
        self._swept: set[str] = set()
        self._swept_before: set[str] = set()
        self._may_sweep_again = self._has_waited = False
        # What the INSERT draws from and is still behind: told after it, for a failure is explained.
        self._still_behind: list[Finding] = []

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
        if heads.may_insert:
            self._prepare(heads)
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
            return self._retry(failure, send, text, many=many)
        is_counted = heads.is_counted and not many
        self._learn(heads, context["cursor"].rowcount if is_counted else None)
        return result

    # Before a statement.

    def _prepare(self, heads: Heads) -> None:
        self.sweep()
        self._still_behind.clear()
        for insert in heads.inserts:
            if self._disturbed.needs_recheck(insert, heads.leading):
                self._recheck(insert)

    def _schema(self) -> str:
        """Name the tenant that django-tenants, or a package like it, is migrating now."""
        return getattr(self.connection, "schema_name", None) or ""

    def sweep(self) -> None:
        """Check every sequence, once for each tenant, and resync those that are behind.

        A second time, what this run has given keys to is left alone, or after a wait, in which
        others may have written, only rechecked.
        """
        schema = self._schema()
        if schema in self._swept:
            return
        with self._contained("The sequences could not be checked"):
            self.connection.ensure_connection()
            if not self._can_send():
                return
            self._swept.add(schema)
            schemas = current_schemas(self.connection) if schema else None
            is_second = schema in self._swept_before
            self._swept_before.add(schema)
            for finding in sweep(
                self.connection,
                schemas=schemas,
                move=self._move,
                leaves_alone=self._disturbed.has_given if is_second else None,
            ):
                if self._move and finding.is_behind and not finding.obstacle:
                    if self._has_waited:
                        self._recheck_left_alone(finding)
                    continue
                self.audience.tell_of(finding, is_expected=self._move)
                self._may_sweep_again |= finding.status == "unknown"
                self._disturbed.mark(finding)

    def forget_sweep(self) -> None:
        """Have every sequence checked anew, because other runs have written meanwhile."""
        self._swept.clear()
        self._has_waited = True

    def sweep_again(self) -> None:
        """Sweep once more, if something could not be checked."""
        if self._may_sweep_again:
            self._swept.discard(self._schema())
            self.sweep()
            self._may_sweep_again = False

    def _recheck_left_alone(self, finding: Finding) -> None:
        for table in {key.quoted_table for key in finding.sequence.keys}:
            with self._contained(f"The table {table} could not be checked"):
                for each in recheck(self.connection, table, is_of_sweep=True).findings:
                    self.audience.tell_of(each)

    def _recheck(self, insert: Write) -> None:
        if not (self._move and self._can_send()):
            return
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
                    self._still_behind.append(finding)
                else:
                    self.audience.tell_of(finding)

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
            self.audience.note(f"{what}: {one_line(str(error))}")

    # After a statement.

    def _learn(self, heads: Heads, count: int | None) -> None:
        """Remember what a statement has written, ``count`` rows, as far as its text says."""
        while self._still_behind:
            self.audience.tell_of(self._still_behind.pop())
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
            self.audience.explain(failure, f"It was retried, and failed: {one_line(str(last))}")
        raise failure

    # At the end of the run.

    def conclude(self, _kind: Any, leaving: BaseException | None, _trace: Any) -> None:
        """As ``__exit__``: explain the error that the run ends with, and resync what caused it."""
        if leaving:
            with self._contained("The failed constraint could not be checked"):
                self._judge.explain(leaving)
            self.audience.tell_why(leaving)
