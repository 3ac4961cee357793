"""Signals that a project can listen to."""

from __future__ import annotations

from django.dispatch import Signal

# Sent once a sequence has been moved, in the middle of the run and perhaps of a transaction, with
# ``sender`` the class Resync, ``using`` the alias, and ``record`` the Resync. What a receiver
# raises is logged by Django and stops nothing.
sequence_resynced = Signal()

# Sent once a statement has given up a lock, before it or its migration is retried, with ``sender``
# the class LockWait, ``using`` the alias, and ``record`` the LockWait.
lock_waited = Signal()
