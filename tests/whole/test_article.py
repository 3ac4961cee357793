"""The three tables that everybody meets, and the two ways of losing that nobody sees."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, ProgrammingError, migrations, models

from tests.support.databases import behind, execute, put_behind, set_right, value
from tests.support.models import create, shop
from tests.support.project import Law, Project, run_python

if TYPE_CHECKING:
    from collections.abc import Iterable

THREE = ("django_migrations", "django_content_type", "auth_permission")


@pytest.mark.parametrize("with_foreign_key", [False, True])
@pytest.mark.parametrize("tables", [each for n in (1, 2, 3) for each in combinations(THREE, n)])
def test_the_three_tables_alone_and_together(
    project: Project, law: Law, tables: Iterable[str], with_foreign_key: bool
) -> None:
    project.migrate()
    project.migration(*(shop() if with_foreign_key else [create("Tag")]))

    outcome = law.holds(put_back=tables)

    assert outcome.error is None
    assert len([line for line in outcome.notices if "Resynced" in line]) == len(list(tables))
    assert outcome.signals
    assert behind() == []
    assert value("SELECT count(*) FROM django_migrations WHERE app = 'app'") == 1


@pytest.mark.parametrize("with_foreign_key", [False, True])
def test_a_sequence_in_the_middle_of_keys_with_holes(
    project: Project, law: Law, with_foreign_key: bool
) -> None:
    """Ids 1 to 17 and 23 to 25, the sequence at 22: the keys are the healthy twin's."""
    project.migrate()
    execute("DELETE FROM django_migrations WHERE id > 17")
    execute(
        "INSERT INTO django_migrations (id, app, name, applied)"
        " SELECT n, 'gone', 'gone_' || n, now() FROM generate_series(23, 25) AS n"
    )
    project.migration(*(shop() if with_foreign_key else [create("Tag")]))

    outcome = law.holds("app", put_back=["django_migrations"], to=23)

    assert (26, "app", "0001_step") in outcome.tables["public.django_migrations"]


def test_plain_migrate_dies_of_the_error_in_every_search_box(project: Project) -> None:
    project.migrate()
    put_behind("django_migrations")
    project.migration(create("Tag"))
    with pytest.raises(IntegrityError, match='unique constraint "django_migrations_pkey"'):
        project.migrate()


def test_running_plain_migrate_again_after_a_resync_is_worse(project: Project) -> None:
    """Why the statement is repeated, and not the command: the tables stay, unrecorded."""
    project.migrate()
    put_behind("django_migrations")
    project.migration(*shop())
    with pytest.raises(IntegrityError):
        project.migrate()
    set_right()
    with pytest.raises(ProgrammingError, match="already exists"):
        project.migrate()


def fill_shop(apps: Any, editor: Any) -> None:
    tag = apps.get_model("app", "Tag").objects.create(name="new")
    product = apps.get_model("app", "Product").objects.create(name="new", main=tag)
    product.tags.add(tag, *apps.get_model("app", "Tag").objects.filter(name="old"))


def test_no_many_to_many_row_is_lost_in_silence(project: Project, law: Law) -> None:
    project.migration(*shop())
    project.migrate()
    execute("INSERT INTO app_tag (name) SELECT 'old' FROM generate_series(1, 3)")
    execute("INSERT INTO app_product (name) VALUES ('old')")
    execute("INSERT INTO app_product_tags (product_id, tag_id) VALUES (1, 1), (1, 2), (1, 3)")
    project.migration(run_python(fill_shop))

    outcome = law.holds()

    assert len(outcome.tables["public.app_product_tags"]) == 7


def test_plain_migrate_loses_the_many_to_many_rows(project: Project) -> None:
    """The silent half: no error, and rows that are not there."""
    project.migration(*shop())
    project.migrate()
    execute("INSERT INTO app_tag (name) SELECT 'old' FROM generate_series(1, 3)")
    execute("INSERT INTO app_product (name) VALUES ('old')")
    execute("INSERT INTO app_product_tags (product_id, tag_id) VALUES (1, 1), (1, 2), (1, 3)")
    put_behind("app_product_tags")
    project.migration(run_python(fill_shop))
    project.migrate()
    assert value("SELECT count(*) FROM app_product_tags") == 4


def test_group_permissions_survive(project: Project, law: Law) -> None:
    def grant(apps: Any, editor: Any) -> None:
        group = apps.get_model("auth", "Group").objects.create(name="editors")
        group.permissions.add(*apps.get_model("auth", "Permission").objects.all()[:5])

    project.migrate()
    execute("INSERT INTO auth_group (name) VALUES ('old')")
    execute(
        "INSERT INTO auth_group_permissions (group_id, permission_id)"
        " SELECT 1, id FROM auth_permission"
    )
    project.migration(
        run_python(grant), dependencies=[("auth", "0012_alter_user_first_name_max_length")]
    )
    outcome = law.holds()
    permissions = len(outcome.tables["public.auth_permission"])
    assert len(outcome.tables["public.auth_group_permissions"]) == permissions + 5


def test_nothing_is_behind_and_nothing_is_said(project: Project, law: Law) -> None:
    project.migration(*shop(), run_python(fill_shop))
    outcome = law.holds(to=1)
    assert outcome.error is None
    assert outcome.notices == []


@pytest.mark.parametrize("atomic", [True, False])
def test_a_column_with_a_key_is_added_in_the_run(project: Project, law: Law, atomic: bool) -> None:
    project.migration(create("Tag"))
    project.migrate()
    execute("INSERT INTO app_tag (name) SELECT 'old' FROM generate_series(1, 3)")
    project.migration(
        migrations.AddField("Tag", "rank", models.IntegerField(default=0)),
        run_python(lambda apps, editor: apps.get_model("app", "Tag").objects.create(rank=5)),
        migrations.RenameModel("Tag", "Label"),
        run_python(lambda apps, editor: apps.get_model("app", "Label").objects.create(rank=6)),
        atomic=atomic,
    )
    outcome = law.holds()
    assert [row[0] for row in outcome.tables["public.app_label"]] == [1, 2, 3, 4, 5]
