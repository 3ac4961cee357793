from __future__ import annotations

from django.db import migrations, models

from shop.filling import fill

KEY = ("id", models.BigAutoField(primary_key=True))


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Tag", [KEY, ("name", models.TextField())]),
        migrations.CreateModel(
            "Product",
            [
                KEY,
                ("name", models.TextField()),
                (
                    "main",
                    models.ForeignKey("shop.Tag", models.CASCADE, null=True, related_name="+"),
                ),
                ("tags", models.ManyToManyField("shop.Tag")),
            ],
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
    ]
