"""Migrate although a PostgreSQL sequence has fallen behind its table."""

from safemigrate.heal.block import Note, Report, Resync, healing

__all__ = ["Note", "Report", "Resync", "healing"]
__version__ = "1.0.0"
