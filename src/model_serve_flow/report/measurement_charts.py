"""Draws the charts of one measurement: scores, load curves, sizes, lengths of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from model_serve_flow.flow.results.measured import AccuracyResult, LoadPoint, PerformanceResult
from model_serve_flow.report.chart_style import (
    BASE_COLOUR,
    MUTED,
    PALETTE,
    PAPER,
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

Z95 = 1.96


@house_style()
def accuracy_bars(results: dict[str, AccuracyResult]) -> Figure:
    """Draws the score of every task and metric per model, with 95 % intervals and the chance level.

    The intervals are 1.96 standard errors to either side.

    Args:
        results: 'base' or candidate name -> accuracy result. Scores (0 to 1) are drawn in percent.
            Each metric where lower is better, such as perplexity, gets its own axis in its own
            unit.
    """
    scores = _metric_rows(results, higher_is_better=True)
    costs = _metric_rows(results, higher_is_better=False)
    rows = max(len(scores), 1)
    heights = [rows * 0.55, *[0.55] * len(costs)] if scores else [0.55] * len(costs)
    figure = new_figure("How well does each model answer?", sum(heights) + 1.0 + 0.6 * len(heights))
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    if scores:
        _draw_scores(axes[0], scores, results, scale=100.0)
        label_axis(
            axes[0],
            x="score in percent (higher is better); whiskers: 95 % interval; dotted: guessing",
        )
    for axis, row in zip(axes[1 if scores else 0 :], costs, strict=True):
        _draw_scores(axis, [row], results, scale=1.0)
        label_axis(axis, x=f"{row[1]} (lower is better)")
    return finish_figure(figure, results)


def _metric_rows(
    results: dict[str, AccuracyResult], higher_is_better: bool
) -> list[tuple[str, str]]:
    """Lists (task, metric) of all results in order of first appearance, without repeats."""
    return list(
        dict.fromkeys(
            (task, name)
            for result in results.values()
            for task, measured in result.tasks.items()
            for name, metric in measured.metrics.items()
            if metric.higher_is_better == higher_is_better
        )
    )


def _draw_scores(
    axis: Axes, rows: Sequence[tuple[str, str]], results: dict[str, AccuracyResult], scale: float
) -> None:
    style = looks(results)
    for place, (task, metric) in enumerate(rows):
        for offset, (name, result) in zip(row_offsets(len(results)), results.items(), strict=True):
            measured = result.tasks.get(task)
            if measured is None or metric not in measured.metrics:
                continue
            figure = measured.metrics[metric]
            whisker = None if figure.stderr is None else Z95 * figure.stderr * scale
            draw_point(
                axis,
                figure.value * scale,
                place + offset,
                style[name],
                [whisker] * 2 if whisker else None,
            )
            if measured.chance is not None and scale == 100.0:
                chance = measured.chance * scale
                axis.plot(
                    [chance] * 2,
                    [place - 0.42, place + 0.42],
                    color=MUTED,
                    linestyle=":",
                    linewidth=1.4,
                )
    label_rows(axis, [f"{task}\n{metric}" for task, metric in rows])


@house_style()
def load_curves(results: dict[str, PerformanceResult]) -> Figure:
    """Draws TTFT p95, ITL p95, median request latency and output tokens/s against concurrency.

    There is one line per model. Lines go through the means over the repeats; whiskers reach from
    the lowest to the highest repeat. A hollow marker is a load point at which the load generator
    took CPU that the server needed. A load point that is not measured has no marker; a line of text
    at the bottom names it.
    """
    panels = (
        ("Time to first token (TTFT), p95, ms", lambda point: point.ttft_ms.p95),
        ("Inter-token latency (ITL), p95, ms", lambda point: point.itl_ms.p95),
        ("Request latency, median, s", lambda point: point.request_latency_s.p50),
        ("Output tokens/s, all requests together", lambda point: point.output_tokens_per_s),
    )
    figure = new_figure("How does serving hold up under load?", 6.4)
    style = looks(results)
    for axis, (title, value) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, result in results.items():
            _load_curve(axis, result, value, style[name])
        label_axis(axis, title=title, x="concurrent requests; whiskers: lowest to highest repeat")
        axis.set_xticks(
            sorted({point.concurrency for result in results.values() for point in result.points})
        )
        axis.set_ylim(0, axis.dataLim.ymax * 1.1 if axis.has_data() else 1)
    name_unmeasured(
        figure, {name: list(result.unmeasured_loads()) for name, result in results.items()}
    )
    return finish_figure(figure, results)


def _load_curve(
    axis: Axes, result: PerformanceResult, value: Callable[[LoadPoint], float], look: Look
) -> None:
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
        axis.plot(
            load,
            mean,
            color=look.colour,
            marker=look.marker,
            markerfacecolor=PAPER if limited else look.colour,
        )


@house_style()
def sizes(sizes: dict[str, int]) -> Figure:
    """Draws the bytes of each model."""
    figure = new_figure("How much smaller are the checkpoints?", 1.5 + 0.42 * len(sizes))
    byte_bars(figure.subplots(), dict(sizes), "Checkpoint on disk")
    return finish_figure(figure)


@house_style()
def token_lengths(lengths: Sequence[int]) -> Figure:
    """Draws a histogram of tokens per text, with the median."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure("How long are the texts?", 3.2)
    axis = figure.subplots()
    axis.hist(lengths, bins=min(30, max(5, len(set(lengths)))), color=PALETTE[0], edgecolor=PAPER)
    middle = median(lengths)
    axis.axvline(middle, color=BASE_COLOUR, linestyle="--", linewidth=1.4)
    locator = axis.yaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)
    locator.set_params(integer=True)
    label_axis(
        axis, title="number of texts", x=f"tokens per text; dashed: median, {middle:g} tokens"
    )
    return finish_figure(figure)
