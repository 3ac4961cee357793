"""Django's PostgreSQL, on a server that starts with the first connection and not before."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.backends.postgresql import base, client

from mysite.database import embedded_server


class DatabaseClient(client.DatabaseClient):
    def runshell(self, parameters: Any) -> None:
        self.connection.ensure_connection()
        super().runshell(parameters)


class DatabaseWrapper(base.DatabaseWrapper):
    client_class = DatabaseClient

    def get_connection_params(self) -> dict[str, Any]:
        # The data lie inside the project (gitignored): they survive from command to command, are
        # not shared between checkouts, and are gone when the checkout is.
        self.settings_dict.update(embedded_server(settings.BASE_DIR / ".postgres"))
        return super().get_connection_params()
