"""Operations for a project's own migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import router
from django.db.migrations import RunSQL
from django.db.migrations.operations.base import Operation

from safemigrate.heal.resync import resync
from safemigrate.printing import printable
from safemigrate.sequences.finding import sql_lines
from safemigrate.sequences.scope import feeds_of
from safemigrate.sequences.sweep import survey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState
    from django.db.models import Model


class ResyncSequences(Operation):
    """Resync what feeds some models or tables, after a migration has copied rows with their keys.

    ``names`` are models, of the migration's app or as ``app_label.Model``, and tables; without any
    it is every table of the current schemas, and those of models that name another schema.
    Reversing does nothing. ``sqlmigrate`` prints what it would do on the database as it is now.
    """

    category = getattr(RunSQL, "category", None)  # from Django 5.1 on

    # Not *names: Django's writer of migrations gives each argument by its name.
    def __init__(self, names: str | Iterable[str] = (), elidable: bool = False) -> None:  # noqa: FBT001
        self.names = [names] if isinstance(names, str) else list(names)
        self.elidable = elidable  # type: ignore[misc]

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        kwargs: dict[str, Any] = {"names": self.names} if self.names else {}
        if self.elidable:
            kwargs["elidable"] = True
        return self.__class__.__qualname__, [], kwargs

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        pass

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        connection = schema_editor.connection
        if connection.vendor != "postgresql" or not router.allow_migrate(
            connection.alias, app_label
        ):
            return
        what = [_named(name, app_label, to_state) for name in self.names]
        if schema_editor.collect_sql:
            schema_editor.collected_sql.extend(_sql(connection, what))
        else:
            resync(*what, using=connection.alias)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        pass

    def describe(self) -> str:
        names = printable(", ".join(self.names))
        return f"Resync the sequences of {names or 'all tables'}"


def _named(name: str, app_label: str, state: ProjectState) -> type[Model] | str:
    """Return the model that ``name`` is in the migration's state, or else the table."""
    label, _, model = name.rpartition(".")
    key = (label or app_label, model.lower())
    return state.apps.get_model(*key) if key in state.models else name


def _sql(connection: BaseDatabaseWrapper, what: list[type[Model] | str]) -> Iterator[str]:
    try:
        feeds = feeds_of(connection, what)
    except LookupError as error:
        yield f"-- {error.args[0]} What is behind can be told only when there is."
        return
    for finding in survey(connection, feeds):
        yield from sql_lines(finding)
