"""
Paint demo.svg and story.svg from a real run of the demo, or check that they still show its output.

    python docs/picture.py [--check]

Needs the extras ``demo`` and ``docs``. The server is that of DATABASE_URL, or the embedded one.
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
MANAGE = DOCS.parent / "example_project" / "manage.py"
# The parts of the demo that each picture shows: the words that a part begins with, and the words
# that it ends before. The tables of sequences are left out.
PICTURES: dict[str, list[tuple[str, str | None]]] = {
    "demo.svg": [("$ python manage.py safemigrate", "\n  table")],
    "story.svg": [
        ("# A restore", "\n  table"),
        ("# The next release", "\n  table"),
        ("# Every migration is recorded", None),
    ],
}
# Narrow enough to be read on a telephone.
WIDTH = 54
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
# Rich's own format, without the font that it would fetch from elsewhere, and with the text for
# those who can't see the picture.
FORMAT = """\
<svg viewBox="0 0 {{width}} {{height}}" width="620" xmlns="http://www.w3.org/2000/svg" role="img">
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


def demo(*options: str) -> Text:
    """Run the demo and return what it prints, in the terminal's colours."""
    done = subprocess.run(
        [sys.executable, str(MANAGE), "demo", "--this-database", *options],
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    return Text.from_ansi(done.stdout)


def shown(name: str, text: Text) -> Text:
    """Return the parts of the demo that a picture shows."""
    parts = []
    for first, end in PICTURES[name]:
        start = text.plain.index(first)
        stop = len(text) if end is None else text.plain.index(end, start)
        part = text[start:stop]
        part.rstrip()
        parts.append(part)
    picture = Text("\n\n").join(parts)
    picture.highlight_regex(r"(?m)^  Resynced .*|\(exit status 0\)", "bold green")
    picture.highlight_regex(r"\(exit status [^0]\)", "bold red")
    return picture


def wrapped(text: Text) -> Text:
    """Break the lines that are too long, and indent what follows each break."""
    lines = text.split("\n", allow_blank=True)
    return Text("\n").join(piece for line in lines for piece in broken(line))


def broken(line: Text) -> list[Text]:
    """Break one line at its spaces, or at the edge where it has none."""
    pieces = []
    indent = " " * (len(line.plain) - len(line.plain.lstrip()) + 2)
    lead = ""
    while len(lead) + len(line) > WIDTH:
        room = WIDTH - len(lead)
        at = line.plain.rfind(" ", len(indent), room + 1)
        at = room if at < 0 else at
        pieces.append(Text(lead) + line[:at])
        line = line[at:]
        line = line[len(line.plain) - len(line.plain.lstrip()) :]
        lead = indent
    return [*pieces, Text(lead) + line]


def painted(name: str, text: Text) -> str:
    """Return ``text`` as a terminal window in SVG."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(wrapped(text), highlight=False, soft_wrap=True)
    svg = console.export_svg(
        title="manage.py demo",
        theme=DARK,
        code_format=FORMAT.format(description=escape(text.plain).replace("{", "{{")),
        unique_id=Path(name).stem,
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
    is_check = parser.parse_args().check
    text = demo("--no-color" if is_check else "--force-color")
    for name in PICTURES:
        picture = DOCS / name
        part = shown(name, text)
        if not is_check:
            picture.write_text(painted(name, part), encoding="utf-8")
        elif described(picture.read_text(encoding="utf-8")) != part.plain:
            sys.exit(f"The demo no longer prints what {name} shows: run python {sys.argv[0]}.")


if __name__ == "__main__":
    main()
