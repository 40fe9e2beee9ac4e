"""Charts: what is drawn is what was measured, and an SVG is self-contained and repeatable."""

import functools
import re
import xml.etree.ElementTree as ET
from statistics import fmean

import factories
import pytest

pytest.importorskip("matplotlib")

from model_serve_flow.compare import reading
from model_serve_flow.report import chart_style, charts, measurement_charts
from model_serve_flow.report.formatting import byte_text

COMPARISON = factories.sample_comparison()
NAMES = ("base", "w8a8-int8", "w4a16-int4")
FIGURES = {
    "accuracy_bars": lambda: measurement_charts.accuracy_bars(
        {name: factories.accuracy(name) for name in NAMES}
    ),
    "load_curves": lambda: measurement_charts.load_curves(
        {name: factories.performance(name) for name in NAMES}
    ),
    "accuracy_differences": lambda: charts.accuracy_differences(COMPARISON),
    "latency_throughput": lambda: charts.latency_throughput(COMPARISON),
    "accuracy_cost": lambda: charts.accuracy_cost(COMPARISON),
    "size_and_memory": lambda: charts.size_and_memory(COMPARISON),
    "sizes": lambda: measurement_charts.sizes({"base": 269_060_552, "w8a8-int8": 160_421_888}),
    "token_lengths": lambda: measurement_charts.token_lengths([12, 40, 40, 77, 512]),
}


@functools.cache
def drawn(name):
    return FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_svg_is_wellformed_self_contained_and_the_same_every_time(name):
    figure = drawn(name)
    svg = chart_style.to_svg(figure)
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    addresses = re.findall(r"(?:href|src)=\"([^\"]*)\"|url\(([^)]*)\)", svg)
    assert all((a or b).startswith("#") for a, b in addresses)
    assert "<!DOCTYPE" not in svg and "metadata" not in svg
    assert svg == chart_style.to_svg(figure) == chart_style.to_svg(FIGURES[name]())


@pytest.mark.parametrize("name", FIGURES)
def test_title_is_a_question_and_every_panel_names_its_axis(name):
    figure = drawn(name)
    assert figure.texts[0].get_text().endswith("?")
    assert all(axis.get_xlabel() for axis in figure.axes)
    assert figure.get_figwidth() * 96 == 900


def test_themed_svg_lets_a_page_replace_every_colour():
    svg = chart_style.to_svg(FIGURES["accuracy_differences"](), themed=True)
    plain = [
        colour
        for colour in re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg)
        if colour in chart_style.THEME
    ]
    assert plain == []
    assert "var(--chart-1, #0072b2)" in svg


def test_base_is_always_the_same_grey_and_candidates_differ_in_colour_and_marker():
    one, both = chart_style.looks(["w8a8-int8"]), chart_style.looks(NAMES)
    assert one["base"] == both["base"] == chart_style.Look("#4a4f57", "o")
    drawn = list(both.values())
    assert len({look.colour for look in drawn}) == len({look.marker for look in drawn}) == 3


def test_forest_plot_draws_the_differences_and_hollow_markers_beyond_the_margin():
    points = [
        (round(float(line.get_xdata()[0]), 6), line.get_markerfacecolor() != chart_style.PAPER)
        for axis in charts.accuracy_differences(COMPARISON).axes
        for line in axis.lines
        if line.get_marker() in chart_style.MARKERS
    ]
    wanted = [
        (round(difference.difference, 6), reading.within_margin(difference))
        for candidate in COMPARISON.candidates
        for difference in reading.main_differences(candidate).values()
    ]
    assert sorted(points) == sorted(wanted)
    assert {filled for _, filled in wanted} == {True, False}


@pytest.mark.parametrize(
    ("interval", "higher_is_better", "within"),
    [
        ((-4.9, 1), True, True),
        ((-5.1, 1), True, False),
        ((-9, 4.9), False, True),
        ((-9, 5.1), False, False),
    ],
)
def test_within_margin_looks_at_the_worse_end(interval, higher_is_better, within):
    difference = (
        COMPARISON.candidates[0]
        .accuracy["word_analogies"]["acc"]
        .model_copy(
            update={
                "ci95": interval,
                "higher_is_better": higher_is_better,
                "margin": 5.0,
                "adjusted_p": None,
            }
        )
    )
    assert reading.within_margin(difference) is within


def test_curves_take_their_points_from_the_results():
    axes = measurement_charts.load_curves(
        {name: factories.performance(name) for name in NAMES}
    ).axes
    marks = [line for line in axes[3].lines if line.get_marker() == chart_style.MARKERS[0]]
    points = factories.performance("w8a8-int8").points
    means = [
        fmean(p.output_tokens_per_s for p in points if p.concurrency == load) for load in (1, 4, 8)
    ]
    assert [float(line.get_ydata()[0]) for line in marks] == pytest.approx(means)
    line = charts.latency_throughput(COMPARISON).axes[0].lines[0]
    point = COMPARISON.candidates[0].performance[0]
    wanted = (point.base_output_tokens_per_s, point.request_latency_s_p50["base"])
    assert (line.get_xdata()[0], line.get_ydata()[0]) == wanted


def drawn_lines(figure):
    """(colour, hollow, xs, ys) of everything drawn with a marker."""
    lines = [
        line for line in figure.axes[0].lines if line.get_marker() in ("o", *chart_style.MARKERS)
    ]
    return [
        (x.get_color(), x.get_markerfacecolor() == chart_style.PAPER, x.get_xdata(), x.get_ydata())
        for x in lines
    ]


@pytest.mark.parametrize("draw", [charts.latency_throughput, charts.accuracy_cost])
def test_only_a_candidate_that_must_not_ship_is_grey_and_hollow(draw):
    lines = {(colour, hollow) for colour, hollow, _, _ in drawn_lines(draw(COMPARISON))}
    assert lines == {
        (chart_style.BASE_COLOUR, False),
        (chart_style.PALETTE[0], False),
        (chart_style.FADED, True),
    }


def test_capacity_is_marked_for_models_that_may_be_used():
    ticks = [
        line
        for line in charts.latency_throughput(COMPARISON).axes[0].lines
        if line.get_linewidth() == 5
    ]
    wanted = [COMPARISON.base.capacity, COMPARISON.candidates[0].capacity]
    assert [line.get_xdata()[0] for line in ticks] == [
        capacity.output_tokens_per_s for capacity in wanted
    ]


def test_pareto_chart_has_cost_against_score_and_leaves_a_lossy_candidate_off_the_front():
    figure = charts.accuracy_cost(COMPARISON)
    points = {(float(x[0]), float(y[0])) for _, _, x, y in drawn_lines(figure)}
    ships, fails = COMPARISON.candidates
    base = (COMPARISON.base.cost_per_million_output_tokens, ships.suite.base)
    theirs = [(c.cost_per_million_output_tokens, c.suite.candidate) for c in (ships, fails)]
    assert points == {base, *theirs}
    front = figure.axes[0].lines[0]
    assert sorted(zip(front.get_xdata(), front.get_ydata(), strict=True)) == sorted(
        {base, theirs[0]}
    )
    assert "w4a16-int4, do not ship" in [text.get_text() for text in figure.axes[0].texts]


def test_a_dominated_model_is_named_so():
    worse = COMPARISON.base.model_copy(update={"dominated_by": "w8a8-int8"})
    better = COMPARISON.model_copy(update={"base": worse})
    assert {offer.name: offer.dominated_by for offer in reading.offers(better)}[
        "base"
    ] == "w8a8-int8"
    texts = [text.get_text() for text in charts.accuracy_cost(better).axes[0].texts]
    assert "base, dominated by w8a8-int8" in texts


def test_without_a_price_nothing_is_offered():
    free = {"cost_per_million_output_tokens": None}
    candidates = tuple(candidate.model_copy(update=free) for candidate in COMPARISON.candidates)
    assert reading.offers(COMPARISON.model_copy(update={"candidates": candidates})) == []


def test_unknown_memory_is_said_not_drawn_as_zero():
    base = COMPARISON.base.model_copy(
        update={"memory": COMPARISON.base.memory.model_copy(update={"peak_bytes": None})}
    )
    svg = chart_style.to_svg(charts.size_and_memory(COMPARISON.model_copy(update={"base": base})))
    assert "not recorded" in svg


def test_names_are_text_not_markup():
    svg = chart_style.to_svg(measurement_charts.sizes({"base": 5, "<script>$x$": 3}))
    assert "&lt;script&gt;$x$" in svg and "<script" not in svg


@pytest.mark.parametrize(
    ("count", "text"), [(269_060_552, "269 MB"), (16_060_522_496, "16.1 GB"), (4e6, "4.00 MB")]
)
def test_byte_text(count, text):
    assert byte_text(count) == text
