"""
Paint demo.svg from a real run of the demo, or check that it still shows what the demo prints.

    python docs/picture.py [--check]

Needs the extras ``demo`` and ``docs``; the server is DATABASE_URL's, or the embedded one.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from html import escape
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DOCS = Path(__file__).parent
PICTURE = DOCS / "demo.svg"
MANAGE = DOCS.parent / "example_project" / "manage.py"
# The parts of the demo that are shown, each by the words it begins with, up to the words it ends
# before. They say what happens with plain migrate, then what happens with safemigrate.
SHOWN = [
    ("# The next release", "# And where only"),
    ("# From the same start, with everything", "\n  table"),
    ("# Every migration is recorded", None),
]
DARK = TerminalTheme(
    (22, 27, 34),
    (217, 222, 228),
    [
        (110, 118, 129),
        (255, 123, 114),
        (86, 211, 100),
        (227, 179, 65),
        (121, 192, 255),
        (210, 168, 255),
        (86, 212, 221),
        (217, 222, 228),
    ],
)
# Rich's own format, without the font that it would have fetched from elsewhere, and with the text
# for those who can't see the picture.
FORMAT = """\
<svg viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>manage.py demo</title>
<desc>{description}</desc>
<style>
.{{unique_id}}-matrix {{{{
  font: {{char_height}}px/{{line_height}}px ui-monospace, SFMono-Regular, Menlo, Consolas,
    "DejaVu Sans Mono", "Liberation Mono", monospace;
}}}}
.{{unique_id}}-title {{{{ font: bold 18px sans-serif }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}"/>
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})"
   clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""


def shown(*options: str) -> Text:
    """Run the demo and return what the picture shows of it, in the terminal's colours."""
    demo = subprocess.run(
        [sys.executable, str(MANAGE), "demo", "--this-database", *options],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    text = Text.from_ansi(demo.stdout)
    parts = []
    for first, end in SHOWN:
        start = text.plain.index(first)
        stop = len(text) if end is None else text.plain.index(end, start)
        part = text[start:stop]
        part.rstrip()
        parts.append(part)
    picture = Text("\n\n").join(parts)
    picture.highlight_regex(r"(?m)^  Resynced .*|\(exit status 0\)", "bold green")
    picture.highlight_regex(r"\(exit status [^0]\)", "bold red")
    return picture


def painted(text: Text) -> str:
    """Return ``text`` as a terminal window in SVG."""
    width = max(map(len, text.plain.splitlines()))
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(text, highlight=False, soft_wrap=True)
    svg = console.export_svg(
        title="manage.py demo",
        theme=DARK,
        code_format=FORMAT.format(description=escape(text.plain).replace("{", "{{")),
        unique_id="demo",
    )
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def described(svg: str) -> str:
    """Return the text that a picture was painted from."""
    return str(ET.fromstring(svg).findtext("{http://www.w3.org/2000/svg}desc"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it differs")
    if not parser.parse_args().check:
        PICTURE.write_text(painted(shown("--force-color")), encoding="utf-8")
    elif described(PICTURE.read_text(encoding="utf-8")) != shown("--no-color").plain:
        sys.exit(f"The demo prints something else than {PICTURE.name}: run python {sys.argv[0]}.")


if __name__ == "__main__":
    main()
