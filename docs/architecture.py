"""Draws docs/architecture.svg: the rooms of the library, and which room imports which.

The arrows come from the imports in src/, also those inside functions. An arrow that follows from
others is left out: if run imports measure and measure imports serve, no arrow from run to serve
is drawn. Needs only the standard library. From the root of the checkout:

    .environments/notebook/bin/python docs/architecture.py

Ends with status 1 if a room imports a room that is not below it. These arrows are red.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "model_serve_flow"
PICTURE = Path(__file__).with_suffix(".svg")
# From top to bottom. A room may import the rooms of lower lines only.
LAYERS = (
    {"cli": "the command line"},
    {"run": "executes the steps", "from_files": "a verdict from result files"},
    {
        "report": "report, charts, model card",
        "compress": "recipes, checkpoints",
        "deploy": "manifests, ship record",
        "measure": "lm-eval, GuideLLM",
    },
    {"compare": "numbers and verdict", "setup": "models and data", "serve": "engines"},
    {"flow": "profile, workspace, results"},
    {"system": "files, processes, hardware"},
    {"errors": "the error that users see"},
)
LEVELS = {room: level for level, layer in enumerate(LAYERS) for room in layer}
WIDTH, ROW, HEIGHT, TOP = 1000, 106, 56, 20
BOX_WIDTH = 210
Arrow = tuple[str, str]


def room_of(module: str) -> str:
    """Returns the room of a dotted name: 'flow' of 'model_serve_flow.flow.profile'.

    `python -m model_serve_flow` is the command line too.
    """
    room = module.split(".")[1]
    return "cli" if room == "__main__" else room


def imported(source: str, package: str) -> Iterator[str]:
    """Yields the dotted name of everything that a module imports from the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{package}."))


def arrows(package: Path) -> set[Arrow]:
    """Reads which room imports which.

    Raises:
        ValueError: a module is in no room that `LAYERS` names.
    """
    found = set()
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        source = path.read_text(encoding="utf-8")
        if parts[-1] == "__init__" or not source.strip():
            continue
        rooms = {room_of(".".join(parts)), *map(room_of, imported(source, package.name))}
        if unknown := rooms - LEVELS.keys():
            raise ValueError(f"{path}: no room is called {sorted(unknown)[0]!r}. Add it to LAYERS.")
        own = room_of(".".join(parts))
        found |= {(own, other) for other in rooms - {own}}
    return found


def climbing(found: set[Arrow]) -> set[Arrow]:
    """Returns the arrows to a room that is not below."""
    return {(start, end) for start, end in found if LEVELS[start] >= LEVELS[end]}


def without_implied(found: set[Arrow]) -> set[Arrow]:
    """Leaves out every arrow that a chain of other arrows replaces; expects no circles."""
    below = {room: {end for start, end in found if start == room} for room in LEVELS}
    reached: dict[str, set[str]] = {}
    for room in reversed(LEVELS):
        reached[room] = below[room].union(*(reached[other] for other in below[room]))

    def implied(start: str, end: str) -> bool:
        return any(end in reached[other] for other in below[start] - {end})

    return {arrow for arrow in found if not implied(*arrow)}


def places() -> dict[str, tuple[float, float]]:
    """Returns the upper left corner of every room's box."""
    corners = {}
    for level, layer in enumerate(LAYERS):
        gap = (WIDTH - BOX_WIDTH * len(layer)) / (len(layer) + 1)
        for number, room in enumerate(layer):
            corners[room] = (gap + number * (BOX_WIDTH + gap), TOP + level * ROW)
    return corners


def line(arrow: Arrow, kind: str, corners: dict[str, tuple[float, float]]) -> str:
    """Draws one arrow, from the middle of a box's lower edge to that of an upper edge."""
    (x1, y1), (x2, y2) = (corners[room] for room in arrow)
    middle = BOX_WIDTH / 2
    ends = f'x1="{x1 + middle:.0f}" y1="{y1 + HEIGHT:.0f}" x2="{x2 + middle:.0f}" y2="{y2:.0f}"'
    return f'  <line class="{kind}" {ends}><title>{arrow[0]} imports {arrow[1]}</title></line>'


def box(room: str, purpose: str, corner: tuple[float, float]) -> str:
    """Draws one room."""
    x, y = corner
    middle = x + BOX_WIDTH / 2
    size = f'width="{BOX_WIDTH}" height="{HEIGHT}"'
    return (
        f'  <rect class="box" x="{x:.0f}" y="{y:.0f}" {size} rx="8"/>\n'
        f'  <text class="name" x="{middle:.0f}" y="{y + 24:.0f}">{room}</text>\n'
        f'  <text class="what" x="{middle:.0f}" y="{y + 43:.0f}">{escape(purpose)}</text>'
    )


STYLE = """  <style>
    svg { --paper: #fff; --box: #f4f6f8; --line: #8a949f; --ink: #1d232b; --muted: #56606c; }
    @media (prefers-color-scheme: dark) {
      svg { --paper: #14191f; --box: #1f262e; --line: #74808d; --ink: #e6eaef; --muted: #a9b3be; }
    }
    text { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
    text { text-anchor: middle; fill: var(--ink); }
    .paper { fill: var(--paper); }
    .box { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
    .name { font-size: 15px; font-weight: 600; }
    .what { font-size: 12px; fill: var(--muted); }
    line { stroke: var(--line); stroke-width: 1.6; marker-end: url(#head); }
    line.up { stroke: #c0392b; stroke-width: 2.4; }
    .head { fill: var(--line); }
  </style>
  <defs>
    <marker id="head" viewBox="0 0 10 10" refX="9" refY="5"
            markerWidth="7" markerHeight="7" orient="auto">
      <path class="head" d="M0 0 10 5 0 10z"/>
    </marker>
  </defs>"""


def draw(found: set[Arrow]) -> str:
    """Returns the picture as SVG."""
    corners, up = places(), climbing(found)
    height = 2 * TOP + (len(LAYERS) - 1) * ROW + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "  <title>The rooms of the library; an arrow means imports</title>",
        STYLE,
        f'  <rect class="paper" width="{WIDTH}" height="{height}" rx="10"/>',
        *(line(arrow, "down", corners) for arrow in sorted(without_implied(found - up))),
        *(line(arrow, "up", corners) for arrow in sorted(up)),
        *(box(room, layer[room], corners[room]) for layer in LAYERS for room in layer),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Writes the picture; returns 1 if a room imports one that is not below it."""
    found = arrows(PACKAGE)
    PICTURE.write_text(draw(found), encoding="utf-8")
    for start, end in sorted(climbing(found)):
        print(f"{start} imports {end}, which is not below it.", file=sys.stderr)
    return 1 if climbing(found) else 0


if __name__ == "__main__":
    sys.exit(main())
