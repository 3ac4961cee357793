from __future__ import annotations

from django.db import migrations

from shop.filling import fill


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
