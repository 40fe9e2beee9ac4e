"""Pictures of the results: matplotlib figures that show themselves in a notebook and become self-contained SVG."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from model_serve_flow.formatting import byte_text
from model_serve_flow.pairs import primary_metric
from model_serve_flow.results import (
    BASE,
    AccuracyResult,
    CandidateComparison,
    Comparison,
    Decision,
    Difference,
    LoadPoint,
    PerformanceResult,
)
from model_serve_flow.statistics import ALPHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AVERAGE = ("average", "of deciding tasks")
INK, MUTED, GRID, PAPER, BASE_COLOUR = "#20262e", "#5b6470", "#dfe3e8", "#ffffff", "#4a4f57"
FADED = "#8a939e"  # a candidate that must not ship, where speed or cost is drawn
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito: safe for colour-blind readers
MARKERS = ("s", "^", "D", "v", "P", "X")
WIDTH = 9.375  # inches: 900 px
Z95 = 1.96
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
THEME = {  # colour -> CSS variable with which a page may replace it
    INK: "--chart-ink",
    MUTED: "--chart-muted",
    GRID: "--chart-grid",
    PAPER: "--chart-paper",
    BASE_COLOUR: "--chart-base",
    FADED: "--chart-faded",
    **{colour: f"--chart-{place}" for place, colour in enumerate(PALETTE, 1)},
}
STYLE = {
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
    """The look of every figure; matplotlib's own settings come back afterwards."""
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
        return {"color": self.colour, "marker": self.marker, "markerfacecolor": face, "linestyle": style}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Base: always the same dark grey circle; candidates: a colour and a marker each, in the order given."""
    candidates = [name for name in names if name != BASE]
    drawn = {name: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(candidates)}
    return {BASE: Look(BASE_COLOUR, "o"), **drawn}


def _looks_of(comparison: Comparison) -> dict[str, Look]:
    """As `looks`, but a candidate that must not ship is grey, hollow and dashed: its speed and cost are no gain."""
    style = looks([candidate.name for candidate in comparison.candidates])
    for candidate in comparison.candidates:
        if candidate.verdict == "DO NOT SHIP":
            style[candidate.name] = replace(style[candidate.name], colour=FADED, hollow=True)
    return style


def to_svg(figure: Figure, themed: bool = False) -> str:
    """The figure as SVG without any outside reference; the same figure gives the same bytes.

    Args:
        figure: a figure of this module, or any other.
        themed: write colours as CSS variables with the colour as fallback, so that a page can have a dark mode. Leave
            it off for files that stand alone: editors such as Inkscape do not know CSS variables.
    """
    stream = io.StringIO()
    with house_style():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = re.sub(r"^.*?(?=<svg)", "", stream.getvalue(), count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family:[^;\"]*", f"font-family: {FONTS}", svg)
    svg = re.sub(r"(font: [\d. a-z]*px) '[^;\"]*", rf"\1 {FONTS}", svg)
    if themed:
        for colour, variable in THEME.items():
            svg = svg.replace(f": {colour}", f": var({variable}, {colour})")
    return svg


@house_style()
def accuracy_bars(results: dict[str, AccuracyResult]) -> Figure:
    """Score of every task and metric per model, with 95 % intervals (1.96 standard errors) and the chance level.

    Args:
        results: 'base' or candidate name -> its accuracy. Scores (0 to 1) are drawn in percent; metrics where lower is
            better, such as perplexity, get an axis each in their own unit.
    """
    scores = _metric_rows(results, higher_is_better=True)
    costs = _metric_rows(results, higher_is_better=False)
    rows = max(len(scores), 1)
    heights = [rows * 0.55, *[0.55] * len(costs)] if scores else [0.55] * len(costs)
    figure = _figure("How well does each model answer?", sum(heights) + 1.0 + 0.6 * len(heights))
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    if scores:
        _draw_scores(axes[0], scores, results, scale=100.0)
        _axis(axes[0], x="score in percent (higher is better); whiskers: 95 % interval; dotted: guessing")
    for axis, row in zip(axes[1 if scores else 0 :], costs, strict=True):
        _draw_scores(axis, [row], results, scale=1.0)
        _axis(axis, x=f"{row[1]} (lower is better)")
    return _finish(figure, results)


def _metric_rows(results: dict[str, AccuracyResult], higher_is_better: bool) -> list[tuple[str, str]]:
    """(task, metric) of all results in first-seen order, without repeats."""
    return list(
        dict.fromkeys(
            (task, name)
            for result in results.values()
            for task, measured in result.tasks.items()
            for name, metric in measured.metrics.items()
            if metric.higher_is_better == higher_is_better
        )
    )


def _draw_scores(axis: Axes, rows: Sequence[tuple[str, str]], results: dict[str, AccuracyResult], scale: float) -> None:
    style = looks(results)
    for place, (task, metric) in enumerate(rows):
        for offset, (name, result) in zip(_offsets(len(results)), results.items(), strict=True):
            measured = result.tasks.get(task)
            if measured is None or metric not in measured.metrics:
                continue
            figure = measured.metrics[metric]
            whisker = None if figure.stderr is None else Z95 * figure.stderr * scale
            _point(axis, figure.value * scale, place + offset, style[name], [whisker] * 2 if whisker else None)
            if measured.chance is not None and scale == 100.0:
                chance = measured.chance * scale
                axis.plot([chance] * 2, [place - 0.42, place + 0.42], color=MUTED, linestyle=":", linewidth=1.4)
    _rows(axis, [f"{task}\n{metric}" for task, metric in rows])


@house_style()
def load_curves(results: dict[str, PerformanceResult]) -> Figure:
    """TTFT p95, ITL p95, median request latency and output tokens/s against concurrency, one line per model.

    Lines go through the means over the repeats; whiskers reach from the lowest to the highest repeat. A hollow marker
    is a load point at which the load generator took CPU that the server needed. A load point that is not measured has
    no marker; a line at the bottom names it.
    """
    panels = (
        ("Time to first token (TTFT), p95, ms", lambda point: point.ttft_ms.p95),
        ("Inter-token latency (ITL), p95, ms", lambda point: point.itl_ms.p95),
        ("Request latency, median, s", lambda point: point.request_latency_s.p50),
        ("Output tokens/s, all requests together", lambda point: point.output_tokens_per_s),
    )
    figure = _figure("How does serving hold up under load?", 6.4)
    style = looks(results)
    for axis, (title, value) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, result in results.items():
            _load_curve(axis, result, value, style[name])
        _axis(axis, title=title, x="concurrent requests; whiskers: lowest to highest repeat")
        axis.set_xticks(sorted({point.concurrency for result in results.values() for point in result.points}))
        axis.set_ylim(0, axis.dataLim.ymax * 1.1 if axis.has_data() else 1)
    _name_unmeasured(figure, {name: list(result.unmeasured_loads()) for name, result in results.items()})
    return _finish(figure, results)


def _name_unmeasured(figure: Figure, loads: dict[str, list[int]]) -> None:
    """Writes at the bottom which load points of which model the chart lacks."""
    named = [f"{name} at {', '.join(map(str, found))}" for name, found in loads.items() if found]
    if named:
        figure.supxlabel(f"Not measured: {'; '.join(named)} concurrent requests", x=0.012, ha="left", fontsize=10)


def _load_curve(axis: Axes, result: PerformanceResult, value: Callable[[LoadPoint], float], look: Look) -> None:
    loads = result.measured_loads()
    if not loads:
        return
    repeats = [[value(point) for point in points] for points in loads.values()]
    means = [fmean(values) for values in repeats]
    spread = [
        [mean - min(values) for mean, values in zip(means, repeats, strict=True)],
        [max(values) - mean for mean, values in zip(means, repeats, strict=True)],
    ]
    axis.errorbar(list(loads), means, yerr=spread, color=look.colour, elinewidth=1.2, capsize=3)
    for load, mean in zip(loads, means, strict=True):
        limited = any(point.client_limited for point in loads[load])
        axis.plot(load, mean, color=look.colour, marker=look.marker, markerfacecolor=PAPER if limited else look.colour)


@house_style()
def accuracy_differences(comparison: Comparison) -> Figure:
    """Forest plot: candidate minus base per task with 95 % intervals and the margin, one axis per unit.

    Shown are the average over the deciding tasks and the primary metric of each task. A filled marker means that the
    whole interval is within the margin. Whiskers of the deciding tasks are simultaneous, as the verdict is.
    """
    panels = _panels(comparison)
    heights = [max(len(rows), 1) * (0.3 + 0.22 * len(comparison.candidates)) for rows in panels.values()]
    figure = _figure("How much accuracy does compression cost?", sum(heights) + 0.95 + 0.65 * len(heights))
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    names = [candidate.name for candidate in comparison.candidates]
    for axis, ((unit, higher_is_better), rows) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            for offset, candidate in zip(_offsets(len(names)), comparison.candidates, strict=True):
                if difference := main_differences(candidate).get(row):
                    _draw_difference(axis, difference, place, offset, looks(names)[candidate.name])
        axis.axvline(0, color=BASE_COLOUR, linewidth=1.4)
        _rows(axis, [_row_label(comparison, row) for row in rows])
        side = "right" if higher_is_better else "left"
        reading = f"{side} is better); dashed: margin, filled: within it"
        _axis(axis, x=f"candidate minus base, {unit_text(unit)} ({reading}")
    return _finish(figure, names)


def unit_text(unit: str) -> str:
    """A difference's unit in words."""
    return {"points": "percentage points", "percent": "percent of the base's value"}.get(unit, unit)


def within_margin(difference: Difference) -> bool:
    """Whether the verdict, or else the worse end of the interval, is inside the accepted drop."""
    if difference.adjusted_p is not None:
        return difference.adjusted_p[0] <= ALPHA
    if difference.higher_is_better:
        return difference.ci95[0] > -difference.limit
    return difference.ci95[1] < difference.limit


def main_differences(candidate: CandidateComparison) -> dict[tuple[str, str], Difference]:
    """(task, metric) -> difference: the average over the deciding tasks first, then each task's primary metric."""
    primaries = {
        (task, metric): metrics[metric]
        for task, metrics in candidate.accuracy.items()
        for metric in [primary_metric(metrics)]
    }
    return primaries if candidate.suite is None else {AVERAGE: candidate.suite, **primaries}


def _panels(comparison: Comparison) -> dict[tuple[str, bool], list[tuple[str, str]]]:
    """(unit, higher is better) -> its (task, metric) rows over all candidates, in first-seen order."""
    panels: dict[tuple[str, bool], dict[tuple[str, str], None]] = {}
    for candidate in comparison.candidates:
        for row, difference in main_differences(candidate).items():
            panels.setdefault((difference.unit, difference.higher_is_better), {})[row] = None
    return {panel: list(rows) for panel, rows in panels.items()}


def _row_label(comparison: Comparison, row: tuple[str, str]) -> str:
    shown = [found[row] for c in comparison.candidates if row in (found := main_differences(c))]
    near, weak = any(d.near_chance for d in shown), any(d.too_weak for d in shown)
    advisory = ", advisory" if any(d.tier == "advisory" for d in shown) else ""
    return f"{row[0]}\n{row[1]}{', near chance' if near else ', cannot decide' if weak else advisory}"


def _draw_difference(axis: Axes, difference: Difference, place: int, offset: float, look: Look) -> None:
    margin = -difference.limit if difference.higher_is_better else difference.limit
    axis.plot([margin] * 2, [place - 0.42, place + 0.42], color=MUTED, linestyle="--", linewidth=1.3)
    low, high = difference.shown_ci95
    whiskers = (max(difference.difference - low, 0.0), max(high - difference.difference, 0.0))
    _point(axis, difference.difference, place + offset, look, whiskers, filled=within_margin(difference))


@house_style()
def latency_throughput(comparison: Comparison) -> Figure:
    """Median request latency (s) against output tokens/s; a point per load point, labelled with its concurrency.

    A thick tick on the horizontal axis is the throughput of a model at its capacity within the latency objectives. A
    candidate that must not ship is grey, hollow and dashed, and has no tick.
    """
    figure = _figure("What does each model deliver at which waiting time?", 4.6)
    axis = figure.subplots()
    curves, style = _speed_curves(comparison), _looks_of(comparison)
    for name, points in curves.items():
        axis.plot([x for _, x, _ in points], [y for _, _, y in points], **style[name].line)
        for concurrency, x, y in points:
            axis.annotate(str(concurrency), (x, y), xytext=(0, 8), textcoords="offset points", ha="center", color=MUTED)
    ticks = _capacity_ticks(comparison)
    for name, x in ticks.items():
        tick = {"color": style[name].colour, "linewidth": 5, "solid_capstyle": "butt"}
        axis.plot([x, x], [0, 0.07], transform=axis.get_xaxis_transform(), **tick)
    meaning = "; thick ticks: capacity within the latency objectives" if ticks else ""
    _axis(axis, title="Request latency, median, s", x=f"output tokens/s; numbers: concurrent requests{meaning}")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    _name_unmeasured(figure, {c.name: [load.concurrency for load in c.unmeasured] for c in comparison.candidates})
    return _finish(figure, curves, style)


def _capacity_ticks(comparison: Comparison) -> dict[str, float]:
    """Model -> output tokens/s at capacity, without the candidates that must not ship."""
    models = {BASE: comparison.base} | {c.name: c for c in comparison.candidates if c.verdict != "DO NOT SHIP"}
    found = {name: model.capacity for name, model in models.items()}
    return {name: capacity.output_tokens_per_s for name, capacity in found.items() if capacity and capacity.streams}


@dataclass(frozen=True)
class Offer:
    """One model as a buyer sees it: average score in points, cost in US dollars per million output tokens."""

    name: str
    score: float
    ci95: tuple[float, float]
    cost: float
    verdict: Decision | None
    dominated_by: str | None

    @property
    def on_front(self) -> bool:
        """Whether no other model is surely more accurate and cheaper, and it may be bought at all."""
        return self.verdict != "DO NOT SHIP" and self.dominated_by is None


def offers(comparison: Comparison) -> list[Offer]:
    """The base, then the candidates, as far as their score and cost are known; empty without a candidate among them."""
    found = [
        Offer(c.name, c.suite.candidate, (c.suite.base + c.suite.ci95[0], c.suite.base + c.suite.ci95[1]),
              c.cost_per_million_output_tokens, c.verdict, c.dominated_by)
        for c in comparison.candidates
        if c.suite is not None and c.cost_per_million_output_tokens is not None
    ]  # fmt: skip
    cost = comparison.base.cost_per_million_output_tokens
    if not found or cost is None:
        return found
    score = next(c.suite.base for c in comparison.candidates if c.suite is not None)
    return [Offer(BASE, score, (score, score), cost, None, comparison.base.dominated_by), *found]


def _front(offers: Iterable[Offer]) -> list[tuple[float, float]]:
    """(cost, score) of the offers that score more than every cheaper one, as measured."""
    front: list[tuple[float, float]] = []
    for cost, minus_score in sorted((offer.cost, -offer.score) for offer in offers if offer.on_front):
        if not front or -minus_score > front[-1][1]:
            front.append((cost, -minus_score))
    return front


@house_style()
def accuracy_cost(comparison: Comparison) -> Figure:
    """Pareto chart: average score (points) against US dollars per million output tokens, with the front as a line.

    Whiskers are the interval of the difference from the base. A candidate that must not ship is grey and hollow, and
    not on the front; a dominated model is named so.
    """
    figure = _figure("Which model gives the most accuracy for the money?", 4.4)
    axis = figure.subplots()
    drawn, style = offers(comparison), _looks_of(comparison)
    axis.plot(
        *zip(*_front(drawn), strict=True), color=MUTED, linestyle=":", linewidth=1.4, drawstyle="steps-post", marker=""
    )
    for offer in drawn:
        look = style[offer.name]
        whiskers = [[max(offer.score - offer.ci95[0], 0.0)], [max(offer.ci95[1] - offer.score, 0.0)]]
        axis.errorbar(offer.cost, offer.score, yerr=whiskers, elinewidth=1.4, capsize=3, **look.line)
        note = ", do not ship" if look.hollow else f", dominated by {offer.dominated_by}" if offer.dominated_by else ""
        axis.annotate(f"{offer.name}{note}", (offer.cost, offer.score), xytext=(8, 7), textcoords="offset points")
    _axis(axis, title="Average score, points (up is better)",
          x="US dollars per million output tokens at capacity (left is better); dotted: the front")  # fmt: skip
    axis.set_xlim(0, max(offer.cost for offer in drawn) * 1.3)
    axis.margins(y=0.15)
    return _finish(figure)


def _speed_curves(comparison: Comparison) -> dict[str, list[tuple[int, float, float]]]:
    """Model -> (concurrency, output tokens/s, median request latency in s) of each load point."""
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for candidate in comparison.candidates:
        for point in candidate.performance:
            latency = point.request_latency_s_p50
            ours = (point.concurrency, point.base_output_tokens_per_s, latency[BASE])
            base = curves.setdefault(BASE, [])
            if ours not in base:
                base.append(ours)
            theirs = (point.concurrency, point.candidate_output_tokens_per_s, latency["candidate"])
            curves.setdefault(candidate.name, []).append(theirs)
    return curves


@house_style()
def size_and_memory(comparison: Comparison) -> Figure:
    """Bytes of the checkpoint and peak memory while serving, per model."""
    models = {BASE: comparison.base, **{candidate.name: candidate for candidate in comparison.candidates}}
    figure = _figure("How much smaller is it, on disk and while serving?", 1.5 + 0.42 * len(models))
    left, right = figure.subplots(1, 2)
    _byte_bars(left, {name: model.size_bytes for name, model in models.items()}, "Checkpoint on disk")
    _byte_bars(right, {name: model.memory.peak_bytes for name, model in models.items()}, "Peak memory while serving")
    right.set_yticklabels([])
    return _finish(figure)


@house_style()
def sizes(sizes: dict[str, int]) -> Figure:
    """Bytes per model, the first drawn as the base if it is called 'base'."""
    figure = _figure("How much smaller are the checkpoints?", 1.5 + 0.42 * len(sizes))
    _byte_bars(figure.subplots(), dict(sizes), "Checkpoint on disk")
    return _finish(figure)


@house_style()
def token_lengths(lengths: Sequence[int]) -> Figure:
    """Histogram of tokens per text, with the median."""
    figure = _figure("How long are the texts?", 3.2)
    axis = figure.subplots()
    axis.hist(lengths, bins=min(30, max(5, len(set(lengths)))), color=PALETTE[0], edgecolor=PAPER)
    middle = median(lengths)
    axis.axvline(middle, color=BASE_COLOUR, linestyle="--", linewidth=1.4)
    axis.yaxis.get_major_locator().set_params(integer=True)
    _axis(axis, title="number of texts", x=f"tokens per text; dashed: median, {middle:g} tokens")
    return _finish(figure)


def _byte_bars(axis: Axes, values: dict[str, int | None], title: str) -> None:
    """Draws a bar for the bytes of each model, in MB or GB; none for a model whose bytes are not known."""
    known = [value for value in values.values() if value is not None]
    scale, unit = (1e9, "GB") if known and max(known) >= 1e9 else (1e6, "MB")
    style = looks(values)
    for place, (name, value) in enumerate(values.items()):
        axis.barh(place, (value or 0) / scale, height=0.62, color=style[name].colour)
        text = "not recorded" if value is None else byte_text(value)
        axis.annotate(text, ((value or 0) / scale, place), xytext=(5, 0), textcoords="offset points", va="center")
    _rows(axis, list(values))
    _axis(axis, title=title, x=unit)
    axis.set_xlim(0, max(known, default=scale) / scale * 1.25)


def _figure(title: str, height: float) -> Figure:
    """A figure of 900 px width that shows itself as SVG in a notebook; `title` is the question it answers."""
    from matplotlib.figure import Figure

    class Chart(Figure):
        def _repr_svg_(self) -> str:
            return to_svg(self)

    figure = Chart(figsize=(WIDTH, height), layout="constrained")
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold")
    return figure


def _finish(figure: Figure, names: Iterable[str] = (), style: dict[str, Look] | None = None) -> Figure:
    """Puts the models' names under the title and fixes the layout, so that every drawing is the same."""
    from matplotlib.lines import Line2D

    height, style = figure.get_figheight(), style or looks(names)
    labels = {name: f"{name} (do not ship)" if style[name].hollow else name for name in names}
    handles = [Line2D([], [], label=label, **style[name].line) for name, label in labels.items()]
    if handles:
        place = (0.004, 1 - 0.34 / height)
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=4, handlelength=1.8)
    top = 0.4 + 0.3 * -(-len(handles) // 4)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, hspace=0.06, wspace=0.05, rect=(0, 0, 1, 1 - top / height))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _axis(axis: Axes, x: str, title: str = "") -> None:
    """Writes below the axis what it shows, and its title above."""
    axis.set_xlabel(x, loc="left")
    if title:
        axis.set_title(title, loc="left", fontsize=10, color=MUTED)


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    """Makes the vertical axis a list of names, first on top."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def _offsets(count: int) -> list[float]:
    """Vertical places of `count` models within one row."""
    return [(place - (count - 1) / 2) * 0.6 / count for place in range(count)]


def _point(axis: Axes, x: float, y: float, look: Look, whiskers: Any = None, filled: bool = True) -> None:
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
