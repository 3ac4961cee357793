"""Stand around each migration that ``migrate`` applies or takes back.

``pre_migrate`` is sent with the plan, and the Migration instances in it are those whose ``apply()``
or ``unapply()`` is called next. For the run each gets one of its own; no class or module of
Django's is patched. Where no installed app has a models module, the signal isn't sent.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from safemigrate.plans import receiving_plans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations import Migration
    from django.db.migrations.operations.base import Operation
    from django.db.migrations.state import ProjectState

NOT_THE_PROJECTS = {"django", "safemigrate", *sys.stdlib_module_names}


class Step(NamedTuple):
    """A migration that is to be applied now, or taken back: :meth:`run` does that."""

    migration: Migration
    is_backwards: bool
    state: ProjectState
    editor: BaseDatabaseSchemaEditor
    method: Callable[[ProjectState], ProjectState]

    @property
    def is_the_projects(self) -> bool:
        """Whether the migration has an ``apply()`` or ``unapply()`` of its own."""
        name = "unapply" if self.is_backwards else "apply"
        return _is_the_projects(getattr(type(self.migration), name))

    def run(self, state: ProjectState | None = None) -> ProjectState:
        return self.method(state or self.state)


@contextmanager
def around_migrations(
    connection: BaseDatabaseWrapper, around: Callable[[Step], ProjectState]
) -> Iterator[None]:
    """Call ``around`` in place of each migration of the connection's plans that isn't faked."""

    def replace(using: str, plan: Any) -> None:
        for migration, is_backwards in plan if using == connection.alias else ():
            name = "unapply" if is_backwards else "apply"
            method = _calling(around, migration, getattr(migration, name), is_backwards)
            stack.enter_context(_replaced(migration, name, method))

    with ExitStack() as stack, receiving_plans(replace):
        yield


def _calling(
    around: Callable[[Step], ProjectState],
    migration: Migration,
    method: Callable[..., ProjectState],
    is_backwards: bool,  # noqa: FBT001 - as the plan has it
) -> Callable[..., ProjectState]:
    # The arguments' names are Django's.
    def run(
        project_state: ProjectState,
        schema_editor: BaseDatabaseSchemaEditor,
        *args: Any,
        **kwargs: Any,
    ) -> ProjectState:
        def call(state: ProjectState) -> ProjectState:
            return method(state, schema_editor, *args, **kwargs)

        return around(Step(migration, is_backwards, project_state, schema_editor, call))

    return run


@contextmanager
def noting_python(operations: Iterable[Operation], note: Callable[[], None]) -> Iterator[None]:
    """Call ``note`` before each operation in which Python of the project's may run."""
    with ExitStack() as stack:
        for operation in _with_python(operations):
            for name in ("database_forwards", "database_backwards"):
                method = _after(note, getattr(operation, name))
                stack.enter_context(_replaced(operation, name, method))
        yield


def _with_python(operations: Iterable[Operation]) -> Iterator[Operation]:
    for operation in operations:
        yield from _with_python(getattr(operation, "database_operations", ()))
        code = [getattr(operation, name, None) for name in ("code", "reverse_code")]
        default = getattr(getattr(operation, "field", None), "default", None)
        if any(map(_is_the_projects, (type(operation), *code, default))):
            yield operation


def _is_the_projects(code: Any) -> bool:
    code = getattr(code, "func", code)  # behind a functools.partial
    return callable(code) and (code.__module__ or "").partition(".")[0] not in NOT_THE_PROJECTS


def _after(note: Callable[[], None], method: Callable[..., None]) -> Callable[..., None]:
    def run(*args: Any, **kwargs: Any) -> None:
        note()
        method(*args, **kwargs)

    return run


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let an instance have its own method for a while."""
    before = vars(owner).get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
