from __future__ import annotations

from typing import Any

from django.db import migrations, models

from tests.project import Law, Project, run_python


def shop() -> list[migrations.operations.base.Operation]:
    return [
        migrations.CreateModel(
            "Tag", [("id", models.AutoField(primary_key=True)), ("name", models.TextField())]
        ),
        migrations.CreateModel(
            "Product",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.TextField()),
                ("main", models.ForeignKey("app.Tag", models.CASCADE, null=True, related_name="+")),
                ("tags", models.ManyToManyField("app.Tag")),
            ],
        ),
    ]


def test_three(project: Project, law: Law) -> None:
    project.migration(migrations.RunSQL("SELECT 1"))
    project.migrate()
    project.migration(*shop())

    def fill(apps: Any, editor: Any) -> None:
        Tag, Product = apps.get_model("app", "Tag"), apps.get_model("app", "Product")
        for i in range(3):
            tag = Tag.objects.create(name=str(i))
            product = Product.objects.create(name=str(i), main=tag)
            product.tags.add(tag)

    project.migration(run_python(fill))
    outcome = law.holds()

    assert outcome.notices
    assert outcome.error is None
