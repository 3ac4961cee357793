from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def put_the_garden_on_sale(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    Product = apps.get_model("shop", "Product")
    on_sale = apps.get_model("shop", "Tag").objects.get(name="on sale")
    on_sale.products.add(*Product.objects.filter(category__name="Garden"))


class Migration(migrations.Migration):
    dependencies = [("shop", "0003_order_orderline")]

    operations = [migrations.RunPython(put_the_garden_on_sale, migrations.RunPython.noop)]
