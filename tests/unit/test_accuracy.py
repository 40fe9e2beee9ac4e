"""From lm-eval's results to items; the shapes are those of lm-eval 0.4.13 (checked for real in tests/e2e)."""

import math

import pytest

from model_serve_flow.accuracy import _task
from model_serve_flow.errors import FlowError


def choice(doc_id, likelihoods, acc, identity=None):
    return {
        "doc_id": doc_id,
        "doc": {"id": identity} if identity else {},
        "doc_hash": f"{doc_id:064x}",
        "arguments": [["question", f" {letter}"] for letter in "ABCD"],
        "filtered_resps": [[value, False] for value in likelihoods],
        "filter": "none",
        "metrics": ["acc"],
        "acc": acc,
    }


def written(response, values, filter_name="none"):
    """A sample of a task without choices."""
    return {
        "doc_id": 0,
        "doc": {},
        "doc_hash": "0" * 64,
        "arguments": [["prompt"]],
        "filtered_resps": [response],
        "filter": filter_name,
        "metrics": list(values),
        **values,
    }


def results(task, samples, figures, **more):
    return {"results": {task: figures}, "samples": {task: samples}, "higher_is_better": {}, **more}


def test_multiple_choice_keeps_id_value_answer_and_chance():
    raw = results(
        "q",
        [choice(0, [-3, -1, -2, -4], 1.0, "a"), choice(1, [-1, -2, -3, -4], 0.0)],
        {"acc,none": 0.5, "acc_stderr,none": 0.3},
    )
    task = _task("q", raw)
    assert task.n == 2 and task.chance == 0.25
    assert task.items[0].id == "a" and task.items[0].answer == "B" and task.items[0].value("acc") == 1.0
    assert task.items[1].id.startswith("1-")
    assert task.metrics["acc"].stderr == 0.3 and task.metrics["acc"].higher_is_better


def test_perplexity_keeps_its_parts():
    parts = {"word_perplexity": (-70.0, 20), "byte_perplexity": (-70.0, 100), "bits_per_byte": (-70.0, 100)}
    sample = written(-70.0, parts) | {"doc": {"id": "t"}}
    task = _task(
        "w", results("w", [sample], {"word_perplexity,none": math.exp(3.5), "word_perplexity_stderr,none": "N/A"})
    )
    item = task.items[0]
    assert (item.value("loglikelihood"), item.value("words"), item.value("bytes")) == (-70.0, 20, 100)
    assert item.value("bits_per_byte") == pytest.approx(0.7 / math.log(2))
    assert item.answer is None and task.chance is None
    assert not task.metrics["word_perplexity"].higher_is_better and task.metrics["word_perplexity"].stderr is None


def test_a_group_joins_its_members_under_distinct_ids():
    raw = results("mmlu", [], {"acc,none": 0.5})
    raw["samples"] = {"mmlu_law": [choice(0, [0, -1, -2, -3], 1.0)], "mmlu_art": [choice(0, [0, -1, -2, -3], 0.0)]}
    raw["group_subtasks"] = {"mmlu": ["mmlu_arts"], "mmlu_arts": ["mmlu_law", "mmlu_art"]}
    task = _task("mmlu", raw)
    assert {item.id.split("/")[0] for item in task.items} == {"mmlu_law", "mmlu_art"}


def test_filters_of_one_document_become_metrics_of_one_item():
    samples = [
        written("42", {"exact_match": value}, name)
        for name, value in (("strict-match", 0.0), ("flexible-extract", 1.0))
    ]
    figures = {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    task = _task("gsm8k", results("gsm8k", samples, figures))
    assert task.n == 1 and task.items[0].answer == "42"
    assert task.items[0].value("exact_match,flexible-extract") == 1.0
    assert set(task.metrics) == set(figures)


def test_a_metric_that_is_a_list_per_item_stays_an_aggregate():
    sample = written("text", {"prompt_level_strict_acc": True, "inst_level_strict_acc": [True, False]})
    task = _task(
        "ifeval", results("ifeval", [sample], {"prompt_level_strict_acc,none": 1.0, "inst_level_strict_acc,none": 0.5})
    )
    assert task.items[0].value("prompt_level_strict_acc") == 1.0
    with pytest.raises(KeyError):
        task.items[0].value("inst_level_strict_acc")


def test_no_scored_item_is_an_error():
    with pytest.raises(FlowError, match="no scored items for task 'q'"):
        _task("q", results("q", [], {"acc,none": 0.0}))
