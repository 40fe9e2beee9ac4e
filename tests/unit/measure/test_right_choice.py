"""The probability of the right choice is that of lm-eval's log-likelihoods, or it is not given."""

import math

import pytest

from model_serve_flow.flow.results.measured import RIGHT_CHOICE
from model_serve_flow.measure.lm_eval_results import read_task
from model_serve_flow.measure.right_choice import right_choice_probability


def sample(likelihoods, target=2, acc=None, choices="ABCD", **more):
    best = likelihoods.index(max(likelihoods))
    arguments = [("Which?", f" {choice}") for choice in choices]
    return {
        "doc_id": 0, "doc": {}, "doc_hash": "0" * 64, "filter": "none", "metrics": ["acc"],
        "target": target, "arguments": arguments,
        "filtered_resps": [[one, False] for one in likelihoods],
        "acc": float(best == target) if acc is None else acc, **more,
    }  # fmt: skip


def test_it_is_the_share_of_the_right_choice():
    found = right_choice_probability(sample([-3.0, -1.0, -2.0, -4.0]))
    assert found == pytest.approx(math.exp(-2) / sum(math.exp(-one) for one in (1, 2, 3, 4)))
    assert right_choice_probability(sample([-1.0] * 4, 0, acc=1.0)) == pytest.approx(0.25)
    assert right_choice_probability(sample([-3000.0, -3001.0], 0, choices="AB")) == pytest.approx(
        0.731, abs=1e-3
    )
    named = right_choice_probability(sample([-3.0, -1.0, -2.0, -4.0], "C", acc=0.0))
    assert named == pytest.approx(found)


def test_choices_inside_the_question_are_told_apart_by_the_score():
    """Winogrande: the ends are alike, and the target is the end."""
    arguments = [("The trophy", " is large."), ("The case", " is large.")]
    odds = 1 / (1 + math.exp(-1))
    for acc, expected in ((1.0, odds), (0.0, 1 - odds)):
        found = sample([-2.0, -1.0], "is large.", acc, "AB", arguments=arguments)
        assert right_choice_probability(found) == pytest.approx(expected)


@pytest.mark.parametrize(
    "other",
    [
        sample([-1.0, -2.0, -3.0, -4.0], 9, 0.0),
        sample([-1.0, -2.0, -3.0, -4.0], [0, 1], 1.0),
        sample([-1.0, -2.0, -3.0, -4.0], 0, 0.0),  # the score says that another choice is right
        sample([-1.0, -2.0, -3.0, -4.0], 0, 1.0, "ABAB"),
        sample([-1.0], 0, 1.0, "A"),
        {**sample([-1.0]), "filtered_resps": ["42"]},
    ],
)
def test_what_does_not_tell_the_right_choice_has_no_probability(other):
    assert right_choice_probability(other) is None


def test_a_task_carries_it_for_all_items_or_for_none():
    good = [sample([-3.0, -1.0, -2.0, -4.0]), sample([-1.0, -2.0, -3.0, -4.0], 0, doc_id=1)]
    odd = sample([-1.0, -2.0, -3.0, -4.0], 0, 0.0, doc_id=2)
    for samples, expected in ((good, True), ([*good, odd], False)):
        raw = {
            "results": {"q": {"acc,none": 0.5}},
            "samples": {"q": samples},
            "higher_is_better": {},
        }
        items = read_task("q", raw).items
        assert [RIGHT_CHOICE in item.__pydantic_extra__ for item in items] == [expected] * len(
            samples
        )
