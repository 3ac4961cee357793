"""A ``migrate`` for PostgreSQL that fixes sequences behind their tables, and carries on."""

from safemigrate.heal.block import Note, Report, Resync, healing

__all__ = ["Note", "Report", "Resync", "healing"]
__version__ = "1.0.0"
