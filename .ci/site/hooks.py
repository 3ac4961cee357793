"""Fit the repository's Markdown to the site: its links, and pages from outside docs/."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ON_GITHUB = "https://github.com/safemigrate/safemigrate/blob/main"
# Where the site's pages come from that are not in docs/.
FROM_ELSEWHERE = {
    "index.md": "README.md",
    "api.md": ".ci/site/api.md",
    "contributing.md": ".github/CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security-policy.md": ".github/SECURITY.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, source in FROM_ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    folder = (ROOT / FROM_ELSEWHERE.get(uri, f"docs/{uri}")).parent

    def on_the_site(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link[1])).relative_to(ROOT).as_posix()
        there = {source: uri for uri, source in FROM_ELSEWHERE.items()}
        return there.get(path) or (
            path.removeprefix("docs/") if path.startswith("docs/") else f"{ON_GITHUB}/{path}"
        )

    return LINK.sub(on_the_site, markdown)
