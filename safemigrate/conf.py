"""The settings, each read when it is needed, so that ``override_settings`` just works."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


def max_retries() -> int:
    """``SAFEMIGRATE_MAX_RETRIES``: how often a statement that failed is retried (3)."""
    return _whole_number("SAFEMIGRATE_MAX_RETRIES", 3)


def heal() -> bool:
    """``SAFEMIGRATE_HEAL``: whether sequences are moved (True), or what is behind only noted."""
    return _flag("SAFEMIGRATE_HEAL")


def lock() -> bool:
    """``SAFEMIGRATE_LOCK``: whether a run takes the migration lock (True)."""
    return _flag("SAFEMIGRATE_LOCK")


def lock_wait() -> int:
    """``SAFEMIGRATE_LOCK_WAIT``: how many seconds to wait for the migration lock (600)."""
    return _whole_number("SAFEMIGRATE_LOCK_WAIT", 600)


def wait_for_database() -> int:
    """``SAFEMIGRATE_WAIT_FOR_DATABASE``: how many seconds to wait for a database to be up (0)."""
    return _whole_number("SAFEMIGRATE_WAIT_FOR_DATABASE", 0)


def lock_timeout() -> float | None:
    """``SAFEMIGRATE_LOCK_TIMEOUT``: seconds to wait for a lock before a retry (None: no limit)."""
    value = getattr(settings, "SAFEMIGRATE_LOCK_TIMEOUT", None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1_000_000:
        raise ImproperlyConfigured(
            "SAFEMIGRATE_LOCK_TIMEOUT must be None or a number above 0 and below 1000000, "
            f"not {value!r}."
        )
    return float(value)


def lock_patience() -> int:
    """``SAFEMIGRATE_LOCK_PATIENCE``: how many seconds to go on retrying for a lock (300)."""
    return _whole_number("SAFEMIGRATE_LOCK_PATIENCE", 300)


# What a system check calls, so that a wrong setting is found before a deploy.
READERS = (
    max_retries,
    heal,
    lock,
    lock_wait,
    wait_for_database,
    lock_timeout,
    lock_patience,
)


def _whole_number(name: str, default: int) -> int:
    value = getattr(settings, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ImproperlyConfigured(f"{name} must be a whole number, 0 or more, not {value!r}.")
    return value


def _flag(name: str) -> bool:
    value = getattr(settings, name, True)
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"{name} must be True or False, not {value!r}.")
    return value
