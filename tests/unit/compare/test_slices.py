"""Slices find the part of a task where the loss sits, correct for looking at many,
and say where they cannot tell.
"""

import factories
import numpy as np
import pytest

from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.slices import compare_slices
from model_serve_flow.compare.stats.paired import smallest_detectable_drop
from model_serve_flow.flow.profile import Verdict

MARGINS = Verdict(task_margin_points=5.0)
N = 480
RIGHT = np.arange(N) % 3 > 0


def subject_of(i):
    return factories.question(i)["groups"]["subject group"]


def slices_of(candidate, base=RIGHT, asks=factories.question):
    tasks = factories.scored_task(base, asks=asks), factories.scored_task(candidate, asks=asks)
    found = compare_slices([pair("mmlu_dev", *tasks)], MARGINS)
    return {(part.group, part.value): part for part in found}


def test_loss_in_one_subject_is_found_there_and_only_there():
    stem = np.array([subject_of(i) == "stem" for i in range(N)])
    found = slices_of(RIGHT & ~(stem & (np.arange(N) % 5 == 0)))
    significant = [
        value
        for (group, value), part in found.items()
        if group == "subject group" and part.adjusted_p < 0.05
    ]
    assert significant == ["stem"]
    part = found["subject group", "stem"]
    assert (part.n, part.task, part.too_small) == (int(stem.sum()), "mmlu_dev", False)
    lost = np.sum(RIGHT & stem & (np.arange(N) % 5 == 0))
    assert part.difference == pytest.approx(-100 * lost / stem.sum())
    assert part.base - part.candidate == pytest.approx(-part.difference)
    assert part.ci95[0] < part.difference < part.ci95[1] < 0
    assert part.mcnemar_p < part.adjusted_p


def test_prompt_length_is_cut_into_thirds_in_order():
    found = slices_of(RIGHT)
    lengths = {value: part.n for (group, value), part in found.items() if group == "prompt length"}
    assert list(lengths) == ["short", "middle", "long"]
    assert sum(lengths.values()) == N
    assert min(lengths.values()) > N / 6


def test_adjusted_p_is_holms_over_the_large_slices():
    found = list(slices_of(RIGHT & (np.arange(N) > 20)).values())
    large = sorted(part.mcnemar_p for part in found if not part.too_small)
    smallest = min(found, key=lambda part: part.mcnemar_p)
    assert smallest.adjusted_p == pytest.approx(min(1, large[0] * len(large)))


def test_small_slices_are_shown_as_such_whatever_they_answer():
    def asks(i):
        return {
            "prompt": "Same?",
            "expected": "A",
            "groups": {"subject": "rare" if i < 12 else "common"},
        }

    found = slices_of(RIGHT & (np.arange(N) >= 12), asks=asks)
    # prompts of one length are no cut
    assert set(found) == {("subject", "rare"), ("subject", "common")}
    rare, common = found["subject", "rare"], found["subject", "common"]
    assert (rare.n, rare.too_small, rare.adjusted_p) == (12, True, 1.0)
    assert rare.mcnemar_p == pytest.approx(2 * 0.5**8)
    assert not common.too_small
    assert smallest_detectable_drop(12, 0.0) > 0.1 > smallest_detectable_drop(common.n, 0.0)


@pytest.mark.parametrize(("n", "too_small"), [(9, True), (10, False)])
def test_below_ten_items_no_margin_is_wide_enough(n, too_small):
    def asks(i):
        return {
            "prompt": "Same?",
            "expected": "A",
            "groups": {"subject": "rare" if i < n else "common"},
        }

    task = factories.scored_task(RIGHT, asks=asks)
    rare = compare_slices([pair("mmlu_dev", task, task)], Verdict(task_margin_points=40.0))[1]
    assert (rare.value, rare.n, rare.too_small) == ("rare", n, too_small)


@pytest.mark.parametrize("group", [lambda i: "everything", lambda i: f"item {i}"])
def test_groups_that_tell_nothing_are_not_listed(group):
    def asks(i):
        return {"prompt": "Same?", "expected": "A", "groups": {"subject": group(i)}}

    assert slices_of(~RIGHT, asks=asks) == {}


def test_texts_have_no_slices():
    assert (
        compare_slices(
            [pair("wikipedia", factories.text_task(), factories.text_task(loss=0.1))], MARGINS
        )
        == ()
    )
