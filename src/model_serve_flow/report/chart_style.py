"""Sets the look of every chart, and turns a figure into self-contained SVG."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_serve_flow.flow.results.measured import BASE
from model_serve_flow.report.formatting import byte_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, BASE_COLOUR = "#20262e", "#5b6470", "#dfe3e8", "#ffffff", "#4a4f57"
FADED = "#8a939e"  # colour of a candidate that must not ship, in charts of speed or cost
# Okabe-Ito: safe for colour-blind readers
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("s", "^", "D", "v", "P", "X")
WIDTH = 9.375  # inches: 900 px
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, "
    "sans-serif"
)
THEME = {  # colour -> CSS variable that lets a page replace the colour
    INK: "--chart-ink",
    MUTED: "--chart-muted",
    GRID: "--chart-grid",
    PAPER: "--chart-paper",
    BASE_COLOUR: "--chart-base",
    FADED: "--chart-faded",
    **{colour: f"--chart-{place}" for place, colour in enumerate(PALETTE, 1)},
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "model-serve-flow",
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Applies the look of every figure; afterwards matplotlib's own settings are restored."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


@dataclass(frozen=True)
class Look:
    """How one model is drawn in every chart."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of `Axes.plot`."""
        face = PAPER if self.hollow else self.colour
        style = "--" if self.hollow else "-"
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": face,
            "linestyle": style,
        }


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Gives each model its look.

    The base is always the same dark grey circle. Each candidate gets a colour and a marker, in the
    order given.
    """
    candidates = [name for name in names if name != BASE]
    drawn = {
        name: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(candidates)
    }
    return {BASE: Look(BASE_COLOUR, "o"), **drawn}


def to_svg(figure: Figure, themed: bool = False) -> str:
    """Writes a figure as SVG without any outside reference; the same figure gives the same bytes.

    Args:
        figure: a figure of this module, or any other figure.
        themed: write colours as CSS variables with the colour as fallback, so that a page can have
            a dark mode. Use False for separate SVG files: editors such as Inkscape do not know CSS
            variables.
    """
    stream = io.StringIO()
    with house_style():
        figure.savefig(
            stream,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family:[^;\"]*", f"font-family: {FONTS}", svg)
    svg = re.sub(r"(font: [\d. a-z]*px) '[^;\"]*", rf"\1 {FONTS}", svg)
    if themed:
        for colour, variable in THEME.items():
            svg = svg.replace(f": {colour}", f": var({variable}, {colour})")
    return svg


def name_unmeasured(figure: Figure, loads: dict[str, list[int]]) -> None:
    """Writes at the bottom of the chart which load points of which model are missing."""
    named = [f"{name} at {', '.join(map(str, found))}" for name, found in loads.items() if found]
    if named:
        figure.supxlabel(
            f"Not measured: {'; '.join(named)} concurrent requests", x=0.012, ha="left", fontsize=10
        )


def byte_bars(axis: Axes, values: dict[str, int | None], title: str) -> None:
    """Draws a bar for the bytes of each model, in MB or GB.

    A model whose bytes are not known gets no bar.
    """
    known = [value for value in values.values() if value is not None]
    scale, unit = (1e9, "GB") if known and max(known) >= 1e9 else (1e6, "MB")
    style = looks(values)
    for place, (name, value) in enumerate(values.items()):
        axis.barh(place, (value or 0) / scale, height=0.62, color=style[name].colour)
        text = "not recorded" if value is None else byte_text(value)
        axis.annotate(
            text,
            ((value or 0) / scale, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    label_rows(axis, list(values))
    label_axis(axis, title=title, x=unit)
    axis.set_xlim(0, max(known, default=scale) / scale * 1.25)


def new_figure(title: str, height: float) -> Figure:
    """Creates a figure of 900 px width that shows itself as SVG in a notebook.

    Args:
        title: the question that the figure answers.
        height: in inches.
    """
    from matplotlib.figure import Figure

    class Chart(Figure):
        def _repr_svg_(self) -> str:
            return to_svg(self)

    figure = Chart(figsize=(WIDTH, height), layout="constrained")
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold")
    return figure


def finish_figure(
    figure: Figure, names: Iterable[str] = (), style: dict[str, Look] | None = None
) -> Figure:
    """Writes the models' names under the title and fixes the layout.

    With a fixed layout every drawing of the figure is the same.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    height, style = figure.get_figheight(), style or looks(names)
    labels = {name: f"{name} (do not ship)" if style[name].hollow else name for name in names}
    handles = [Line2D([], [], label=label, **style[name].line) for name, label in labels.items()]
    if handles:
        place = (0.004, 1 - 0.34 / height)
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=place, ncols=4, handlelength=1.8
        )
    top = 0.4 + 0.3 * -(-len(handles) // 4)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.08, h_pad=0.08, hspace=0.06, wspace=0.05, rect=(0, 0, 1, 1 - top / height))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def label_axis(axis: Axes, x: str, title: str = "") -> None:
    """Writes below the axis what it shows, and the title above the axis."""
    axis.set_xlabel(x, loc="left")
    if title:
        axis.set_title(title, loc="left", fontsize=10, color=MUTED)


def label_rows(axis: Axes, labels: Sequence[str]) -> None:
    """Makes the vertical axis a list of names, the first name on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def row_offsets(count: int) -> list[float]:
    """Returns the vertical places of `count` models within one row."""
    return [(place - (count - 1) / 2) * 0.6 / count for place in range(count)]


def draw_point(
    axis: Axes, x: float, y: float, look: Look, whiskers: Any = None, filled: bool = True
) -> None:
    """Draws the mark of one model with its whiskers (lengths to the left and right)."""
    axis.errorbar(
        x,
        y,
        xerr=None if whiskers is None else [[whiskers[0]], [whiskers[1]]],
        fmt=look.marker,
        color=look.colour,
        markerfacecolor=look.colour if filled else PAPER,
        markeredgewidth=1.6,
        elinewidth=1.8,
        capsize=3,
    )
