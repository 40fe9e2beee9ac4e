"""Draws the charts of a comparison: matplotlib figures that show themselves in a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from model_serve_flow.compare.reading import (
    Offer,
    main_differences,
    must_not_ship,
    offers,
    within_margin,
)
from model_serve_flow.flow.results.compared import Comparison, Difference
from model_serve_flow.flow.results.measured import BASE
from model_serve_flow.report.chart_style import (
    BASE_COLOUR,
    FADED,
    MUTED,
    Look,
    byte_bars,
    draw_point,
    finish_figure,
    house_style,
    label_axis,
    label_rows,
    looks,
    name_unmeasured,
    new_figure,
    row_offsets,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _looks_of(comparison: Comparison) -> dict[str, Look]:
    """Gives each model its look; a candidate that must not ship is grey, hollow and dashed.

    The speed and cost of such a candidate are no gain.
    """
    style = looks([candidate.name for candidate in comparison.candidates])
    for candidate in comparison.candidates:
        if must_not_ship(candidate):
            style[candidate.name] = replace(style[candidate.name], colour=FADED, hollow=True)
    return style


@house_style()
def accuracy_differences(comparison: Comparison) -> Figure:
    """Draws a forest plot: candidate minus base per task, with 95 % intervals and the margin.

    There is one axis per unit. The rows are the average over the deciding tasks and the primary
    metric of each task. A filled marker means that the loss is surely within the margin. The
    whiskers of the deciding tasks are simultaneous intervals, as in the verdict.
    """
    panels = _panels(comparison)
    heights = [
        max(len(rows), 1) * (0.3 + 0.22 * len(comparison.candidates)) for rows in panels.values()
    ]
    figure = new_figure(
        "How much accuracy does compression cost?", sum(heights) + 0.95 + 0.65 * len(heights)
    )
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    names = [candidate.name for candidate in comparison.candidates]
    for axis, ((unit, higher_is_better), rows) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            for offset, candidate in zip(
                row_offsets(len(names)), comparison.candidates, strict=True
            ):
                if difference := main_differences(candidate).get(row):
                    _draw_difference(axis, difference, place, offset, looks(names)[candidate.name])
        axis.axvline(0, color=BASE_COLOUR, linewidth=1.4)
        label_rows(axis, [_row_label(comparison, row) for row in rows])
        side = "right" if higher_is_better else "left"
        reading = f"{side} is better); dashed: margin, filled: within it"
        label_axis(axis, x=f"candidate minus base, {unit_text(unit)} ({reading}")
    return finish_figure(figure, names)


def unit_text(unit: str) -> str:
    """Writes a difference's unit in words."""
    return {"points": "percentage points", "percent": "percent of the base's value"}.get(unit, unit)


def _panels(comparison: Comparison) -> dict[tuple[str, bool], list[tuple[str, str]]]:
    """Returns (unit, higher is better) -> its (task, metric) rows over all candidates.

    The order is the order of first appearance.
    """
    panels: dict[tuple[str, bool], dict[tuple[str, str], None]] = {}
    for candidate in comparison.candidates:
        for row, difference in main_differences(candidate).items():
            panels.setdefault((difference.unit, difference.higher_is_better), {})[row] = None
    return {panel: list(rows) for panel, rows in panels.items()}


def _row_label(comparison: Comparison, row: tuple[str, str]) -> str:
    shown = [found[row] for c in comparison.candidates if row in (found := main_differences(c))]
    near, weak = any(d.near_chance for d in shown), any(d.too_weak for d in shown)
    advisory = ", advisory" if any(d.tier == "advisory" for d in shown) else ""
    return (
        f"{row[0]}\n{row[1]}{', near chance' if near else ', cannot decide' if weak else advisory}"
    )


def _draw_difference(
    axis: Axes, difference: Difference, place: int, offset: float, look: Look
) -> None:
    margin = -difference.limit if difference.higher_is_better else difference.limit
    axis.plot(
        [margin] * 2, [place - 0.42, place + 0.42], color=MUTED, linestyle="--", linewidth=1.3
    )
    low, high = difference.shown_ci95
    whiskers = (max(difference.difference - low, 0.0), max(high - difference.difference, 0.0))
    draw_point(
        axis,
        difference.difference,
        place + offset,
        look,
        whiskers,
        filled=within_margin(difference),
    )


@house_style()
def latency_throughput(comparison: Comparison) -> Figure:
    """Draws median request latency (s) against output tokens/s, with a mark per load point.

    Each mark is labelled with its concurrency. A thick tick on the horizontal axis is the
    throughput of a model at its capacity within the latency objectives. A candidate that must not
    ship is grey, hollow and dashed, and has no tick.
    """
    figure = new_figure("What does each model deliver at which waiting time?", 4.6)
    axis = figure.subplots()
    curves, style = _speed_curves(comparison), _looks_of(comparison)
    for name, points in curves.items():
        axis.plot([x for _, x, _ in points], [y for _, _, y in points], **style[name].line)
        for concurrency, x, y in points:
            axis.annotate(
                str(concurrency),
                (x, y),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                color=MUTED,
            )
    ticks = _capacity_ticks(comparison)
    for name, x in ticks.items():
        tick: dict[str, Any] = {
            "color": style[name].colour,
            "linewidth": 5,
            "solid_capstyle": "butt",
        }
        axis.plot([x, x], [0, 0.07], transform=axis.get_xaxis_transform(), **tick)
    meaning = "; thick ticks: capacity within the latency objectives" if ticks else ""
    label_axis(
        axis,
        title="Request latency, median, s",
        x=f"output tokens/s; numbers: concurrent requests{meaning}",
    )
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    name_unmeasured(
        figure, {c.name: [load.concurrency for load in c.unmeasured] for c in comparison.candidates}
    )
    return finish_figure(figure, curves, style)


def _capacity_ticks(comparison: Comparison) -> dict[str, float]:
    """Returns model -> output tokens/s at capacity, without the candidates that must not ship."""
    models = {BASE: comparison.base} | {
        c.name: c for c in comparison.candidates if not must_not_ship(c)
    }
    found = {name: model.capacity for name, model in models.items()}
    return {
        name: capacity.output_tokens_per_s
        for name, capacity in found.items()
        if capacity and capacity.streams
    }


def _front(offers: Iterable[Offer]) -> list[tuple[float, float]]:
    """Lists (cost, score) of the offers that score more than every cheaper offer, by estimate."""
    front: list[tuple[float, float]] = []
    for cost, minus_score in sorted(
        (offer.cost, -offer.score) for offer in offers if offer.on_front
    ):
        if not front or -minus_score > front[-1][1]:
            front.append((cost, -minus_score))
    return front


@house_style()
def accuracy_cost(comparison: Comparison) -> Figure:
    """Draws a Pareto chart: average score (points) against US dollars per million output tokens.

    The front is a dotted line. Whiskers are the interval of the difference from the base. A
    candidate that must not ship is grey and hollow, and not on the front. The label of a dominated
    model names the model that dominates it.
    """
    figure = new_figure("Which model gives the most accuracy for the money?", 4.4)
    axis = figure.subplots()
    drawn, style = offers(comparison), _looks_of(comparison)
    axis.plot(
        *zip(*_front(drawn), strict=True),
        color=MUTED,
        linestyle=":",
        linewidth=1.4,
        drawstyle="steps-post",
        marker="",
    )
    for offer in drawn:
        look = style[offer.name]
        whiskers = [
            [max(offer.score - offer.ci95[0], 0.0)],
            [max(offer.ci95[1] - offer.score, 0.0)],
        ]
        axis.errorbar(
            offer.cost, offer.score, yerr=whiskers, elinewidth=1.4, capsize=3, **look.line
        )
        note = (
            ", do not ship"
            if look.hollow
            else f", dominated by {offer.dominated_by}"
            if offer.dominated_by
            else ""
        )
        axis.annotate(
            f"{offer.name}{note}",
            (offer.cost, offer.score),
            xytext=(8, 7),
            textcoords="offset points",
        )
    label_axis(axis, title="Average score, points (up is better)",
          x="US dollars per million output tokens at capacity (left is better); dotted: the "
            "front")  # fmt: skip
    axis.set_xlim(0, max(offer.cost for offer in drawn) * 1.3)
    axis.margins(y=0.15)
    return finish_figure(figure)


def _speed_curves(comparison: Comparison) -> dict[str, list[tuple[int, float, float]]]:
    """Returns model -> its load points.

    A load point is (concurrency, output tokens/s, median request latency in s).
    """
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
    """Draws bytes of the checkpoint and peak memory while serving, per model."""
    models = {
        BASE: comparison.base,
        **{candidate.name: candidate for candidate in comparison.candidates},
    }
    figure = new_figure(
        "How much smaller is it, on disk and while serving?", 1.5 + 0.42 * len(models)
    )
    left, right = figure.subplots(1, 2)
    byte_bars(
        left, {name: model.size_bytes for name, model in models.items()}, "Checkpoint on disk"
    )
    byte_bars(
        right,
        {name: model.memory.peak_bytes for name, model in models.items()},
        "Peak memory while serving",
    )
    right.set_yticklabels([])
    return finish_figure(figure)
