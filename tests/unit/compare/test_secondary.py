"""Secondary margins warn, or withhold SHIP where the profile says so; speed is FASTER,
NOT FASTER or UNSURE.
"""

import dataclasses
import math

import factories
import numpy as np
import pytest

from model_serve_flow.compare.comparison import compare
from model_serve_flow.compare.margins import check_seal, seal_margins
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.secondary import gross_loss, speed_verdict
from model_serve_flow.compare.stats.paired import wilson_interval
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Secondary
from model_serve_flow.report.tables import accuracy_table, summary


def point(speedup, low=None, high=None, concurrency=1):
    (first, *_) = factories.sample_comparison().candidates[0].performance
    bounds = None if low is None else (low, high)
    update = {"speedup": speedup, "speedup_ci95": bounds, "concurrency": concurrency}
    return first.model_copy(update=update)


@pytest.mark.parametrize(
    ("points", "margin", "reading"),
    [
        ([(1.3, 1.2, 1.4)], 1.0, "FASTER"),
        ([(1.3, 1.2, 1.4)], 1.25, "UNSURE"),
        ([(1.02, 0.9, 1.15)], 1.0, "UNSURE"),
        ([(0.6, 0.5, 0.7)], 1.0, "NOT FASTER"),
        ([(1.3, 1.2, 1.4), (0.5, 0.4, 0.6)], 1.0, "NOT FASTER"),
        ([(1.05, 0.97, 1.14)] * 4, 1.0, "FASTER"),  # what one load cannot show, four together do
        ([(1.3,), (1.3, 1.2, 1.4)], 1.0, "UNSURE"),
    ],
)
def test_speed_is_judged_over_the_load_points(points, margin, reading):
    found = speed_verdict(Secondary(speedup=margin), [point(*one) for one in points])
    assert found.reading == reading
    expected = math.exp(np.mean([math.log(one[0]) for one in points]))
    assert (found.speedup, found.margin) == (pytest.approx(expected), margin)
    assert speed_verdict(Secondary(), []) is None


def test_the_interval_of_one_load_point_is_its_own():
    found = speed_verdict(Secondary(), [point(1.3, 1.2, 1.4)])
    assert found.ci95 == pytest.approx((1.2, 1.4))


def test_gross_loss_is_of_the_right_answers_and_gains_do_not_make_up_for_it():
    pairs = pair("q", factories.choice_task(400, 300), factories.choice_task(400, 300, 24, 24))
    found, expected = gross_loss(pairs, "acc"), wilson_interval(24, 300)
    assert (found.percent, found.right) == (8.0, 300)
    assert found.ci95 == pytest.approx((100 * expected.low, 100 * expected.high))
    assert (
        gross_loss(pair("q", factories.choice_task(40, 0), factories.choice_task(40, 3)), "acc")
        is None
    )


def test_gross_loss_in_clusters_is_wider():
    def clustered(i):
        return {"groups": {"subject": f"s{i // 20}"}}

    right = np.ones(400, bool)
    lost = right.copy()
    lost[:40] = False  # two subjects of twenty fail altogether
    pairs = pair(
        "q",
        factories.scored_task(right, asks=clustered),
        factories.scored_task(lost, asks=clustered),
    )
    found, single = gross_loss(pairs, "acc"), wilson_interval(40, 400)
    assert found.percent == 10
    assert found.ci95[1] - found.ci95[0] > 200 * (single.high - single.low)


def compared(**secondary):
    config = factories.config()
    margins = config.verdict.model_copy(update={"secondary": Secondary(**secondary)})
    config = config.model_copy(update={"verdict": margins})
    return compare(config, factories.base(), [factories.candidate()]).candidates[0]


def test_a_margin_that_is_surely_exceeded_warns_and_does_not_decide():
    found = compared(kl_nats=1e-4)
    assert found.verdict == "SHIP"
    (warning,) = [reason for reason in found.reasons if reason.startswith("Warning: KL divergence")]
    assert "beyond the margin of 0.0001" in warning
    assert not any(reason.startswith("Warning") for reason in compared(kl_nats=10).reasons)


def test_withhold_asks_for_what_is_surely_within():
    loose = {"kl_nats": 10, "top1_points": 99, "gross_loss_percent": 90, "action": "withhold"}
    assert compared(**loose).verdict == "SHIP"
    found = compared(**loose | {"gross_loss_percent": 2.5})  # 5 of 214 became wrong: 1.0 to 5.4 %
    assert found.verdict == "INCONCLUSIVE"
    assert found.reasons[0].startswith("Warning: Right answers of word_analogies that became wrong")
    assert "not clearly within the margin of 2.5. SHIP is withheld." in found.reasons[0]


def test_the_report_shows_gross_loss_beside_the_net_and_the_speed_reading():
    comparison = factories.sample_comparison()
    rows = {row[0].text: row for row in summary(comparison).rows}
    assert [cell.text for cell in rows["Faster than the base?"][2:]] == ["FASTER", "NOT FASTER"]
    subs = {row[1].text: row[8].sub for row in accuracy_table([comparison.candidates[0]]).rows}
    assert subs["word_analogies"] == "2.3 % of the right ones (1.0 to 5.4)"


def test_tiers_of_the_profile_reach_the_verdict():
    config, required = factories.config(), ("gsm8k",)
    margins = config.verdict.model_copy(update={"required": required, "advisory": ("wikipedia",)})
    sides = factories.base(), [factories.candidate("w4a16-int4")]
    (found,) = compare(config.model_copy(update={"verdict": margins}), *sides).candidates
    assert found.accuracy["wikipedia"]["word_perplexity"].tier == "advisory"
    assert found.accuracy["wikipedia"]["word_perplexity"].adjusted_p is None
    assert any("gsm8k is required" in reason for reason in found.reasons)


def test_the_profile_refuses_tiers_that_contradict():
    with pytest.raises(FlowError, match="wikipedia is named both as required and as advisory"):
        load_profile("ci", {"verdict.required": ["wikipedia"], "verdict.advisory": ["wikipedia"]})


def test_a_tier_that_is_changed_after_the_measurement_is_seen(tmp_path):
    from model_serve_flow.flow.flow import Flow

    flow = Flow.open("ci", {}, tmp_path)
    seal_margins(flow)
    other = Flow.open(
        "ci", {"verdict.advisory": ["wikipedia"], "verdict.secondary.action": "withhold"}, tmp_path
    )
    changed = check_seal(dataclasses.replace(other, workspace=flow.workspace)).changed
    assert changed["advisory"] == (None, "wikipedia")
    assert changed["secondary.action"] == (None, "withhold")
    assert check_seal(flow).changed == {}
