"""A ``migrate`` for PostgreSQL that fixes sequences behind their tables, and carries on."""

from safemigrate.heal.block import Note, Report, Resync, healing
from safemigrate.heal.resync import resync
from safemigrate.sequences.state import Finding

__all__ = ["Finding", "Note", "Report", "Resync", "healing", "resync"]
__version__ = "1.0.0"
