"""A ``migrate`` for PostgreSQL that fixes sequences behind their tables, and carries on."""

from safemigrate.heal.block import healing
from safemigrate.heal.resync import resync
from safemigrate.report import Note, Report, Resync
from safemigrate.sequences.state import Finding

__all__ = ["Finding", "Note", "Report", "Resync", "healing", "resync"]
__version__ = "1.0.0"
