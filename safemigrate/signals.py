"""Signals that a project can listen to."""

from django.dispatch import Signal

sequence_resynced = Signal()
"""Sent once a sequence has been moved, in the middle of the run and perhaps of a transaction.

``sender`` is the class ``Resync``, ``using`` the alias, and ``record`` the ``Resync``. What a
receiver raises is logged by Django, and stops nothing.
"""

lock_waited = Signal()
"""Sent once a statement has given up a lock, before it or its migration is retried.

``sender`` is the class LockWait, ``using`` the alias, and ``record`` the LockWait.
"""
