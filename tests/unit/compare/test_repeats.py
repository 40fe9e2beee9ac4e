"""Several answers to an item: the item is the cluster,
and the advice says whether seeds or items help.
"""

import math
import re

import numpy as np
import pytest

from model_serve_flow.compare.differences import compare_task
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.repeats import advice, repeated
from model_serve_flow.compare.slices import compare_slices
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.clusters import ClusteredMean, cluster_key
from model_serve_flow.compare.verdict import decide
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.measured import Item, Metric, Repeated, TaskAccuracy
from model_serve_flow.measure.repeats import joined

MARGINS = Verdict(task_margin_points=2.5)
MARGIN, ALPHA = 0.025, 0.025


def measured(right):
    """One answer to each item, as lm-eval measures it."""
    items = tuple(
        Item(id=str(i), answer="x", exact_match=float(value)) for i, value in enumerate(right)
    )
    metrics = {"exact_match": Metric(value=np.mean(right), stderr=0.01, higher_is_better=True)}
    return TaskAccuracy(n=len(items), chance=None, metrics=metrics, items=items)


def asked(rng, chances, count):
    """Every item `count` times, right with its own probability."""
    return joined(
        {seed: measured(rng.random(chances.size) < chances) for seed in range(1, count + 1)}
    )


def compared(losses, count=8, seed=3):
    """Pairs of a base with items of its own difficulty and a candidate that loses so much on
    each.
    """
    rng = np.random.default_rng(seed)
    chances = np.clip(rng.beta(3, 1, np.size(losses)), 0.2, 0.95)
    base, candidate = asked(rng, chances, count), asked(rng, np.clip(chances - losses, 0, 1), count)
    return pair("ifeval", base, candidate)


def test_an_item_of_the_result_is_one_answer_and_figures_are_means():
    task = joined({1: measured([True, False, True]), 2: measured([True, True, True])})
    assert [item.id for item in task.items] == ["0#1", "1#1", "2#1", "0#2", "1#2", "2#2"]
    assert [item.groups["question"] for item in task.items] == ["0", "1", "2"] * 2
    assert task.metrics["exact_match"].value == pytest.approx(5 / 6) and task.n == 6


def test_the_item_is_the_cluster_unless_a_coarser_group_holds_it():
    pairs = compared(np.zeros(200))
    assert cluster_key(pairs.base.items) == "question"
    subjects = [
        item.model_copy(
            update={"groups": {**item.groups, "subject": f"s{int(item.groups['question']) // 10}"}}
        )
        for item in pairs.base.items
    ]
    assert cluster_key(subjects) == "subject"
    assert not any(part.group == "question" for part in compare_slices([pairs], MARGINS))


def test_the_base_s_lower_bound_counts_items_and_not_answers():
    d = compare_task(compared(np.zeros(300)), MARGINS, 0)["exact_match"]
    alone = paired.wilson_interval(round(d.base / 100 * d.n), d.n)
    assert (d.n, d.clusters.count, d.repeated.count, d.repeated.items) == (2400, 300, 8, 300)
    assert d.base_low < 100 * alone.low - 0.5


def test_the_variance_splits_into_items_and_answers():
    found = repeated(compared(np.zeros(4000), count=4), "exact_match")
    chances = np.clip(np.random.default_rng(3).beta(3, 1, 4000), 0.2, 0.95)
    assert found.within == pytest.approx((2 * chances * (1 - chances)).mean(), rel=0.05)
    assert found.between < 0.01
    half = np.where(np.arange(4000) % 2, 0.3, -0.05)
    assert repeated(compared(half, count=4), "exact_match").between == pytest.approx(
        half.var(), rel=0.35
    )
    assert repeated(pair("q", measured([True] * 20), measured([True] * 20)), "exact_match") is None


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_a_loss_of_the_margin_that_differs_between_items_seldom_passes(spread):
    """541 items with 8 answers, 1,000 draws;
    answers taken one by one pass more often where items differ.
    """
    rng, alone, together = np.random.default_rng([4, int(100 * spread)]), 0, 0
    for _ in range(1000):
        loss = MARGIN + spread * rng.choice([-1, 1], 541)
        lost = rng.binomial(8, 0.2 + loss / 2)
        gained = rng.binomial(8 - lost, (0.2 - loss / 2) / (0.8 - loss / 2))
        whole = ClusteredMean.from_sums((gained - lost).astype(float), np.full(541, 8))
        shares = (gained + lost).sum() / 4328
        single = whole.mean - 1.96 * math.sqrt((shares - whole.mean**2) / 4328) > -MARGIN
        alone += single
        together += single and whole.interval().low > -MARGIN
    assert together / 1000 <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / 1000)
    assert spread == 0 or alone / 1000 > 0.035


def test_the_advice_is_seeds_where_answers_vary_and_items_where_items_do():
    noisy = compare_task(compared(np.zeros(150), count=2, seed=5), MARGINS, 0)["exact_match"]
    assert noisy.repeated.between < noisy.repeated.within
    assert "answers per item instead of 2 would settle it." in advice(noisy, 1)
    uneven = noisy.repeated.model_copy(update={"between": 0.2, "within": 0.02, "count": 8})
    stuck = noisy.model_copy(update={"repeated": uneven})
    assert advice(stuck, 1).startswith(
        "More answers per item would not settle it: items differ too much. About "
    )
    assert any(
        "answers per item" in reason
        for reason in decide({"ifeval": {"exact_match": noisy}}, None)[1]
    )


def test_the_answers_that_are_said_to_settle_it_do_in_four_of_five_cases():
    """A candidate that lost nothing, 541 items:
    the number of answers of the advice has 80 % power.
    """
    rng, chances, settled = np.random.default_rng(6), np.full(541, 0.9), 0
    found = compare_task(compared(np.zeros(150), count=2), MARGINS, 0)["exact_match"]
    varied = Repeated(count=2, items=541, between=0.0, within=2 * 0.9 * 0.1)
    even = found.model_copy(update={"difference": 0.0, "retention_limit": None, "repeated": varied})
    count = int(re.search(r"About (\d+) answers", advice(even, 1))[1])
    for _ in range(400):
        change = rng.binomial(count, chances) - rng.binomial(count, chances)
        whole = ClusteredMean.from_sums(change.astype(float), np.full(541, count))
        settled += whole.interval().low > -MARGIN
    assert 0.74 <= settled / 400 <= 0.9
