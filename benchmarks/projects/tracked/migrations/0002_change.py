from __future__ import annotations

from typing import Any

from django.db import migrations


def change(apps: Any, editor: Any) -> None:
    things = apps.get_model("tracked", "Thing").objects
    things.create(name="created")
    things.bulk_create([things.model(name="bulk"), things.model(name="more")])
    things.filter(name="first").update(name="changed")
    things.filter(name="second").delete()


def change_first(apps: Any, editor: Any) -> None:
    apps.get_model("tracked", "Thing").objects.filter(name="third").update(name="changed too")


class Migration(migrations.Migration):
    dependencies = [("tracked", "0001_initial")]
    operations = [
        migrations.RunPython(change_first, migrations.RunPython.noop),
        migrations.RunPython(change, migrations.RunPython.noop),
    ]
