"""Planned looks: the error is spent once over all of them,
and a candidate that is decided is asked no more.
"""

import itertools
import math

import factories
import numpy as np
import pytest
from scipy.stats import norm
from support import many

from model_serve_flow.compare.comparison import REFUSED, compare, refused_after_change
from model_serve_flow.compare.gaps import score_gaps
from model_serve_flow.compare.looks import compare_answers, interim_verdict, looks_sentence, part_of
from model_serve_flow.compare.stats.looks import (
    bounds,
    repeated_level,
    sequential_p,
    spent,
)
from model_serve_flow.compare.stats.paired import score_interval
from model_serve_flow.flow.profile import Secondary
from model_serve_flow.flow.results.compared import MarginSeal
from model_serve_flow.flow.results.measured import protocol_hash
from model_serve_flow.measure.lm_eval_subsample import until_look

DRAWS, MARGIN, ALPHA = 4000, 0.02, 0.025
MOST = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / DRAWS)
QUARTERS = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("fractions", "published"),
    [
        (QUARTERS, [4.333, 2.963, 2.359, 2.014]),
        ((1 / 3, 2 / 3, 1.0), [3.710, 2.511, 1.993]),
        ((0.2, 0.4, 0.6, 0.8, 1.0), [4.877, 3.357, 2.680, 2.290, 2.031]),
    ],
)
def test_the_bounds_are_those_of_rpact_and_gsdesign(fractions, published):
    assert bounds(fractions, 0.025) == pytest.approx(published, abs=6e-4)


def test_one_look_is_the_plain_test_and_all_error_is_spent_at_the_end():
    assert bounds((1.0,), 0.025) == pytest.approx([norm.isf(0.025)])
    assert spent(0.025, 1.0) == pytest.approx(0.025)
    assert sequential_p([0.013], [1.0]) == 0.013
    for wrong in ((0.5, 0.25), (0.0, 1.0), (0.5, 1.2)):
        with pytest.raises(ValueError, match="no bounds"):
            bounds(wrong, 0.025)


@pytest.mark.parametrize("look", range(4))
def test_the_p_value_of_all_looks_is_the_level_whose_bound_is_just_met(look):
    ps = [0.9] * 4
    ps[look] = norm.sf(bounds(QUARTERS, 0.01)[look])
    assert sequential_p(ps, QUARTERS) == pytest.approx(0.01, rel=1e-3)
    assert sequential_p(ps[: look + 1], QUARTERS[: look + 1]) == pytest.approx(0.01, rel=1e-3)


ITEMS = 2000


def counted(change: float, looks: int, draws: int = DRAWS) -> np.ndarray:
    """[draws, looks, 2] items gained and lost until each look of one task, of which 8 % change."""
    cells = [0.04 + change / 2, 0.04 - change / 2, 0.92]
    drawn = np.random.default_rng([20250, looks, round(1e4 * (1 + change))]).multinomial(
        ITEMS // looks, cells, (draws, looks)
    )
    return drawn[..., :2].cumsum(axis=1)


def p_values_of(sums: np.ndarray) -> np.ndarray:
    """[draws, looks] p-values of "2 points are lost"."""
    looks = sums.shape[1]
    found = [
        many.score_p_values(*sums[:, look].T, ITEMS // looks * (look + 1), MARGIN)
        for look in range(looks)
    ]
    return np.stack(found, axis=1)


def looked(change: float, looks: int, draws: int = DRAWS) -> np.ndarray:
    """[draws, looks] p-values of "2 points are lost" of one task, 8 % of whose answers change."""
    return p_values_of(counted(change, looks, draws))


def shipped(ps: np.ndarray) -> np.ndarray:
    """[draws] the look at which non-inferiority is shown, from 1; 0 if never."""
    looks = ps.shape[1]
    shares = [(look + 1) / looks for look in range(looks)]
    crossed = norm.isf(ps) >= bounds(shares, ALPHA)
    found = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, 0)
    for row in range(10):
        assert (sequential_p(ps[row], shares) <= ALPHA) == (found[row] > 0)
    return found


def false_ship(looks: int, draws: int = DRAWS) -> tuple[float, float]:
    """How often a loss of the margin is shipped at any look: by the plain test at each,
    and by the bounds.
    """
    ps = looked(-MARGIN, looks, draws=draws)
    return float(np.mean((ps <= ALPHA).any(axis=1))), float(np.mean(shipped(ps) > 0))


def share_asked(change: float, looks: int = 4, draws: int = DRAWS) -> float:
    """The share of the items that a candidate of this true change is asked until it is shipped,
    or to the end.
    """
    found = shipped(looked(change, looks, draws=draws))
    return float(np.mean(np.where(found > 0, found, looks)) / looks)


def stopped_coverage(change: float, looks: int = 4, draws: int = DRAWS) -> tuple[float, float]:
    """How often the interval at the look that stopped holds the truth: the plain one of 95 %,
    and the repeated one.
    """
    sums = counted(change, looks, draws)
    stop, held = shipped(p_values_of(sums)), [0, 0]
    stop[stop == 0] = looks
    shares = tuple(look / looks for look in range(1, looks + 1))
    for look in range(1, looks + 1):
        counts = sums[stop == look, look - 1].T
        for kind, level in enumerate((ALPHA, repeated_level(ALPHA, shares[:look]))):
            low, high = many.score_intervals(*counts, ITEMS // looks * look, norm.isf(level))
            held[kind] += np.sum((low <= change) & (change <= high))
    return held[0] / draws, held[1] / draws


@pytest.mark.parametrize(("change", "least"), [(-MARGIN, 0.945), (-0.01, 0.95), (0.0, 0.95)])
def test_the_interval_after_stopping_holds_the_truth(change, least):
    plain, repeated = stopped_coverage(change)
    assert repeated >= least and repeated > plain


@pytest.mark.parametrize("looks", [2, 4, 8])
def test_a_loss_of_the_margin_seldom_ships_at_any_look(looks):
    plain, planned = false_ship(looks)
    assert plain > 0.035
    assert planned <= MOST


def test_a_candidate_without_loss_is_asked_fewer_items():
    assert share_asked(0.0) < 0.8
    assert np.mean(shipped(looked(0.0, 4)) > 0) > 0.97 * np.mean(looked(0.0, 4)[:, -1] <= ALPHA)


# --- Which items ---


def test_looks_grow_and_the_last_has_all():
    parts = [until_look(41, look, 4, "seed") for look in range(1, 5)]
    assert [len(part) for part in parts] == [10, 20, 30, 41] and parts[-1] == list(range(41))
    assert all(set(one) < set(other) for one, other in itertools.pairwise(parts))
    assert until_look(41, 2, 4, "other") != parts[1]
    assert [len(until_look(2, look, 4, "seed")) for look in range(1, 5)] == [2, 2, 2, 2]


# --- Through the comparison ---


def asked_until(name: str, look: int, looks: int = 4):
    """The sample's candidate, asked every item up to a look."""
    whole = factories.accuracy(name)
    order = {task: [until_look(scored.n, k, looks, task) for k in range(1, look + 1)]
             for task, scored in whole.tasks.items()}  # fmt: skip
    ids = {
        task: [[whole.tasks[task].items[i].id for i in places] for places in order[task]]
        for task in order
    }
    tasks = {task: part_of(whole.tasks[task], set(ids[task][-1])) for task in order}
    new = tuple(
        {
            task: tuple(i for i in ids[task][k] if k == 0 or i not in ids[task][k - 1])
            for task in order
        }
        for k in range(look)
    )
    protocol = {**whole.protocol, "look": [look, looks]}
    changed = {
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
        "looks": new,
        "tasks": tasks,
    }
    return whole.model_copy(update=changed)


def test_a_candidate_that_lost_much_is_decided_early_and_the_saving_is_said():
    early = asked_until("w4a16-int4", 2)
    assert interim_verdict(factories.config(), factories.accuracy(), early) == "DO NOT SHIP"
    found = factories.compare_int8(accuracy=asked_until("w8a8-int8", 2))
    assert (found.looks.made, found.looks.planned) == (2, 4)
    assert found.looks.items == pytest.approx(found.looks.of_items / 2, rel=0.05)
    assert any(
        "Looked at 2 of 4 times, at last on 329 of 659 items (50%)" in reason
        for reason in found.reasons
    )


def test_a_candidate_that_secondary_margins_would_withhold_is_asked_on():
    config, early = factories.config(), asked_until("w8a8-int8", 4)
    config = config.model_copy(update={"candidates": config.candidates[:1]})
    assert interim_verdict(config, factories.accuracy(), early) == "SHIP"
    strict = Secondary(gross_loss_percent=0.001, action="withhold")
    withheld = config.model_copy(
        update={"verdict": config.verdict.model_copy(update={"secondary": strict})}
    )
    assert interim_verdict(withheld, factories.accuracy(), early) == "INCONCLUSIVE"


def test_an_advisory_task_counts_in_no_look():
    margins = factories.config().verdict.model_copy(update={"advisory": ("mmlu_dev",)})
    found = compare_answers(factories.accuracy(), asked_until("w8a8-int8", 2), margins, 0)
    assert set(found.differences) - set(found.counting) == {"mmlu_dev"}
    assert (
        found.differences["mmlu_dev"]["acc"].tier == "advisory" and found.suite.look_p is not None
    )


def test_all_looks_ship_nearly_what_one_would_and_never_more():
    margins, seed = factories.config().verdict, 0
    whole = compare_answers(factories.accuracy(), factories.accuracy("w8a8-int8"), margins, seed)
    looks = compare_answers(factories.accuracy(), asked_until("w8a8-int8", 4), margins, seed)
    task = "word_analogies"
    one, several = whole.differences[task]["acc"], looks.differences[task]["acc"]
    assert (one.look_p, one.difference, whole.looks) == (None, several.difference, None)
    assert (
        several.look_p[0] >= 0.9 * one.decision_p and several.look_p[0] < 3 * one.decision_p + 1e-4
    )
    assert looks_sentence(looks.looks)[0].endswith("no look before the last decided it.")
    assert looks_sentence(None) == []


def test_the_intervals_after_an_early_look_are_wider_and_agree_with_the_decision():
    margins, early = factories.config().verdict, asked_until("w8a8-int8", 2)
    found = compare_answers(factories.accuracy(), early, margins, 0)
    once = early.model_copy(update={"looks": ()})  # the same items, as if they were all
    plain = compare_answers(base_until(early), once, margins, 0)
    task = found.differences["word_analogies"]["acc"]
    flips = (task.flips.wrong_to_right, task.flips.right_to_wrong, task.n)
    whole = score_interval(*flips, bounds(task.look_shares, ALPHA)[-1]).scaled(100)
    assert task.ci95 == pytest.approx((whole.low, whole.high))
    assert (task.ci95[0] > -task.limit) == (task.look_p[0] <= ALPHA)
    for new, old in (
        (found.suite, plain.suite),
        (found.differences["wikipedia"], plain.differences["wikipedia"]),
    ):
        new, old = (one.get("word_perplexity") if isinstance(one, dict) else one
                    for one in (new, old))  # fmt: skip
        assert new.ci95[0] < old.ci95[0] and new.ci95[1] > old.ci95[1]
        assert new.difference == old.difference


def base_until(early):
    """The base, as if it had been asked these items only."""
    tasks = {
        name: part_of(task, {item.id for item in early.tasks[name].items})
        for name, task in factories.accuracy().tasks.items()
    }
    return factories.accuracy().model_copy(update={"tasks": tasks})


def test_candidates_that_stopped_at_different_looks_are_compared_on_common_items():
    models = {
        "base": factories.accuracy(),
        "a": asked_until("w8a8-int8", 2),
        "b": asked_until("w4a16-int4", 4),
    }
    gaps = score_gaps(models, ["word_analogies"])
    assert gaps["a", "b"].difference < 0


def test_a_plan_that_was_changed_is_no_ship():
    comparison = factories.sample_comparison()
    seal = MarginSeal(at="then", before_measuring=True, changed={"accuracy.limit": (100.0, 400.0)})
    refused = refused_after_change(comparison.model_copy(update={"margins": seal}))
    assert [c.verdict for c in refused.candidates] == ["INCONCLUSIVE", "DO NOT SHIP"]
    assert refused.candidates[0].reasons[0] == REFUSED
    kept = seal.model_copy(update={"changed": {"task_margin_points": (2.0, 3.0)}})
    assert (
        refused_after_change(comparison.model_copy(update={"margins": kept})).candidates[0].verdict
        == "SHIP"
    )


def test_the_report_says_that_the_p_values_hold_over_all_looks():
    from model_serve_flow.report.sections import methods

    with_looks = compare(
        factories.config(),
        factories.base(),
        [
            factories.candidate().__class__(
                **{**vars(factories.candidate()), "accuracy": asked_until("w8a8-int8", 2)}
            )
        ],
    )
    text = next(row[1].text for row in methods(with_looks).rows if row[0].text == "Verdict")
    assert "O'Brien-Fleming bounds over 4 planned looks" in text
