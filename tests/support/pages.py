"""The project's Markdown, read: blocks of code, headings, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / ".github" / "SECURITY.md",
    ROOT / ".ci" / "site" / "api.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.MULTILINE)
MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """List the fenced blocks of all pages, or those in ``languages``."""
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in FENCED.finditer(text)
        if not languages or found[2] in languages
    ]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return [found[1] for found in HEADING.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """List the anchors of a page's headings, as GitHub makes them."""
    plain = [MARKUP.sub(r"\1", heading).lower() for heading in headings(page)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def links(page: Path) -> list[str]:
    return [found[1] or found[2] for found in LINK.finditer(prose(page))]
