"""The types of the commands' options."""

from __future__ import annotations

from argparse import ArgumentTypeError


def whole_number(value: object) -> int:
    """Convert an option's value to an int that is 0 or more; raises ArgumentTypeError."""
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0:
        raise ArgumentTypeError(f"{value!r} is not a whole number, 0 or more")
    return number


def seconds(value: object) -> float:
    """Convert an option's value to a number of seconds; raises ArgumentTypeError."""
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < 1_000_000:
        raise ArgumentTypeError(f"{value!r} is not a number of seconds above 0, below 1000000")
    return number
