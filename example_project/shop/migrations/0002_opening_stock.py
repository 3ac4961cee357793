from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor

STOCK = {
    "Garden": [
        "Bird bath",
        "Deck chair",
        "Hose",
        "Lantern",
        "Rake",
        "Sundial",
        "Trowel",
        "Wheelbarrow",
    ],
    "Kitchen": ["Cast-iron pan", "Kettle", "Mandoline", "Mortar"],
}


def fill_the_shelves(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    Category = apps.get_model("shop", "Category")
    Product = apps.get_model("shop", "Product")
    Tag = apps.get_model("shop", "Tag")
    new = Tag.objects.create(name="new")
    Tag.objects.create(name="on sale")
    for category_name, product_names in STOCK.items():
        category = Category.objects.create(name=category_name)
        for name in product_names:
            Product.objects.create(category=category, name=name, price="19.90").tags.add(new)


class Migration(migrations.Migration):
    dependencies = [("shop", "0001_initial")]

    operations = [migrations.RunPython(fill_the_shelves, migrations.RunPython.noop)]
