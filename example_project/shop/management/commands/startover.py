from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection

from shop.ours import only_ours, where


class Command(BaseCommand):
    help = "Drops the tables of the example's own database, so that you can start over."

    def handle(self, *args: Any, **options: Any) -> None:
        only_ours(connection, hint="Drop what is in it yourself.")
        with connection.cursor() as cursor:
            for table in connection.introspection.table_names(cursor):
                name = connection.ops.quote_name(table)
                cursor.execute(f"DROP TABLE IF EXISTS {name} CASCADE")
        self.stdout.write(f"{where(connection)} is empty again.")
