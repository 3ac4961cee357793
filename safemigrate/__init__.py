"""Migrate although a PostgreSQL sequence has fallen behind its table."""

from .healing import Note, Report, Resync, healing

__all__ = ["Note", "Report", "Resync", "healing"]
__version__ = "1.0.0"
