from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "0002_fill")]
    operations = [
        migrations.CreateModel(
            "Price",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("product", models.ForeignKey("shop.Product", models.CASCADE)),
            ],
        ),
        migrations.AddField("Price", "amount", models.IntegerField(null=True)),
    ]
