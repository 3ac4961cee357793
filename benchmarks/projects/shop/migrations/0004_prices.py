from __future__ import annotations

from django.db import migrations

from shop.filling import price


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("shop", "0003_price")]
    operations = [migrations.RunPython(price, migrations.RunPython.noop)]
