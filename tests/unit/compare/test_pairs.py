"""Items are paired by id: what is missing, extra, repeated or changed is an error;
what flipped is listed.
"""

import factories
import pytest

from model_serve_flow.compare.pairs import count_flips, flipped_items, pair
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.compared import Flips
from model_serve_flow.flow.results.measured import Item, Metric

TASK = factories.choice_task(336, 214, asks=factories.analogy)


def with_items(*items):
    return TASK.model_copy(update={"items": tuple(items), "n": len(items)})


def test_missing_extra_and_repeated_items_are_named():
    with pytest.raises(FlowError, match="analogies, item 17: the candidate has no such item"):
        pair("analogies", TASK, with_items(*TASK.items[:17], *TASK.items[18:]))
    with pytest.raises(FlowError, match="analogies, item x1: the base has no such item"):
        pair("analogies", TASK, with_items(*TASK.items, Item(id="x1", answer="A", acc=1.0)))
    with pytest.raises(FlowError, match="analogies, item 3: it occurs more than once"):
        pair("analogies", TASK, with_items(*TASK.items[:-1], TASK.items[3]))


@pytest.mark.parametrize(("field", "part"), [("prompt", "prompt"), ("expected", "expected answer")])
def test_changed_items_are_named(field, part):
    changed = TASK.items[9].model_copy(update={field: "something else"})
    with pytest.raises(
        FlowError, match=f"analogies, item 9: its {part} is not the same for base and candidate"
    ):
        pair("analogies", TASK, with_items(*TASK.items[:9], changed, *TASK.items[10:]))


def test_order_does_not_matter():
    pairs = pair("analogies", TASK, with_items(*reversed(TASK.items)))
    assert all(one.id == other.id for one, other in pairs.rows)
    assert flipped_items(pairs) == ()


def test_item_without_the_metric_is_named():
    bare = Item(answer="B", id="5", prompt=TASK.items[5].prompt, expected=TASK.items[5].expected)
    pairs = pair("analogies", TASK, with_items(*TASK.items[:5], bare, *TASK.items[6:]))
    with pytest.raises(FlowError, match="analogies, item 5: acc is missing"):
        pairs.values("acc")


def test_flipped_items_carry_the_question_and_both_answers():
    pairs = pair("analogies", TASK, factories.choice_task(336, 214, 1, 2, asks=factories.analogy))
    first, second, third = flipped_items(pairs)
    assert [(item.id, item.became) for item in (first, second, third)] == [
        ("0", "wrong"),
        ("1", "wrong"),
        ("214", "right"),
    ]
    assert (first.task, first.prompt) == ("analogies", "Athens is to Greece as Oslo is to")
    assert (first.expected, first.base_answer, first.candidate_answer) == ("A", "A", "B")
    assert third.candidate_answer == third.expected != third.base_answer
    assert count_flips(*pairs.right()) == Flips(right_to_wrong=2, wrong_to_right=1)


def test_a_zero_is_right_where_lower_is_better():
    error = {"metrics": {"acc": Metric(value=0.5, stderr=None, higher_is_better=False)}}
    more = factories.choice_task(336, 214, 3, 0, asks=factories.analogy)
    pairs = pair("errors", TASK.model_copy(update=error), more.model_copy(update=error))
    assert [item.became for item in flipped_items(pairs)] == ["wrong"] * 3


def test_texts_have_no_flips():
    pairs = pair("wikipedia", factories.text_task(), factories.text_task(loss=0.2))
    assert pairs.right() is None
    assert flipped_items(pairs) == ()


@pytest.mark.parametrize(
    ("metrics", "primary"),
    [
        (("bits_per_byte", "word_perplexity"), "word_perplexity"),
        (("acc", "acc_norm"), "acc_norm"),
        (("exact_match,strict-match", "exact_match,flexible-extract"), "exact_match,strict-match"),
        (("inst_level_loose_acc", "prompt_level_strict_acc"), "prompt_level_strict_acc"),
        (("rouge1", "rouge2"), "rouge1"),
    ],
)
def test_primary_metric(metrics, primary):
    assert primary_metric(metrics) == primary
