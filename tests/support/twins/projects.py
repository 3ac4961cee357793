"""Write small Django projects: every draw of the strategy is a line of somebody's migration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hypothesis import strategies as st

from tests.support.twins.texts import (
    BODIES,
    DRAWN,
    FORMS,
    IGNORING,
    KEY_CASE,
    KEY_CHANGE,
    MIGRATION,
    NAMES_KEYS,
    PARTS,
    RAW,
    SCRIPTS,
    TARGETS,
    WITHOUT_TARGET,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

APPS = ("one", "two", "three")
KEYS = {"AutoField": "integer", "BigAutoField": "bigint", "SmallAutoField": "smallint"}
# How far Django's own apps are migrated before anything else.
CONTRIB = ("all", "some", "none")
# Keys of the rows that are there before, and where a sequence is put that feeds them.
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1, 2, 3),
    (1, 2),
    (1, 2, 3, 4, 5, 9, 14),
    (4,),
    (1, 2, 70),
)
EVENTS = ("INSERT", "INSERT", "INSERT", "UPDATE", "DELETE")
PLACES = ("right", "one", "one", "one", "middle", "last", "ahead")

T = TypeVar("T")


@dataclass
class Model:
    """A model as it is at the point that the author has reached."""

    app: str
    name: str
    db_table: str | None
    key: str
    pk: str = "id"
    is_unique: bool = False
    is_referenced: bool = False
    is_written_to: bool = False
    many: list[tuple[str, Model]] = field(default_factory=list)
    single: list[tuple[str, Model]] = field(default_factory=list)
    # The models that a trigger or rule on this one writes to.
    logs: list[Model] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    # What an INSERT may name in the table's stead: a view, a partition, an heir.
    views: list[str] = field(default_factory=list)
    # Of RAW: how a table is made that has no model.
    raw: str | None = None
    has_shadow: bool = False
    last: tuple[str, str] | None = None

    @property
    def table(self) -> str:
        return quoted(self.db_table or f"{self.app}_{self.name.lower()}")

    @property
    def label(self) -> str:
        return f"{self.app}.{self.name}"

    @property
    def target(self) -> str | None:
        """Return what ON CONFLICT names."""
        if self.raw in WITHOUT_TARGET:
            return None
        return TARGETS.get(self.raw or "", quoted(self.pk))


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass
class Step:
    """One migration, as text."""

    app: str
    name: str
    atomic: bool = True
    dependencies: list[tuple[str, str]] = field(default_factory=list)
    replaces: list[tuple[str, str]] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    def source(self) -> str:
        return MIGRATION.format(
            code="".join(f"{each}\n\n" for each in self.code),
            atomic=self.atomic,
            replaces=self.replaces,
            dependencies=self.dependencies,
            operations="".join(f"        {each},\n" for each in self.operations),
        )


@dataclass
class Project:
    """Migrations, those of them that are applied, and the state of the database they meet."""

    steps: list[Step] = field(default_factory=list)
    squashed: list[Step] = field(default_factory=list)
    applied: int = 0
    contrib: str = "all"
    shapes: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    # A migration sets a sequence back, or starts it over.
    sets_back: bool = False
    # A migration writes keys of its own choice, and so puts sequences behind by itself.
    names_keys: bool = False
    # What the project is made of, to be counted.
    features: set[str] = field(default_factory=set)

    @property
    def harms_itself(self) -> bool:
        """Tell whether migrations put sequences behind on every database."""
        return self.names_keys or self.sets_back

    @property
    def ignores_conflicts(self) -> bool:
        """Tell whether a collision may be silent, or overwrite a row."""
        source = repr(self)
        return any(each in source for each in IGNORING)

    def __repr__(self) -> str:
        files = "".join(
            f"\n# --- {step.app}/migrations/{step.name}.py\n{step.source()}"
            for step in [*self.steps, *self.squashed]
        )
        return (
            f"Project(contrib={self.contrib!r}, shapes={self.shapes}, places={self.places}, "
            f"applied={[(step.app, step.name) for step in self.steps[: self.applied]]})\n{files}"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@st.composite
def projects(draw: st.DrawFn) -> Project:
    """Draw a project of a few migrations over several apps."""
    return _Author(draw).project()


class _Author:
    """Writes a project, and knows at each point what there is to write about."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.result = Project()
        self.models: list[Model] = []
        self.numbers = itertools.count(1)
        self.latest: dict[str, str] = {}
        self.step = Step("", "")
        self.body: list[str] = []
        self.depth = 1
        # What names keys is compared with safemigrate alone, wherever migrate fails or loses rows.
        self.is_harmless = not self.chance(40)

    # Choices.

    def pick(self, choices: Sequence[T]) -> T:
        return self.draw(st.sampled_from(choices))

    def chance(self, percent: int) -> bool:
        # The simplest project is one without.
        return self.draw(st.integers(0, 99)) >= 100 - percent

    def count(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, most))

    def new(self, prefix: str) -> str:
        return f"{prefix}{next(self.numbers)}"

    def text(self) -> str:
        return repr(self.new("row "))

    def key(self) -> int:
        """Return a key that nobody else has named, past all that sequences have given."""
        return 200 * (2 + next(self.numbers) % 150)

    def model(self, fits: Callable[[Model], bool] = lambda _: True) -> Model | None:
        return self.table(lambda each: each.raw is None and fits(each))

    def table(self, fits: Callable[[Model], bool] = lambda _: True) -> Model | None:
        """Return a model, or a table that has none."""
        fitting = [each for each in self.models if fits(each)]
        return self.touch(self.pick(fitting)) if fitting else None

    def touch(self, model: Model) -> Model:
        """Let the current migration come after all others that know ``model``."""
        seen: list[Model] = []
        waiting = [model]
        while waiting:
            each = waiting.pop()
            if each in seen:
                continue
            seen.append(each)
            waiting += [*each.logs, *(m for _, m in each.many), *(m for _, m in each.single)]
            if each.last and each.last not in self.step.dependencies:
                self.step.dependencies.append(each.last)
            each.last = (self.step.app, self.step.name)
        return model

    # The project.

    def project(self) -> Project:
        result = self.result
        self.migration(self.history)
        for _ in range(self.count(1, 5)):
            self.migration(self.operations)
        # Mostly the tables and what hangs on them are there, and the data is still to come.
        result.applied = self.pick((1, 1, 1, 0, self.count(0, len(result.steps))))
        result.contrib = self.pick(CONTRIB)
        result.shapes = [self.count(0, len(SHAPES) - 1) for _ in range(7)]
        result.places = [self.pick(PLACES) for _ in range(7)]
        if self.chance(50):
            self.squash()
        return result

    def migration(self, write: Callable[[], None]) -> None:
        app = self.pick(APPS)
        number = int(self.latest.get(app, "0")[:4]) + 1
        self.step = Step(app, f"{number:04d}_step", atomic=not self.chance(30))
        if app in self.latest:
            self.step.dependencies.append((app, self.latest[app]))
        write()
        own = (app, self.step.name)
        self.step.dependencies = [each for each in self.step.dependencies if each != own]
        self.latest[app] = self.step.name
        self.result.steps.append(self.step)

    def squash(self) -> None:
        """Squash the beginning of an app, where that makes no circle."""
        app = self.pick(APPS)
        own = [step for step in self.result.steps if step.app == app]
        if len(own) < 2:
            return
        parts = own[: self.count(2, len(own))]
        names = [(app, step.name) for step in parts]
        outside = [
            each
            for step in parts
            for each in step.dependencies
            if each not in names and each[0] in APPS
        ]
        if any(self.comes_after(each, names) for each in outside):
            return
        self.result.squashed.append(
            Step(
                app,
                "0001_squashed",
                atomic=all(step.atomic for step in parts),
                dependencies=[
                    each for step in parts for each in step.dependencies if each not in names
                ],
                replaces=names,
                operations=[each for step in parts for each in step.operations],
                code=[each for step in parts for each in step.code],
            )
        )

    def comes_after(self, node: tuple[str, str], names: list[tuple[str, str]]) -> bool:
        if node in names:
            return True
        step = next((s for s in self.result.steps if (s.app, s.name) == node), None)
        return step is not None and any(self.comes_after(each, names) for each in step.dependencies)

    # Operations.

    def history(self) -> None:
        for _ in range(self.count(1, 4)):
            self.create_model()
        if self.chance(50):
            self.create_raw()
        for _ in range(self.count(0, 3)):
            self.pick((self.trigger, self.function, self.view, self.shadow))()

    def operations(self) -> None:
        for _ in range(self.count(1, 4)):
            self.operation()

    def operation(self) -> None:
        if not self.models or (len(self.models) < 5 and self.chance(25)):
            self.pick((self.create_model, self.create_model, self.create_raw))()
        elif self.chance(60):
            self.pick((self.run_python, self.run_sql))()
        else:
            self.pick(
                (
                    self.trigger,
                    self.trigger,
                    self.add_field,
                    self.add_many,
                    self.rename_model,
                    self.rename_table,
                    self.rename_key,
                    self.alter_key,
                    self.trigger,
                    self.function,
                    self.function,
                    self.view,
                    self.shadow,
                    self.create_raw,
                    self.late_key,
                    self.unique_together,
                    self.legacy_serial,
                    self.delete_model,
                )
            )()

    def create_model(self) -> None:
        name = self.new("Model")
        model = Model(self.step.app, name, None, self.pick(tuple(KEYS)))
        if self.chance(20):
            model.db_table = self.pick((f"Odd {name}", f"{name}_{'long' * 15}"))
        model.is_unique = self.chance(30)
        fields = [
            f'("id", models.{model.key}(primary_key=True))',
            f'("label", models.TextField(unique={model.is_unique}))',
        ]
        if self.chance(35) and (target := self.model()):
            fields.append(f'("ref", {self.foreign_key(model, "ref", target)})')
        if self.chance(35) and (target := self.model()):
            fields.append(f'("many", {self.many_to_many(model, "many", target)})')
        if self.chance(20):
            fields.append('("extra", models.IntegerField(db_index=True, null=True))')
        options = f", options={{'db_table': {model.db_table!r}}}" if model.db_table else ""
        self.step.operations.append(
            f'migrations.CreateModel("{name}", fields=[{", ".join(fields)}]{options})'
        )
        self.models.append(model)
        self.touch(model)

    def foreign_key(self, model: Model, name: str, target: Model) -> str:
        model.single.append((name, target))
        target.is_referenced = True
        return f'models.ForeignKey("{target.label}", models.CASCADE, null=True, related_name="+")'

    def many_to_many(self, model: Model, name: str, target: Model) -> str:
        model.many.append((name, target))
        target.is_referenced = model.is_referenced = True
        return f'models.ManyToManyField("{target.label}", related_name="+")'

    def add_field(self) -> None:
        model, target = self.own(), self.model()
        if model and target:
            name = self.new("ref")
            definition = self.foreign_key(model, name, target)
            self.step.operations.append(
                f'migrations.AddField("{model.name}", "{name}", {definition})'
            )

    def add_many(self) -> None:
        model, target = self.own(), self.model()
        if model and target:
            name = self.new("many")
            definition = self.many_to_many(model, name, target)
            self.step.operations.append(
                f'migrations.AddField("{model.name}", "{name}", {definition})'
            )

    def own(self, fits: Callable[[Model], bool] = lambda _: True) -> Model | None:
        return self.model(lambda each: each.app == self.step.app and fits(each))

    def rename_model(self) -> None:
        if model := self.own(lambda each: not each.is_written_to):
            name = self.new("Renamed")
            self.step.operations.append(f'migrations.RenameModel("{model.name}", "{name}")')
            model.name = name

    def rename_table(self) -> None:
        if model := self.own(lambda each: not each.is_written_to):
            model.db_table = self.new("table_")
            self.step.operations.append(
                f'migrations.AlterModelTable("{model.name}", "{model.db_table}")'
            )

    def rename_key(self) -> None:
        if model := self.own(lambda each: not each.is_written_to):
            name = self.new("key")
            self.step.operations.append(
                f'migrations.RenameField("{model.name}", "{model.pk}", "{name}")'
            )
            model.pk = name

    def unique_together(self) -> None:
        if model := self.own():
            self.feature("unique together")
            columns = self.pick(((model.pk, "label"), ("label", model.pk)))
            self.step.operations.append(
                f'migrations.AlterUniqueTogether("{model.name}", {{{columns!r}}})'
            )
            model.is_written_to = True

    def alter_key(self) -> None:
        if model := self.own(lambda each: not each.views):
            model.key = self.pick(tuple(KEYS))
            self.step.operations.append(
                f'migrations.AlterField("{model.name}", "{model.pk}", '
                f"models.{model.key}(primary_key=True))"
            )

    def delete_model(self) -> None:
        model = self.own(lambda each: not (each.is_written_to or each.is_referenced))
        if model and len(self.models) > 1:
            self.step.operations.append(f'migrations.DeleteModel("{model.name}")')
            self.models.remove(model)

    # Operations in SQL that others draw through.

    def sql(self, *statements: str) -> None:
        self.step.operations.append(
            f"migrations.RunSQL({list(statements)!r}, migrations.RunSQL.noop)"
        )

    def trigger(self) -> None:
        target = self.table()
        if target is None:
            return
        source = self.table(lambda each: not _leads_to(target, each))
        if source is None:
            return
        self.writes_to(target)
        if self.chance(15):
            table, text = '"django_migrations"', "NEW.app || NEW.name"
        else:
            source.logs.append(target)
            table, text = source.table, "NEW.label"
        name = self.new("log_")
        when, event = self.pick(("AFTER", "BEFORE")), self.pick(EVENTS)
        if event == "DELETE":
            when, text = "AFTER", text.replace("NEW", "OLD")
        conflict = self.pick(("", "", " ON CONFLICT DO NOTHING"))
        if table != '"django_migrations"' and event == "INSERT" and self.chance(20):
            self.feature("rule")
            self.sql(
                f"CREATE RULE {name} AS ON INSERT TO {table} DO ALSO "
                f"INSERT INTO {target.table} (label) VALUES ('{name} ' || NEW.label)"
            )
            return
        self.feature("trigger")
        self.sql(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"INSERT INTO {target.table} (label) VALUES ('{name} ' || {text}){conflict}; "
            "RETURN NEW; END $$",
            f"CREATE TRIGGER {name} {when} {event} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {name}()",
        )

    def writes_to(self, target: Model) -> None:
        target.is_written_to = True

    def view(self) -> None:
        if model := self.table():
            self.feature("view")
            self.writes_to(model)
            name = self.new("view_")
            check = self.pick(("", " WITH CHECK OPTION"))
            self.sql(
                f"CREATE VIEW {name} AS SELECT {quoted(model.pk)}, label FROM {model.table} "
                f"WHERE label IS NOT NULL{check}"
            )
            model.views.append(name)

    def shadow(self) -> None:
        """Make a table of the same name in another schema."""
        if model := self.table(lambda each: not each.has_shadow):
            self.feature("table of the same name in another schema")
            self.writes_to(model)
            model.has_shadow = True
            self.sql(
                "CREATE SCHEMA IF NOT EXISTS archive",
                f"CREATE TABLE archive.{model.table} "
                f"({quoted(model.pk)} serial PRIMARY KEY, label text)",
            )

    def create_raw(self) -> None:
        name = self.new("raw_")
        kind = self.pick(tuple(RAW))
        self.feature(kind)
        model = Model(self.step.app, name, name, "AutoField", raw=kind)
        if kind in PARTS:
            model.views.append(name + PARTS[kind])
        self.sql(RAW[kind].format(name=name))
        self.models.append(model)
        self.touch(model)

    def late_key(self) -> None:
        if model := self.table(lambda each: each.raw == "late"):
            self.feature("late key")
            self.sql(f"ALTER TABLE {model.table} ADD PRIMARY KEY (id)")
            model.raw = "keyed"

    def function(self) -> None:
        if model := self.table():
            self.feature("function")
            self.writes_to(model)
            name = self.new("add_")
            model.functions.append(name)
            language, body = self.pick(BODIES)
            self.sql(
                f"CREATE FUNCTION {name}(x text) RETURNS text LANGUAGE {language} AS "
                f"$$ {body.format(table=model.table)} $$"
            )

    def legacy_serial(self) -> None:
        """Give a table what Django gave it before 4.1: a sequence as its default."""
        if model := self.own():
            name = self.new("serial_")
            self.sql(
                f'ALTER TABLE {model.table} ALTER "{model.pk}" DROP IDENTITY IF EXISTS',
                f'CREATE SEQUENCE {name} AS {KEYS[model.key]} OWNED BY {model.table}."{model.pk}"',
                f"SELECT setval('{name}', (SELECT coalesce(max(\"{model.pk}\"), 0) + 1 "
                f"FROM {model.table}), false)",
                f'ALTER TABLE {model.table} ALTER "{model.pk}" '
                f"SET DEFAULT nextval('{name}'::regclass)",
            )
            # Django's ALTER of an identity fails on it, on any database.
            model.key = "BigAutoField"

    # Data, in SQL.

    def run_sql(self) -> None:
        if self.chance(20) and (model := self.table()):
            script = self.script(model)
            self.step.operations.append(f"migrations.RunSQL({script!r}, migrations.RunSQL.noop)")
            return
        self.sql(
            *(
                self.statement(model)
                for _ in range(self.count(1, 3))
                if (model := self.table()) is not None
            )
        )

    def script(self, model: Model) -> str:
        """Return several statements in one text: nothing of ours can come between them."""
        self.feature("several statements in one text")
        is_autocommit = not self.step.atomic and self.depth == 1
        # A deferred foreign key keeps a table from being altered.
        is_alone = not (model.is_referenced or model.single or model.many)
        forms = [
            each
            for each in SCRIPTS
            if (is_autocommit or "BEGIN" not in each) and (is_alone or "RENAME" not in each)
        ]
        return self.pick(forms).format(
            *(self.statement(model, alone=False) for _ in range(2)),
            name=self.new("moved_"),
            table=model.table,
        )

    def statement(self, model: Model, *, alone: bool = True) -> str:
        table = model.table
        one, two = self.new("sql "), self.new("sql ")
        other = self.table() or model
        forms = [
            each
            for each in FORMS
            if (each not in {KEY_CHANGE, KEY_CASE} or not model.is_referenced)
            and ((alone and not self.is_harmless) or not any(name in each for name in NAMES_KEYS))
            and (model.target or "{target}" not in each)
        ]
        if alone and not self.is_harmless and self.chance(10):
            return self.setting_back(model)
        if model.functions and self.chance(60):
            return f"SELECT {self.pick(model.functions)}('{one}')"
        form = self.pick(forms)
        self.feature_of(form)
        into = self.pick((table, *model.views))
        if into != table and "{into}" in form:
            self.feature("INSERT through a view or into a part")
        self.result.names_keys |= any(each in form for each in NAMES_KEYS)
        return form.format(
            table=table,
            into=into,
            pk=quoted(model.pk),
            bare_pk=model.pk,
            target=model.target,
            other=other.table,
            one=one,
            two=two,
            key=self.key(),
        )

    def feature(self, name: str) -> None:
        self.result.features.add(name)

    def feature_of(self, form: str) -> None:
        for sign, name in (
            ("nextval", "nextval written out"),
            ("DO $$", "DO"),
            ("CASE", "UPDATE through CASE"),
            ("EXPLAIN", "EXPLAIN ANALYZE"),
            ("MERGE", "MERGE"),
        ):
            if sign in form:
                self.feature(name)

    def setting_back(self, model: Model) -> str:
        self.result.sets_back = True
        table = model.table
        forms = [
            f"SELECT setval(pg_get_serial_sequence('{table}', '{model.pk}'), 1, false)",
        ]
        if not (model.is_referenced or model.single or model.many):
            forms.append(f"TRUNCATE {table} RESTART IDENTITY")
        return self.pick(forms)

    # Data, in Python.

    def run_python(self) -> None:
        self.body = []
        self.depth = 1
        for _ in range(self.count(1, 4)):
            self.action()
        if not self.body:
            return
        name = self.new("code_")
        body = "".join(f"{line}\n" for line in self.body)
        self.step.code.append(
            f"def {name}(apps, editor):\n    get = apps.get_model\n"
            f"    cursor = connection.cursor()\n{body}"
        )
        self.step.operations.append(f"migrations.RunPython({name}, migrations.RunPython.noop)")

    def say(self, *lines: str) -> None:
        self.body += ["    " * self.depth + line for line in lines]

    def action(self) -> None:
        # Where something hangs on a table there is more to go wrong.
        model = self.table(lambda each: bool(each.logs or each.functions)) or self.table()
        if model is None:
            return
        if self.chance(40):
            model = self.table() or model
        choices = self.choices_of_raw(model) if model.raw else self.choices_of(model)
        self.pick(choices)(model, f'get("{model.app}", "{model.name}").objects')

    def choices_of(self, model: Model) -> list[Callable[[Model, str], None]]:
        if self.chance(2):
            return [self.duplicate, self.boom]
        choices: list[Callable[[Model, str], None]] = [
            self.create,
            self.create_row_by_row,
            self.get_or_create,
            self.bulk_create,
            self.execute,
            self.execute_many,
            self.read_and_write,
            self.on_commit,
            self.contrib,
            self.bulk_update,
            self.preallocate,
            self.execute_script,
            self.in_temporary_table,
        ]
        if not self.is_harmless:
            choices += [self.create_explicitly, self.copy, self.update_keys]
        if model.has_shadow:
            choices += [self.in_other_schema] * 3
        if model.many:
            choices += [self.add, self.add]
        if model.functions:
            choices += [self.call] * 3
        if self.depth < 3:
            choices += [self.nested, self.nested, self.given_up, self.caught]
        return choices

    def choices_of_raw(self, model: Model) -> list[Callable[[Model, str], None]]:
        choices: list[Callable[[Model, str], None]] = [
            self.execute,
            self.execute,
            self.execute_many,
            self.execute_script,
            self.in_temporary_table,
        ]
        if model.has_shadow:
            choices += [self.in_other_schema] * 2
        if model.functions:
            choices += [self.call] * 2
        if self.depth < 3:
            choices.append(self.nested)
        return choices

    def create(self, model: Model, get: str) -> None:
        ref = f", {model.single[0][0]}=None" if model.single else ""
        self.say(f"{get}.create(label={self.text()}{ref})")

    def create_row_by_row(self, model: Model, get: str) -> None:
        text = self.new("loop ")
        self.say(
            f"for i in range({self.pick((2, 3, 3, 3, 70))}):",
            f"    {get}.create(label=f'{text} {{i}}')",
        )

    def create_explicitly(self, model: Model, get: str) -> None:
        self.result.names_keys = True
        if self.chance(50):
            self.say(f"{get}.create(pk={self.key()}, label={self.text()})")
            return
        self.say(
            f"last = {get}.order_by('pk').last()",
            "if last:",
            f"    {get}.create(pk=last.pk + 1, label={self.text()})",
        )

    def duplicate(self, model: Model, get: str) -> None:
        self.say(
            f"first = {get}.order_by('pk').first()",
            "if first:",
            f"    {get}.create(pk=first.pk, label={self.text()})",
        )

    def boom(self, model: Model, get: str) -> None:
        self.say("raise ValueError('boom')")

    def get_or_create(self, model: Model, get: str) -> None:
        verb = self.pick(("get_or_create", "update_or_create"))
        self.say(f"{get}.{verb}(label={self.text()})")

    def bulk_create(self, model: Model, get: str) -> None:
        modes = ["", ", ignore_conflicts=True", ", batch_size=1"]
        modes.append(
            f", update_conflicts=True, update_fields=['label'], unique_fields=['{model.pk}']"
        )
        if model.is_unique:
            modes.append(
                ", update_conflicts=True, update_fields=['label'], unique_fields=['label']"
            )
        rows = [f"label={self.text()}" for _ in range(self.count(1, 3))]
        if not self.is_harmless and self.chance(20):
            self.result.names_keys = True
            rows.append(f"pk={self.key()}, label={self.text()}")
        made = ", ".join(f"M({row})" for row in rows)
        self.say(
            f'M = get("{model.app}", "{model.name}")',
            f"M.objects.bulk_create([{made}]{self.pick(modes)})",
        )

    def add(self, model: Model, get: str) -> None:
        name, target = self.pick(model.many)
        self.say(
            f"mine, theirs = {get}.create(label={self.text()}), "
            f'get("{target.app}", "{target.name}").objects.create(label={self.text()})',
            f"mine.{name}.add(theirs)",
        )
        if self.chance(30):
            self.say(f"mine.{name}.set([])", f"mine.{name}.set([theirs])")

    def execute(self, model: Model, get: str) -> None:
        text = self.statement(model)
        form = self.pick(("{0!r}", "{0!r}", "sql.SQL({0!r})", "{0!r}.encode()"))
        self.say(f"cursor.execute({form.format(text)})")

    def execute_many(self, model: Model, get: str) -> None:
        rows = f"[({self.text()},), ({self.text()},), ({self.text()},)]"
        rows = self.pick((rows, f"iter({rows})", "[]"))
        table = self.pick((model.table, *model.views))
        text = f"INSERT INTO {table} (label) VALUES (%s)"
        self.say(f"cursor.executemany({text!r}, {rows})")

    def execute_script(self, model: Model, get: str) -> None:
        self.say(f"cursor.execute({self.script(model)!r})")

    def bulk_update(self, model: Model, get: str) -> None:
        self.feature("UPDATE through CASE")
        text = self.text()
        self.say(
            f"found = list({get}.order_by('pk'))",
            "for each in found:",
            f"    each.label += {text}",
            f"{get}.bulk_update(found, ['label'])",
        )

    def preallocate(self, model: Model, get: str) -> None:
        """Draw keys first, and write rows that name them."""
        self.feature("nextval written out")
        drawn = DRAWN.format(table=model.table, bare_pk=model.pk)
        self.say(
            f"cursor.execute({f'SELECT {drawn} FROM generate_series(1, 3)'!r})",
            "drawn = [key for (key,) in cursor.fetchall()]",
            "for number, key in enumerate(drawn[:2]):",
            f"    {get}.create(pk=key, label={self.new('drawn ')!r} + str(number))",
            f"{get}.create(label={self.text()})",
        )

    def in_other_schema(self, model: Model, get: str) -> None:
        self.feature("SET LOCAL search_path")
        insert = f"INSERT INTO {model.table} (label) VALUES ('%s')"
        self.say(
            "with transaction.atomic():",
            '    cursor.execute("SET LOCAL search_path = archive, public")',
            f"    cursor.execute({insert % self.new('archived ')!r})",
            f"    cursor.execute({insert % self.new('archived ')!r})",
            '    cursor.execute("SET LOCAL search_path = public")',
            f"    cursor.execute({insert % self.new('not archived ')!r})",
        )

    def in_temporary_table(self, model: Model, get: str) -> None:
        """Write to a temporary table that hides the one of the same name."""
        self.feature("temporary table")
        table = model.table
        insert = f"INSERT INTO {{}} (label) VALUES ('{self.new('temporary ')}')"
        create = (
            f"CREATE TEMPORARY TABLE {table} (LIKE public.{table} INCLUDING ALL) ON COMMIT DROP"
        )
        self.say(
            "with transaction.atomic():",
            f"    cursor.execute({create!r})",
            f"    cursor.execute({insert.format(table)!r})",
            f"    cursor.execute({insert.format('public.' + table)!r})",
            f"    cursor.execute({f'DROP TABLE pg_temp.{table}'!r})",
            f"    cursor.execute({insert.format(table)!r})",
        )

    def copy(self, model: Model, get: str) -> None:
        self.result.names_keys = True
        target = self.model(lambda each: each is not model) or model
        text = self.text()
        first = 250 * (4 + next(self.numbers) % 120)
        self.say(
            f'T = get("{target.app}", "{target.name}")',
            f"for pk, each in enumerate({get}.order_by('pk'), {first}):",
            f"    T.objects.create(pk=pk, label=each.label + {text})",
            f"T.objects.create(label={self.text()})",
        )

    def update_keys(self, model: Model, get: str) -> None:
        if not model.is_referenced:
            self.result.names_keys = True
            self.say(f"{get}.filter(pk__gt=1).update({model.pk}=F('{model.pk}') + 400)")

    def read_and_write(self, model: Model, get: str) -> None:
        target = self.model() or model
        text = self.text()
        self.say(
            f"for each in {get}.order_by('pk').iterator(chunk_size=2):",
            f'    get("{target.app}", "{target.name}").objects.create(label=each.label + {text})',
        )

    def on_commit(self, model: Model, get: str) -> None:
        self.say(f"transaction.on_commit(lambda: {get}.create(label={self.text()}))")

    def contrib(self, model: Model, get: str) -> None:
        last = "0012_alter_user_first_name_max_length"
        if ("auth", last) not in self.step.dependencies:
            self.step.dependencies.append(("auth", last))
        name = self.text()
        self.say(
            "kind, _ = get('contenttypes', 'ContentType').objects.get_or_create("
            f"app_label={name}, model={name})",
            "may = get('auth', 'Permission').objects.create("
            f"content_type=kind, codename={name}, name={name})",
            f"get('auth', 'Group').objects.create(name={name}).permissions.add(may)",
        )

    def call(self, model: Model, get: str) -> None:
        name = self.pick(model.functions)
        text = self.new("call ")
        self.say(f'cursor.execute("SELECT {name}(%s)", ["{text}"])')

    def inside(self) -> None:
        self.depth += 1
        before = len(self.body)
        for _ in range(self.count(1, 2)):
            self.action()
        if len(self.body) == before:
            self.say("pass")
        self.depth -= 1

    def nested(self, model: Model, get: str) -> None:
        self.say("with transaction.atomic():")
        self.inside()

    def given_up(self, model: Model, get: str) -> None:
        """Write something and take it back."""
        self.say("with transaction.atomic():")
        self.depth += 1
        self.say("sid = getattr(transaction, 'savepoint_create', transaction.savepoint)()")
        self.action()
        self.say(
            self.pick(("transaction.savepoint_rollback(sid)", "transaction.set_rollback(True)"))
        )
        self.depth -= 1

    def caught(self, model: Model, get: str) -> None:
        self.say("try:", "    with transaction.atomic():")
        self.depth += 1
        self.inside()
        if self.chance(60):
            self.say(
                f"    first = {get}.order_by('pk').first()",
                "    if first:",
                f"        {get}.create(pk=first.pk, label={self.text()})",
            )
        self.depth -= 1
        self.say("except IntegrityError:", f"    {get}.create(label={self.text()})")


def _leads_to(source: Model, target: Model) -> bool:
    """Tell whether a row in ``source`` makes one in ``target``: circles of triggers end never."""
    return source is target or any(_leads_to(each, target) for each in source.logs)
