"""A ``migrate`` for PostgreSQL that fixes sequences behind their tables, and carries on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safemigrate.heal.block import healing
    from safemigrate.heal.resync import resync
    from safemigrate.report import LockWait, Note, Report, Resync
    from safemigrate.sequences.finding import Finding

__all__ = ["Finding", "LockWait", "Note", "Report", "Resync", "healing", "resync"]
__version__ = "1.0.0"

_HOMES = {
    "Finding": "sequences.finding",
    "LockWait": "report",
    "Note": "report",
    "Report": "report",
    "Resync": "report",
    "healing": "heal.block",
    "resync": "heal.resync",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is used: every process of a project imports its apps, and few migrate.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
