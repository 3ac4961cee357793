"""What the documents say is true: their code runs, their links lead somewhere."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import pytest
import yaml
from django.core.management import call_command, load_command_class
from django.db import connection, transaction

from safemigrate import conf
from tests.support.databases import Databases, binding, execute
from tests.support.pages import PAGES, ROOT, Block, anchors, blocks, headings, links

if TYPE_CHECKING:
    from collections.abc import Iterator

README = ROOT / "README.md"
DEMO = ROOT / "docs" / "demo.md"
REFERENCE = ROOT / "docs" / "reference.md"
RUNBOOK = ROOT / "docs" / "runbook.md"
MESSAGES = ROOT / "docs" / "messages.md"
EXAMPLE = ROOT / "example_project"
MADE_BY_THE_EXAMPLE = "made by manage.py demo, which drops it without asking"
LANGUAGES = {"console", "dockerfile", "json", "python", "sh", "sql", "text", "toml", "yaml"}
INSTRUCTIONS = {"COPY", "CMD", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
# What the runbook quotes of others: Django, PostgreSQL.
THEIRS = [
    'duplicate key value violates unique constraint "',
    '_pkey"',
    'relation "',
    '" already exists',
    'duplicate key value violates unique constraint "pg_type_typname_nsp_index"',
    'null value in column "',
    '" of relation "',
    '" violates not-null constraint',
    'could not create unique index "',
    '"',
    "Unknown command: 'safemigrate'",
    "settings.DATABASES is improperly configured. Please supply the ENGINE value.",
]


class Shop:
    """The example project, on a database of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.url = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()

    def types(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command line as a reader would; stdout and stderr come as one."""
        python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"DATABASE_URL": self.url, "PATH": python, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, **environment, "DJANGO_SETTINGS_MODULE": "mysite.settings"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            timeout=120,
        )

    def runs(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code as ``manage.py shell`` would."""
        (self.folder / "typed.py").write_text(f"import django; django.setup()\n{code}")
        return self.types(f"PYTHONPATH=$PYTHONPATH:{shlex.quote(str(EXAMPLE))} python typed.py")

    def follows(self, session: Block) -> None:
        """Type the commands of a session, and see that the lines it shows come, in order."""
        for part in re.split(r"^\$ ", session.text, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            printed = self.types(command).stdout
            lines = iter(printed.splitlines())
            for line in shown:
                assert line in lines, f"{session}: {command!r} printed no {line!r} in\n{printed}"


@pytest.fixture
def empty_shop(database: str) -> Shop:
    execute(f"COMMENT ON DATABASE {database} IS '{MADE_BY_THE_EXAMPLE}'")
    return Shop(database, EXAMPLE)


@pytest.fixture(scope="module")
def migrated(databases: Databases) -> Iterator[str]:
    """Give a database on which all of the example's migrations have been applied."""
    with databases.bound("default") as name:
        done = Shop(name, EXAMPLE).types("python manage.py migrate --verbosity 0")
        assert done.returncode == 0, done.stdout
        connection.close()
        yield name


@pytest.fixture
def shop(databases: Databases, migrated: str, tmp_path: Path) -> Iterator[Shop]:
    connection.close()
    with databases.bound("default", migrated) as name:
        execute(f"COMMENT ON DATABASE {name} IS '{MADE_BY_THE_EXAMPLE}'")
        yield Shop(name, tmp_path)


def sessions(page: Path) -> list[Block]:
    return [block for block in blocks("console") if block.page == page]


# --- Blocks ---------------------------------------------------------------------------------------


def test_every_block_says_its_language() -> None:
    assert [str(block) for block in blocks() if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_shell(block: Block) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, check=False, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml(block: Block) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later have it")
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", blocks("dockerfile"), ids=str)
def test_dockerfile(block: Block) -> None:
    for line in block.text.splitlines():
        instruction, _, rest = line.partition(" ")
        assert instruction in INSTRUCTIONS
        if rest.startswith("["):
            json.loads(rest)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python(shop: Shop, block: Block) -> None:
    manage = shlex.quote(str(EXAMPLE / "manage.py"))
    dump = f"python {manage} dumpdata shop.tag --output shop.json --verbosity 0"
    assert shop.types(dump).returncode == 0
    expected = re.search(r"# (\w+Error): … (\S+) … (.*)$", block.text, re.MULTILINE)
    done = shop.runs(block.text)
    if expected is None:
        assert done.returncode == 0, done.stdout
        return
    assert all(part in done.stdout for part in expected.groups()), done.stdout
    healed = "import safemigrate\nwith safemigrate.healing():\n" + "".join(
        f"    {line}\n" for line in block.text.splitlines()
    )
    assert shop.runs(healed).returncode == 0


@pytest.mark.parametrize("block", blocks("sql"), ids=str)
def test_sql(shop: Shop, block: Block) -> None:
    sql = re.sub(r"\bdeploy\b", shop.name, block.text)
    with transaction.atomic():
        execute(sql.replace("%", "%%"), ())
        transaction.set_rollback(True)


def test_the_grants_suffice(shop: Shop) -> None:
    (grants,) = [block.text for block in blocks("sql") if "CREATE ROLE" in block.text]
    with transaction.atomic():
        execute(re.sub(r"\bdeploy\b", shop.name, grants))
        execute("INSERT INTO shop_tag (id, name) VALUES (3000000, 'too far to be walked to')")
        execute(f"SET LOCAL ROLE {shop.name}")
        out = io.StringIO()
        call_command("resyncsequences", stdout=out)
        assert "resynced to 3000001\n15 sequences feed a key: 14 in sync," in out.getvalue()
        transaction.set_rollback(True)


@pytest.mark.parametrize("session", sessions(DEMO), ids=str)
def test_sessions(empty_shop: Shop, session: Block) -> None:
    empty_shop.follows(session)


def test_what_the_runbook_does_about_a_duplicate_key(empty_shop: Shop) -> None:
    """Its first two sections, one after the other, typed as they stand."""
    empty_shop.types("python manage.py migrate auth --verbosity 0")
    empty_shop.types("python manage.py migrate shop 0002 --verbosity 0")
    empty_shop.types("python manage.py fallbehind django_migrations shop_product_tags")
    failed = empty_shop.types("python manage.py migrate shop 0003")
    assert '"django_migrations_pkey"' in failed.stdout

    (commands,) = [block.text.splitlines() for block in blocks("sh") if block.page == RUNBOOK]
    check, safemigrate, resync = map(empty_shop.types, commands)
    assert (check.returncode, safemigrate.returncode, resync.returncode) == (1, 1, 0)
    assert "public.shop_product_tags_id_seq" in check.stdout
    assert "python manage.py safemigrate shop 0003_order_orderline --fake" in safemigrate.stdout

    (session,) = sessions(RUNBOOK)
    empty_shop.follows(session)
    assert empty_shop.types(commands[0]).returncode == 0
    on_sale = 'from shop.models import Tag; print(Tag.objects.get(name="on sale").products.count())'
    assert "8" in empty_shop.types(f"python manage.py shell -c '{on_sale}'").stdout.split()


def test_what_the_runbook_does_about_an_unrecorded_migration(empty_shop: Shop) -> None:
    empty_shop.follows(sessions(DEMO)[0])
    (session,) = sessions(RUNBOOK)
    empty_shop.follows(session)


def test_the_json_document(databases: Databases, migrated: str) -> None:
    (block,) = blocks("json")
    connection.close()
    name = databases.create(migrated)
    with binding("default", name):
        shop = Shop(name, EXAMPLE)
        shop.types("python manage.py fallbehind django_content_type --this-database")
        (command,) = [
            each.text
            for each in blocks("sh")
            if each.page == REFERENCE and each.text.rstrip().endswith("--json")
        ]
        assert json.loads(shop.types(command).stdout) == json.loads(block.text)
    databases.drop(name)


def test_the_driver_is_told(empty_shop: Shop) -> None:
    (command,) = [each.text for each in blocks("sh") if "c.Database.__name__" in each.text]
    assert f"{connection.Database.__name__} " in empty_shop.types(command).stdout  # type: ignore[attr-defined]


# --- Links and pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            assert link.startswith("https://")
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("name", ["demo.svg", "story.svg", "how-it-works.svg"])
def test_pictures_need_nobody_else(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    tree = ET.fromstring(text)
    assert tree.findtext("{http://www.w3.org/2000/svg}desc")
    assert re.findall(r"(?:https?:)?//[\w.]+", text) == ["http://www.w3.org"]


# --- Claims ---------------------------------------------------------------------------------------


def test_the_readme_fits() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    for extra in ("demo", "test"):
        assert text.count(f"-e '.[{extra}]'") == 1
    assert text.index("git clone") < text.index("-e '.[demo]'")


def quoted(text: str) -> list[str]:
    """List what stands in backticks, without what an ellipsis stands for."""
    return [
        part.strip()
        for quote in re.findall(r"`([^`]+)`", text)
        for part in quote.split("…")
        if part.strip()
    ]


def own_words() -> str:
    """Return all that the package's modules say, a gap where a value comes in."""
    return "\n".join(
        words_of(node)
        for path in sorted((ROOT / "safemigrate").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.JoinedStr, ast.Constant))
    )


def words_of(node: ast.expr) -> str:
    """Return a string as it is written, a gap where a value comes in; else nothing."""
    if isinstance(node, ast.JoinedStr):
        parts = [getattr(part, "value", None) for part in node.values]
        return "".join(part if isinstance(part, str) else "\0" for part in parts)
    value = getattr(node, "value", None)
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize("page", [RUNBOOK, MESSAGES], ids=["runbook", "messages"])
def test_the_messages_are_quoted_as_they_are_said(page: Path) -> None:
    said = own_words()
    rows = re.findall(r"^\| (`.*?) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    strangers = [
        words
        for words in quoted("\n".join([*headings(page), *rows]))
        if words not in said and words not in THEIRS
    ]
    assert strangers == []


def test_every_message_has_its_cause_and_cure() -> None:
    """Every check, every reason to leave a sequence alone, every error of the migration lock."""
    text = MESSAGES.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    fragments = quoted("\n".join([*headings(MESSAGES), *rows]))
    messages = [*messages_of("Obstacle"), *messages_of("__init__")]
    assert len(messages) > 15
    assert [each for each in messages if not any(part in each for part in fragments)] == []
    ids = set(re.findall(r"safemigrate\.[EW]\d{3}", own_words()))
    assert ids <= set(fragments)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    incomplete = [
        each.splitlines()[0]
        for each in sections
        if not ("**Cause.**" in each and "**Cure.**" in each) and "| cause | cure |" not in each
    ]
    assert incomplete == []


def messages_of(called: str) -> Iterator[str]:
    """Yield the first argument of each call, as far as it is written there."""
    for path in (ROOT / "safemigrate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name == called and not isinstance(node.args[0], ast.Name):
                    yield words_of(node.args[0])


def options(command: Any) -> set[str]:
    parser = command.create_parser("manage.py", "command")
    return {flag for action in parser._actions for flag in action.option_strings if flag[1] == "-"}


def test_the_reference_names_every_option() -> None:
    beside = {
        "safemigrate": "migrate",
        "resyncsequences": "dumpdata",
        "waitformigrations": "dumpdata",
    }
    ours: set[str] = set()
    for name, theirs in beside.items():
        ours |= options(load_command_class("safemigrate", name)) - options(
            load_command_class("django.core", theirs)
        )
    named = set(re.findall(r"`(--[a-z-]+)", REFERENCE.read_text(encoding="utf-8")))
    assert named - {"--verbosity", "--database"} == ours - {"--database"}


def test_the_reference_gives_the_defaults() -> None:
    (block,) = [
        block
        for block in blocks("python")
        if block.page == REFERENCE and block.text.startswith("SAFEMIGRATE_")
    ]
    settings: dict[str, Any] = {}
    exec(block.text, {}, settings)
    readers = {name: reader for name, reader in vars(conf).items() if reader.__doc__}
    assert settings == {
        f"SAFEMIGRATE_{name.upper()}": reader()
        for name, reader in readers.items()
        if getattr(reader, "__module__", "") == conf.__name__ and name[0] != "_"
    }


def test_every_page_is_on_the_site() -> None:
    site = (ROOT / ".ci" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r": ([\w-]+\.md)$", site, re.MULTILINE)) == set()


def test_every_long_proof_is_named() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    scripts = {
        path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()
    }
    assert set(re.findall(r"python benchmarks/(\w+\.py)", text)) == scripts


def test_every_module_is_on_the_map() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "safemigrate").glob("*.py")}
    assert modules - set(re.findall(r"`(\w+\.py)`", text)) == {"__init__.py"}
    for wing in ("heal", "sequences", "locking"):
        modules = {f"{wing}/{path.name}" for path in (ROOT / "safemigrate" / wing).glob("*.py")}
        assert modules - set(re.findall(r"`(\w+/\w+\.py)`", text)) == {f"{wing}/__init__.py"}
