"""Who is surely worse is named, equal models share a rank,
and the cheapest that ships is recommended.
"""

import factories
import numpy as np
import pytest

from model_serve_flow.compare.gaps import Evidence, economy_gaps, score_gaps
from model_serve_flow.compare.ranking import ranked, recommended
from model_serve_flow.compare.stats.paired import Interval

COMPARISON = factories.sample_comparison()
INT8, INT4 = COMPARISON.candidates


def model(name, score, tokens_per_s, verdict="SHIP", streams=8):
    """A candidate at this place of the plane;
    the base stands at 63.7 points and about 167 tokens/s.
    """
    capacity = INT8.capacity.model_copy(
        update={"output_tokens_per_s": tokens_per_s, "streams": streams}
    )
    suite = INT8.suite.model_copy(update={"candidate": score})
    return INT8.model_copy(
        update={
            "name": name,
            "suite": suite,
            "capacity": capacity,
            "verdict": verdict,
            "ranks": None,
        }
    )


def gaps(width, **values):
    """Gaps of all pairs of models whose values are known to within `width`, the base among them."""
    names = list(values)
    return {
        (one, other): Interval(values[other] - values[one], values[other] - values[one] - width,
                               values[other] - values[one] + width)
        for place, one in enumerate(names) for other in names[place + 1 :]
    }  # fmt: skip


def placed(scores, economies, verdicts=()):
    """(rank by score, rank by economy, dominated by) of the base and of candidates with these
    names.
    """
    names = [name for name in scores if name != "base"]
    candidates = [model(name, 62.0, 200.0, **dict(verdicts).get(name, {})) for name in names]
    base, found = ranked(
        COMPARISON.base, candidates, Evidence(gaps(1.0, **scores), gaps(0.1, **economies))
    )
    every = {"base": base, **{candidate.name: candidate for candidate in found}}
    return {
        name: m.ranks and (m.ranks.score, m.ranks.economy, m.dominated_by)
        for name, m in every.items()
    }


def test_only_what_is_surely_better_in_both_dominates():
    scores, economies = (
        {"base": 64.0, "near": 63.5, "low": 61.0},
        {"base": 0.0, "near": 0.3, "low": 0.35},
    )
    assert placed(scores, economies) == {
        "base": (1, 3, None),
        "near": (1, 1, None),
        "low": (3, 1, None),
    }
    assert placed({"base": 64.0, "near": 66.0}, {"base": 0.0, "near": 0.3})["base"] == (
        2,
        2,
        "near",
    )


def test_without_evidence_all_share_the_first_rank():
    assert placed({"base": 64.0, "a": 64.5}, {"base": 0.0, "a": 0.05}) == {
        "base": (1, 1, None),
        "a": (1, 1, None),
    }


def test_of_several_that_dominate_the_most_economical_is_named():
    candidates = [model("a", 66.0, 200.0), model("b", 66.0, 300.0)]
    evidence = Evidence(gaps(1.0, base=60.0, a=66.0, b=66.0), gaps(0.1, base=0.0, a=1.0, b=1.4))
    assert ranked(COMPARISON.base, candidates, evidence)[0].dominated_by == "b"


def test_what_must_not_ship_or_has_no_score_is_not_ranked():
    broken = model("broken", 70.0, 900.0, verdict="DO NOT SHIP")
    silent = model("silent", 62.0, 200.0).model_copy(update={"suite": None})
    fresh = COMPARISON.base.model_copy(update={"ranks": None})
    base, found = ranked(fresh, (broken, silent), Evidence({}, {}))
    assert (base.ranks, *[c.ranks for c in found]) == (None, None, None)


def test_the_score_gap_of_two_models_comes_from_the_items_they_share():
    models = {name: factories.accuracy(name) for name in ("base", "w8a8-int8", "w4a16-int4")}
    found = score_gaps(models, ["word_analogies"])
    gap = found["base", "w4a16-int4"]
    assert gap.difference == pytest.approx(100 * (12 - 58) / 336)
    assert gap.high < 0 and found["w8a8-int8", "w4a16-int4"].high < 0
    low, high = COMPARISON.candidates[1].accuracy["word_analogies"]["acc"].ci95
    assert gap.low < low and gap.high > high  # three pairs hold together
    assert score_gaps(models, []) == {}


def test_one_search_of_the_capacity_tells_no_gap_but_repeated_loads_do():
    models = {name: factories.performance(name) for name in ("base", "w8a8-int8")}
    assert economy_gaps(models, {}) == {}
    without = {
        name: result.model_copy(update={"capacity": None}) for name, result in models.items()
    }
    gap = economy_gaps(without, {})["base", "w8a8-int8"]
    assert 0 < gap.low < np.log(1.33) < gap.high
    nothing = {name: result.model_copy(update={"points": ()}) for name, result in without.items()}
    assert economy_gaps(nothing, {"base": 300, "w8a8-int8": 150})[
        "base", "w8a8-int8"
    ].low == pytest.approx(np.log(2))


def test_capacities_searched_in_several_blocks_tell_a_gap():
    def searched(name, factor):
        result = factories.performance(name)
        searches = {
            block: factories.capacity(name).model_copy(update={
                "output_tokens_per_s": 100 * factor * start,
                "probes": tuple(p.model_copy(update={"output_tokens_per_s": 102 * factor * start})
                                for p in result.capacity.probes)})
            for block, start in enumerate((1.0, 1.1, 0.95), 1)
        }  # fmt: skip
        return result.model_copy(update={"searches": searches})

    gap = economy_gaps({"base": searched("base", 1.0), "a": searched("w8a8-int8", 1.5)}, {})[
        "base", "a"
    ]
    assert gap.difference == pytest.approx(np.log(1.5)) and 0 < gap.low < gap.difference < gap.high


def comparison(*candidates):
    return COMPARISON.model_copy(update={"candidates": candidates})


def test_a_model_that_never_meets_the_objectives_is_not_recommended():
    assert (
        recommended(comparison(model("late", 62.0, 400.0, streams=0), model("in-time", 61.0, 20.0)))
        == "in-time"
    )


def test_cheapest_of_those_that_ship_is_recommended():
    cheap, dear = model("cheap", 61.0, 300.0), model("dear", 64.0, 200.0)
    assert recommended(comparison(dear, cheap)) == "cheap"
    refused = model("refused", 61.0, 900.0, verdict="DO NOT SHIP")
    unsure = model("unsure", 61.0, 800.0, verdict="INCONCLUSIVE")
    assert recommended(comparison(refused, unsure, dear)) == "dear"
    assert recommended(comparison(refused, unsure)) is None


def test_fastest_is_recommended_where_no_capacity_was_searched():
    fast, slow = (c.model_copy(update={"verdict": "SHIP", "capacity": None}) for c in (INT8, INT4))
    without = COMPARISON.base.model_copy(update={"capacity": None})
    both = comparison(slow, fast).model_copy(update={"base": without})
    assert recommended(both) == "w8a8-int8"


def test_cost_orders_as_the_recommendation_does():
    assert recommended(COMPARISON) == "w8a8-int8"
    assert INT8.cost_per_million_output_tokens < COMPARISON.base.cost_per_million_output_tokens
    assert INT8.cost_per_million_output_tokens == pytest.approx(
        0.08e6 / 3600 / factories.throughput("w8a8-int8", 14)
    )
