"""The soft score sees what accuracy cannot, holds its rate, and decides nothing."""

import factories
import numpy as np
import pytest
from factories import compare_int8, with_task
from scipy.stats import ttest_1samp

from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.soft import soft_score, soft_sentence
from model_serve_flow.flow.results.measured import RIGHT_CHOICE, Item, Metric, TaskAccuracy
from model_serve_flow.report.tables import soft_table


def task(probabilities, groups=None):
    """Two choices: right where the right one has more than half."""
    groups = [{} for _ in probabilities] if groups is None else [{"subject": one} for one in groups]
    items = tuple(
        Item(id=str(i), answer="A", acc=float(p > 0.5), groups=group, **{RIGHT_CHOICE: float(p)})
        for i, (p, group) in enumerate(zip(probabilities, groups, strict=True))
    )
    share = np.mean([p > 0.5 for p in probabilities])
    metrics = {"acc": Metric(value=share, stderr=None, higher_is_better=True)}
    return TaskAccuracy(n=len(items), chance=0.5, metrics=metrics, items=items)


def drawn(n=1000, fall=0.02, seed=4):
    """Probabilities of base and candidate; the fall moves few of them across one half."""
    rng = np.random.default_rng(seed)
    base = rng.beta(4, 1.5, n)
    return base, np.clip(base - fall + 0.03 * rng.standard_normal(n), 0, 1)


def test_it_sees_a_loss_that_right_or_wrong_does_not_show():
    base, candidate = drawn()
    pairs = pair("q", task(base), task(candidate))
    found = soft_score(pairs)
    expected = ttest_1samp(candidate - base, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx(100 * (candidate - base).mean())
    assert found.ci95 == pytest.approx((100 * expected.low, 100 * expected.high))
    assert found.ci95[1] < 0 and found.clusters is None
    result = compare_int8(
        base_accuracy=with_task(factories.accuracy(), "q", task(base)),
        accuracy=with_task(factories.accuracy("w8a8-int8"), "q", task(candidate)),
    )
    d = result.accuracy["q"]["acc"]
    assert d.ci95[1] - d.ci95[0] > 3 * (found.ci95[1] - found.ci95[0])
    assert any("less probable (secondary" in r and "q by -" in r for r in result.reasons)
    (row,) = [row for row in soft_table([result]).rows if row[1].text == "q"]
    assert row[5].text == "less probable" and row[6].key < 0.34


def test_clusters_widen_it():
    base, _ = drawn(1140)
    subjects = np.repeat(np.arange(57), 20)
    rng = np.random.default_rng(5)
    candidate = np.clip(
        base + 0.05 * rng.standard_normal(57)[subjects] + 0.02 * rng.standard_normal(1140), 0, 1
    )
    names = [f"s{one}" for one in subjects]
    found = soft_score(pair("q", task(base, names), task(candidate, names)))
    assert found.clusters.decide and found.clusters.count == 57 and found.clusters.design_effect > 5
    assert found.method.startswith("cluster-robust")


@pytest.mark.parametrize("icc", [0.0, 0.05])
def test_no_loss_is_seldom_called_one(icc):
    """57 subjects of 20 items, 60 draws; a one-sided 2.5 %."""
    rng = np.random.default_rng([6, int(100 * icc)])
    names = [f"s{one}" for one in np.repeat(np.arange(57), 20)]
    spread = [np.sqrt(icc), np.sqrt(1 - icc)]
    fell = 0
    for _ in range(60):
        noise = spread[0] * np.repeat(rng.standard_normal(57), 20) + spread[
            1
        ] * rng.standard_normal(1140)
        pairs = pair("q", task(np.full(1140, 0.6), names), task(0.6 + 0.05 * noise, names))
        fell += bool(soft_sentence({"q": soft_score(pairs)}))
    assert fell <= 5  # 1.5 expected; more than 5 in 0.4 % of all cases


def test_a_result_without_probabilities_has_no_soft_score():
    base, candidate = drawn(50)
    bare = task(candidate)
    bare = bare.model_copy(
        update={
            "items": tuple(
                Item(id=i.id, answer="A", acc=i.values["acc"], groups={}) for i in bare.items
            )
        }
    )
    assert soft_score(pair("q", task(base), bare)) is None
    assert soft_score(pair("q", task(base[:9]), task(candidate[:9]))) is None


def test_it_decides_nothing():
    """The right choice halves its probability and stays the first: the verdict is as before."""
    ours, theirs = np.tile([0.99, 0.2], 300), np.tile([0.51, 0.2], 300)
    comparisons = [
        compare_int8(
            base_accuracy=with_task(factories.accuracy(), "q", task(ours)),
            accuracy=with_task(factories.accuracy("w8a8-int8"), "q", task(other)),
        )
        for other in (ours, theirs)
    ]
    assert comparisons[1].soft["q"].difference < -20
    assert comparisons[0].verdict == comparisons[1].verdict == "SHIP"
    assert comparisons[0].accuracy == comparisons[1].accuracy
