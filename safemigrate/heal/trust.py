"""What is known of a connection's tables, and until when it may be relied upon.

A table whose sequence was looked at is *trusted*: its INSERTs run as they are. The trust ends with
DDL, with a statement that gives the key itself, with a rollback past the look, and with whatever
can't be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safemigrate.sequences.state import IDLE, IN_TRANSACTION, transaction_status

from .statements import CACHED_LENGTH, Insert, bare_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from safemigrate.sequences.catalogue import Sequence, Table

    from .statements import Change, Creation, Statement

# So many texts of a run are known to be routine at a time.
ROUTINES = 1_000


class Trust:
    """The tables of one connection, by the names that statements call them."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self._driver: Any = None
        self._tables: dict[str, Table] = {}
        self._trusted: set[str] = set()
        # Tables that this run has created: empty, and not known otherwise as long as they are
        # numbered by their sequences alone.
        self._newborn: dict[str, Creation] = {}
        # Texts that, as things are known, need no look and no guard, and teach nothing.
        self._routine: set[str] = set()
        # What the current transaction has redefined, and whether it may have changed anything.
        self._redefined: frozenset[str] = frozenset()
        self._is_unsure = False
        self._is_watched = False
        self._is_committed = False

    def __iter__(self) -> Iterator[Table]:
        return iter(self._tables.values())

    def _key(self, name: str) -> str:
        # django-tenants sets the search_path beneath the wrappers, one schema after another.
        return f"{getattr(self.connection, 'schema_name', '')} {name}"

    def get(self, name: str) -> Table | None:
        return self._tables.get(self._key(name))

    def lets_pass(self, sql: Any) -> bool:
        """Tell, at the cost of a microsecond, whether ``sql`` is known to be mere routine."""
        driver = self.connection.connection
        return (
            isinstance(sql, str)
            and self._key(sql) in self._routine
            and driver is self._driver
            and driver.info.transaction_status == IN_TRANSACTION
        )

    def let_pass(self, sql: Any, statement: Statement) -> None:
        """From now on let ``sql`` pass, if it is routine."""
        if isinstance(sql, str) and len(sql) <= CACHED_LENGTH and self._is_routine(statement):
            if len(self._routine) > ROUTINES:
                self._routine.clear()
            self._routine.add(self._key(sql))

    def _is_routine(self, statement: Statement) -> bool:
        return not (
            statement.ends_trust
            or statement.redefines
            or statement.may_write_elsewhere
            or statement.controls_transaction
            or any(self.needs_look(target) for target in statement.targets)
            or any(self.may_write_elsewhere(target.table) for target in statement.targets)
            or any(self._names_key(insert) for insert in statement.inserts)
            or any(self._sets_key(change) for change in statement.changes)
        )

    def _names_key(self, insert: Insert) -> bool:
        table = self.get(insert.table)
        fed = table.fed if table else ()
        return table is not None and any(insert.names(each, table.columns) for each in fed)

    def _sets_key(self, change: Change) -> bool:
        fed = {column for table in self._tables.values() for column in table.fed}
        fed.update(column for newborn in self._newborn.values() for column in newborn.fed)
        return not fed.isdisjoint(change.columns)

    def remember(self, name: str, table: Table) -> None:
        self._routine.clear()
        self._tables[self._key(name)] = table

    def rely_on(self, name: str) -> None:
        self._trusted.add(self._key(name))

    def needs_look(self, target: Insert | Change) -> bool:
        """Tell whether it draws from, or takes keys of, a sequence that wasn't looked at yet."""
        key = self._key(target.table)
        if newborn := self._newborn.get(key):
            return isinstance(target, Insert) and newborn.is_named_by(target)
        table = self._tables.get(key)
        return table is None or (
            key not in self._trusted
            and any(target.calls_for_look(column, table.columns) for column in table.fed)
        )

    def may_write_elsewhere(self, name: str) -> bool:
        """Tell whether a write to a table that is known may insert into another."""
        if self._key(name) in self._newborn:
            return False
        table = self.get(name)
        return table is None or table.has_triggers or table.is_view

    def catch_up(self) -> bool:
        """Forget what may not hold any more; tell whether no transaction is open."""
        if self.connection.connection is not self._driver:
            self._driver = self.connection.connection
            self.forget_all()
        if transaction_status(self.connection) != IDLE:
            return False
        if not self._is_committed:
            if self._is_unsure:
                self.forget_all()
            self._forget(self._redefined)
        self._is_unsure = self._is_committed = self._is_watched = False
        self._redefined = frozenset()
        return True

    def _watch(self) -> None:
        """Have Django say whether the transaction that changes definitions is committed."""
        if self.connection.in_atomic_block and not self._is_watched:
            self._is_watched = True
            self.connection.on_commit(self._commit)

    def _commit(self) -> None:
        self._is_committed = True

    def forget_all(self) -> None:
        self._routine.clear()
        self._tables.clear()
        self._trusted.clear()
        self._newborn.clear()

    def _forget(self, names: frozenset[str]) -> None:
        if names:
            self._routine.clear()
            for key in [key for key in self._tables if bare_name(key) in names]:
                del self._tables[key]
                self._trusted.discard(key)
            for key in [key for key in self._newborn if bare_name(key) in names]:
                del self._newborn[key]

    def learn(self, statement: Statement, *, is_done: bool) -> None:
        """Take from a statement that was sent what it means for the tables that are trusted."""
        if statement.ends_trust:
            self.forget_all()
        survivors = self._surviving(statement)
        self._forget(statement.redefines)
        self._newborn.update(survivors)
        if statement.ends_trust or statement.redefines:
            self._is_unsure |= statement.ends_trust
            self._redefined |= statement.redefines
            self._watch()
        self._learn_of_keys(statement)
        if is_done and statement.creates:
            self._routine.clear()
            self._newborn[self._key(statement.creates.table)] = statement.creates

    def _surviving(self, statement: Statement) -> dict[str, Creation]:
        """Return the newborn tables that an ALTER TABLE leaves as numbered as they were."""
        if statement.alters is None:
            return {}
        return {
            key: altered
            for key, newborn in self._newborn.items()
            if bare_name(key) in statement.redefines
            and (altered := newborn.altered(statement.alters))
        }

    def _learn_of_keys(self, statement: Statement) -> None:
        for key, newborn in list(self._newborn.items()):
            if any(
                bare_name(insert.table) == bare_name(key) and newborn.is_named_by(insert)
                for insert in statement.inserts
            ) or any(newborn.fed.intersection(change.columns) for change in statement.changes):
                del self._newborn[key]
                self._routine.clear()
        for insert in statement.inserts:
            if table := self.get(insert.table):
                self._distrust(
                    sequence
                    for column, sequence in table.fed.items()
                    if insert.names(column, table.columns)
                )
        for change in statement.changes:
            # By the column's name alone: the table may be known by another spelling, or a view.
            self._distrust(
                table.fed[name]
                for table in list(self._tables.values())
                for name in table.fed.keys() & change.columns
            )

    def _distrust(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._routine.clear()
            self._trusted -= {
                key
                for key in self._trusted
                if any(each.oid == sequence.oid for each in self._tables[key].sequences)
            }
