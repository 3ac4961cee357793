"""An app to list in INSTALLED_APPS, above any that brings a ``migrate`` of its own.

With it, ``manage.py migrate``, ``call_command("migrate")`` and the creation of test databases run
``safemigrate``, around whichever ``migrate`` would have run without it.
"""
