"""Several candidates: the best of many on the margin seldom ships by chance."""

import itertools
import math

import factories
import numpy as np
import pytest
from support import many

from model_serve_flow.compare.stats.simultaneous import (
    better,
    level_of_each,
    log_gap,
    ranks,
    score_gap,
)
from model_serve_flow.compare.verdict import decide, loss_p_values, with_items_to_settle
from model_serve_flow.flow.results.compared import Difference

DRAWS, ITEMS, MARGIN, ALPHA = 1000, 1400, 0.02, 0.025
MOST = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / DRAWS)


def question(p: float) -> Difference:
    """A task, or the average, with this p-value of "the loss is the margin or more"."""
    figures = {
        "n": ITEMS,
        "base": 70.0,
        "candidate": 70.0,
        "difference": 0.0,
        "ci95": (-2.0, 2.0),
        "margin": 2.0,
    }
    kind = {"unit": "points", "higher_is_better": True, "method": "score"}
    return Difference(**figures, **kind, noninferiority_p=p)


def verdict(ps: list[float], place: int) -> str:
    """On one candidate of as many as there are p-values of their one task;
    every average is clearly within.
    """
    everyone = [({"task": {"acc": question(p)}}, question(1e-6)) for p in ps]
    others = [
        p for i, candidate in enumerate(everyone) if i != place for p in loss_p_values(*candidate)
    ]
    return decide(*everyone[place], others=others)[0]


def best_ships(candidates: int, draws: int) -> tuple[float, float]:
    """How often one of several ships that are all exactly on the margin: by itself, and corrected.

    By itself each ships in 2.5 %, so one of 5 in 12 % and one of 20 in 39 %.
    """
    cells = [0.04, 0.04 + MARGIN, 0.9]
    drawn = np.random.default_rng([20250, candidates]).multinomial(
        ITEMS, cells, (draws, candidates)
    )
    found = many.score_p_values(drawn[..., 0].ravel(), drawn[..., 1].ravel(), ITEMS, MARGIN)
    rows = found.reshape(draws, candidates)
    shipped = np.mean([verdict(list(row), int(row.argmin())) == "SHIP" for row in rows])
    return float(np.mean(rows.min(axis=1) <= ALPHA)), float(shipped)


@pytest.mark.parametrize(("candidates", "uncorrected"), [(5, 0.10), (20, 0.33)])
def test_the_best_of_several_on_the_margin_seldom_ships(candidates, uncorrected):
    alone, corrected = best_ships(candidates, DRAWS)
    assert alone > uncorrected and corrected <= MOST


def test_a_candidate_that_would_ship_alone_needs_more_beside_another():
    assert decide({"task": {"acc": question(0.02)}}, question(0.02))[0] == "SHIP"
    assert verdict([0.02, 0.9], 0) == "INCONCLUSIVE"
    assert verdict([0.001, 0.9], 0) == "SHIP"


def test_the_table_shows_what_is_corrected_over_all_candidates():
    tasks, others = {"task": {"acc": question(0.004)}}, [0.5, 0.6]
    filled, suite = with_items_to_settle(tasks, question(0.002), others=others)
    assert filled["task"]["acc"].adjusted_p == (pytest.approx(0.012), 0.996)
    assert suite.adjusted_p == (pytest.approx(0.008), 0.998)
    assert with_items_to_settle(tasks, question(0.002))[1].adjusted_p is None


def test_the_report_says_over_what_is_corrected():
    from model_serve_flow.report.sections import methods

    comparison = factories.sample_comparison()
    alone = comparison.model_copy(update={"candidates": comparison.candidates[:1]})
    texts = [
        next(row[1].text for row in methods(c).rows if row[0].text == "Verdict")
        for c in (comparison, alone)
    ]
    assert "Holm over the tasks and averages of all 2 candidates" in texts[0]
    assert texts[1].endswith("Holm over the tasks")


# --- Ranks ---


def told_apart(clustered: bool, draws: int) -> float:
    """How often any two of five models of one accuracy, on the same 300 items,
    do not share a rank: at most 5 %.
    """
    rng, level, told = np.random.default_rng(7), level_of_each(5), 0
    labels = [str(i // 10) for i in range(300)] if clustered else None
    for _ in range(draws):
        hard = rng.random(300)
        models = {
            name: (rng.random(300) < 0.4 + 0.5 * (hard < 0.5)).astype(float) for name in "abcde"
        }
        gaps = {
            (one, other): score_gap(models[one], models[other], labels, level)
            for one, other in itertools.combinations(models, 2)
        }
        told += set(ranks(gaps, list(models)).values()) != {1}
    return told / draws


@pytest.mark.parametrize("clustered", [False, True])
def test_equal_models_are_seldom_told_apart(clustered):
    assert told_apart(clustered, 120) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 120)


def test_a_clear_difference_is_a_rank():
    right = np.repeat([1.0, 0.0], [200, 100])
    gaps = {
        ("a", "b"): score_gap(right, right[::-1], None, 0.01),
        ("a", "c"): score_gap(right, right, None, 0.01),
    }
    assert ranks(gaps, ["a", "b", "c"]) == {"a": 1, "b": 1, "c": 1}
    worse = np.where(np.arange(300) < 40, 0.0, right)
    gaps = {("a", "b"): score_gap(right, worse, None, 0.01)}
    assert (ranks(gaps, ["a", "b"]), better(gaps, "b")) == ({"a": 1, "b": 2}, {"a"})


def test_a_gap_of_repeats_is_a_t_interval_of_logarithms():
    import statsmodels.stats.weightstats as sm

    one, other = np.array([100.0, 104.0, 98.0]), np.array([131.0, 140.0, 127.0])
    paired = log_gap(one, other, 0.005, paired=True)
    assert (paired.low, paired.high) == pytest.approx(
        sm.DescrStatsW(np.log(other / one)).tconfint_mean(0.01)
    )
    apart = sm.CompareMeans(sm.DescrStatsW(np.log(other)), sm.DescrStatsW(np.log(one)))
    welch = log_gap(one, other, 0.005, paired=False)
    assert (welch.low, welch.high) == pytest.approx(apart.tconfint_diff(0.01, usevar="unequal"))
    assert log_gap(one[:1], other, 0.025, paired=False) is None
