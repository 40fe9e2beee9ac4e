"""Dominated models are named, refused ones are not ranked, and the cheapest that ships is recommended."""

import factories
import pytest

from model_serve_flow.ranking import ranked, recommended

COMPARISON = factories.sample_comparison()
INT8, INT4 = COMPARISON.candidates


def model(name, score, tokens_per_s, verdict="SHIP", streams=8):
    """A candidate at this place of the plane; the base stands at 63.7 points and about 167 tokens/s."""
    capacity = INT8.capacity.model_copy(update={"output_tokens_per_s": tokens_per_s, "streams": streams})
    suite = INT8.suite.model_copy(update={"candidate": score})
    return INT8.model_copy(update={"name": name, "suite": suite, "capacity": capacity, "verdict": verdict})


def dominators(*candidates, base=COMPARISON.base):
    return {candidate.name: candidate.dominated_by for candidate in ranked(base, candidates)}


def comparison(*candidates):
    return COMPARISON.model_copy(update={"candidates": candidates})


def test_front_and_dominated_models():
    fast, exact = model("fast", 62.0, 260.0), model("exact", 64.0, 180.0)
    assert dominators(fast, exact, model("slow", 61.0, 170.0)) == {"fast": None, "exact": None, "slow": "fast"}
    assert dominators(model("worse-than-base", 63.0, 150.0)) == {"worse-than-base": "base"}


def test_the_named_model_is_itself_on_the_front():
    chain = [model("a", 62.0, 200.0), model("b", 62.5, 210.0), model("c", 63.0, 220.0)]
    assert dominators(*chain) == {"a": "c", "b": "c", "c": None}


def test_equal_models_do_not_dominate_each_other():
    assert dominators(model("one", 64.0, 200.0), model("other", 64.0, 200.0)) == {"one": None, "other": None}


def test_a_refused_candidate_neither_dominates_nor_is_dominated():
    broken = model("broken", 70.0, 900.0, verdict="DO NOT SHIP")
    assert dominators(broken, model("good", 62.0, 200.0)) == {"broken": None, "good": None}
    assert dominators(model("broken", 10.0, 1.0, verdict="DO NOT SHIP"), INT8) == {"broken": None, "w8a8-int8": None}


def test_a_model_that_never_meets_the_objectives_is_the_least_economical():
    late = model("late", 62.0, 400.0, streams=0)
    assert dominators(late) == {"late": "base"}
    assert recommended(comparison(late, model("in-time", 61.0, 20.0))) == "in-time"


def test_without_a_score_nothing_is_ranked():
    assert dominators(INT8.model_copy(update={"suite": None})) == {"w8a8-int8": None}


def test_without_capacity_the_mean_speedup_ranks():
    base = COMPARISON.base.model_copy(update={"capacity": None})
    slow = INT4.model_copy(update={"verdict": "INCONCLUSIVE", "capacity": None})
    fast = INT8.model_copy(update={"capacity": None})
    assert dominators(slow, fast, base=base) == {"w4a16-int4": "w8a8-int8", "w8a8-int8": None}


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
    assert INT8.cost_per_million_output_tokens == pytest.approx(0.08e6 / 3600 / factories.throughput("w8a8-int8", 14))
