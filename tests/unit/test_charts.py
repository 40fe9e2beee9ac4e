"""Charts: what is drawn is what was measured, and an SVG is self-contained and repeatable."""

import re
import xml.etree.ElementTree as ET

import factories
import pytest

pytest.importorskip("matplotlib")

from model_serve_flow import charts

COMPARISON = factories.sample_comparison()
NAMES = ("base", "w8a8-int8", "w4a16-int4")
FIGURES = {
    "accuracy_bars": lambda: charts.accuracy_bars({name: factories.accuracy(name) for name in NAMES}),
    "load_curves": lambda: charts.load_curves({name: factories.performance(name) for name in NAMES}),
    "accuracy_differences": lambda: charts.accuracy_differences(COMPARISON),
    "latency_throughput": lambda: charts.latency_throughput(COMPARISON),
    "size_and_memory": lambda: charts.size_and_memory(COMPARISON),
    "sizes": lambda: charts.sizes({"base": 269_060_552, "w8a8-int8": 160_421_888}),
    "token_lengths": lambda: charts.token_lengths([12, 40, 40, 77, 512]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_svg_is_wellformed_self_contained_and_the_same_every_time(name):
    figure = FIGURES[name]()
    svg = charts.to_svg(figure)
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    addresses = re.findall(r"(?:href|src)=\"([^\"]*)\"|url\(([^)]*)\)", svg)
    assert all((a or b).startswith("#") for a, b in addresses)
    assert "<!DOCTYPE" not in svg and "metadata" not in svg
    assert svg == charts.to_svg(figure) == charts.to_svg(FIGURES[name]())


@pytest.mark.parametrize("name", FIGURES)
def test_title_is_a_question_and_every_panel_names_its_axis(name):
    figure = FIGURES[name]()
    assert figure.texts[0].get_text().endswith("?")
    assert all(axis.get_xlabel() for axis in figure.axes)
    assert figure.get_figwidth() * 96 == 900


def test_themed_svg_lets_a_page_replace_every_colour():
    svg = charts.to_svg(FIGURES["accuracy_differences"](), themed=True)
    plain = [colour for colour in re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg) if colour in charts.THEME]
    assert plain == []
    assert "var(--chart-1, #0072b2)" in svg


def test_base_is_always_the_same_grey_and_candidates_differ_in_colour_and_marker():
    assert charts.looks(["w8a8-int8"])["base"] == charts.looks(NAMES)["base"] == charts.Look("#4a4f57", "o")
    drawn = list(charts.looks(NAMES).values())
    assert len({look.colour for look in drawn}) == len({look.marker for look in drawn}) == 3


def test_forest_plot_draws_the_differences_and_hollow_markers_beyond_the_margin():
    points = [
        (round(float(line.get_xdata()[0]), 6), line.get_markerfacecolor() != charts.PAPER)
        for axis in charts.accuracy_differences(COMPARISON).axes
        for line in axis.lines
        if line.get_marker() in charts.MARKERS
    ]
    wanted = [
        (round(difference.difference, 6), charts.within_margin(difference))
        for candidate in COMPARISON.candidates
        for difference in charts.main_differences(candidate).values()
    ]
    assert sorted(points) == sorted(wanted)
    assert {filled for _, filled in wanted} == {True, False}


@pytest.mark.parametrize(
    ("interval", "higher_is_better", "within"),
    [((-4.9, 1), True, True), ((-5.1, 1), True, False), ((-9, 4.9), False, True), ((-9, 5.1), False, False)],
)
def test_within_margin_looks_at_the_worse_end(interval, higher_is_better, within):
    difference = (
        COMPARISON.candidates[0]
        .accuracy["word_analogies"]["acc"]
        .model_copy(update={"ci95": interval, "higher_is_better": higher_is_better, "margin": 5.0})
    )
    assert charts.within_margin(difference) is within


def test_curves_take_their_points_from_the_results():
    axes = charts.load_curves({name: factories.performance(name) for name in NAMES}).axes
    drawn = [float(y) for y in axes[3].lines[1].get_ydata()]
    assert drawn == [point.output_tokens_per_s for point in factories.performance("w8a8-int8").points]
    line = charts.latency_throughput(COMPARISON).axes[0].lines[0]
    point = COMPARISON.candidates[0].performance[0]
    wanted = (point.base_output_tokens_per_s, point.request_latency_s_p50["base"])
    assert (line.get_xdata()[0], line.get_ydata()[0]) == wanted


def test_unknown_memory_is_said_not_drawn_as_zero():
    base = COMPARISON.base.model_copy(update={"memory": COMPARISON.base.memory.model_copy(update={"peak_bytes": None})})
    svg = charts.to_svg(charts.size_and_memory(COMPARISON.model_copy(update={"base": base})))
    assert "not recorded" in svg


def test_names_are_text_not_markup():
    svg = charts.to_svg(charts.sizes({"base": 5, "<script>$x$": 3}))
    assert "&lt;script&gt;$x$" in svg and "<script" not in svg


@pytest.mark.parametrize(("count", "text"), [(269_060_552, "269 MB"), (16_060_522_496, "16.1 GB"), (4e6, "4.0 MB")])
def test_byte_text(count, text):
    assert charts.byte_text(count) == text
