"""Operations that many tests' migrations are made of."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models


def create(name: str, *fields: tuple[str, models.Field[Any, Any]], **options: Any) -> Any:
    """Create a model with a BigAutoField, a ``name`` and ``fields``."""
    return migrations.CreateModel(
        name,
        [
            ("id", models.BigAutoField(primary_key=True)),
            ("name", models.TextField(null=True)),
            *fields,
        ],
        **options,
    )


def shop() -> list[Any]:
    """Tags, and products that have some: a foreign key (deferred SQL) and a many-to-many."""
    return [
        create("Tag"),
        create(
            "Product",
            ("main", models.ForeignKey("app.Tag", models.CASCADE, null=True, related_name="+")),
            ("tags", models.ManyToManyField("app.Tag")),
        ),
    ]
