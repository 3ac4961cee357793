"""A project's own ``migrate``, as many have one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.commands import migrate

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(migrate.Command):
    stealth_options = ("whispered",)

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--greeting", default="Hello")
        parser.add_argument("--executor", help="As that of django-tenants.")
        # Of the same name as one of ours, and of another meaning.
        parser.add_argument("--no-lock", action="store_true", help="Open the door.")

    def handle(self, *args: Any, **options: Any) -> None:
        door = "open" if options["no_lock"] else "closed"
        whispered = options.get("whispered", "")
        self.stdout.write(f"{options['greeting']}, the door is {door}.{whispered}")
        super().handle(*args, **options)
