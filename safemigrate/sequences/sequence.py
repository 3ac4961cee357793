"""What a sequence is to us: its bounds, the keys that it feeds, what stands in the way."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

INTEGERS = {"smallint": 2**15 - 1, "integer": 2**31 - 1, "bigint": 2**63 - 1, "oid": 2**32 - 1}


class Hinders(IntEnum):
    """What an obstacle prevents; each of these prevents the later ones, too."""

    JUDGING = 1  # the sequence's values can't be compared with the column's
    CHECKING = 2
    MOVING = 3


class Obstacle(NamedTuple):
    """Why a sequence is left alone, and what an operator can do about it.

    ``is_final`` means that no setval() would help.
    """

    reason: str
    advice: str = ""
    can_force: bool = False
    is_final: bool = False
    hinders: Hinders = Hinders.JUDGING

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


class Key(NamedTuple):
    """A column that a sequence feeds, and how far the catalogue says that it is unique.

    An heir has no unique index itself, but inherits from a table that has one. ``has_companions``
    tells that no index makes it unique alone, so its values may repeat on purpose.
    """

    relation: int
    attribute: int
    schema: str
    table: str
    column: str
    type: str
    quoted_table: str
    quoted_column: str
    is_partitioned: bool
    is_indexed: bool
    is_heir: bool
    has_companions: bool
    is_unique: bool

    @property
    def cast(self) -> str:
        """A cast to a type that can in turn be cast to numeric."""
        return "::pg_catalog.int8" if self.type == "oid" else ""

    @property
    def place(self) -> Place:
        return Place(self.relation, self.attribute)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}.{self.column}"


class Place(NamedTuple):
    """Where in the catalogue a column is."""

    relation: int
    attribute: int


class Sequence(NamedTuple):
    """A sequence, its bounds, all the keys that it feeds, and the worst obstacles first."""

    oid: int
    schema: str
    name: str
    quoted: str
    increment: int
    minimum: int
    maximum: int
    cache: int
    is_readable: bool
    is_settable: bool
    keys: tuple[Key, ...]
    obstacles: tuple[Obstacle, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def obstacle(self) -> Obstacle | None:
        return self.obstacles[0] if self.obstacles else None

    @property
    def sign(self) -> int:
        """1 where it counts upward, -1 where downward."""
        return 1 if self.increment > 0 else -1

    @property
    def aggregate(self) -> str:
        """The SQL function that finds the key farthest in its direction."""
        return "max" if self.increment > 0 else "min"

    @property
    def last(self) -> int:
        """The last value in its direction that it can give to every column it feeds."""
        return self.highest if self.increment > 0 else self.lowest

    @property
    def lowest(self) -> int:
        """The least value that the sequence can give to every column it feeds."""
        return max(self.minimum, *(-INTEGERS.get(key.type, 2**63) - 1 for key in self.keys))

    @property
    def highest(self) -> int:
        """The greatest value that the sequence can give to every column it feeds."""
        return min(self.maximum, *(INTEGERS.get(key.type, 2**63 - 1) for key in self.keys))

    def forced(self) -> Sequence:
        """Return the sequence without the obstacles that a person may overrule."""
        return self._replace(obstacles=tuple(each for each in self.obstacles if not each.can_force))
