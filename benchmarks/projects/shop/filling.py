"""What the data migrations do: a row of each table, and a relation in each way there is."""

from __future__ import annotations

from typing import Any


def fill(apps: Any, editor: Any) -> None:
    tags, products = (
        apps.get_model("shop", "Tag").objects,
        apps.get_model("shop", "Product").objects,
    )
    tag = tags.create(name="created")
    tags.bulk_create([tags.model(name="bulk"), tags.model(name="more")], ignore_conflicts=True)
    found, _ = tags.get_or_create(name="got")
    product = products.create(name="created", main=tag)
    product.tags.add(tag, found)
    product.tags.set([tag])


def price(apps: Any, editor: Any) -> None:
    prices, products = apps.get_model("shop", "Price").objects, apps.get_model("shop", "Product")
    for product in products.objects.order_by("pk"):
        prices.create(product=product)
    fill(apps, editor)
