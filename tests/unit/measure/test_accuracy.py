"""From lm-eval's results to items; the shapes are those of lm-eval 0.4.13 (checked for real in
tests/e2e).
"""

import importlib.metadata
import math

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import (
    accuracy_protocol,
    measure_accuracy_again,
    second_measurement,
)
from model_serve_flow.measure.lm_eval_results import read_task
from model_serve_flow.measure.performance import performance_protocol


def choice(doc_id, likelihoods, acc, identity=None, **more):
    return {
        "doc_id": doc_id,
        "doc": {"id": identity} if identity else {},
        "doc_hash": f"{doc_id:064x}",
        "target": 2,
        "arguments": [("question\nAnswer:", f" {letter}") for letter in "ABCD"],
        "filtered_resps": [[value, False] for value in likelihoods],
        "filter": "none",
        "metrics": ["acc"],
        "acc": acc,
        **more,
    }


def written(response, values, filter_name="none"):
    """A sample of a task without choices."""
    return {
        "doc_id": 0,
        "doc": {},
        "doc_hash": "0" * 64,
        "target": "#### 42",
        "arguments": [("prompt", {"until": ["\n\n"]})],
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
    task = read_task("q", raw)
    assert task.n == 2 and task.chance == 0.25
    assert (
        task.items[0].id == "a"
        and task.items[0].answer == "B"
        and task.items[0].values["acc"] == 1.0
    )
    assert (task.items[0].prompt, task.items[0].expected) == ("question\nAnswer:", "C")
    assert task.items[1].id.startswith("1-")
    assert task.metrics["acc"].stderr == 0.3 and task.metrics["acc"].higher_is_better


def test_perplexity_keeps_its_parts():
    parts = {
        "word_perplexity": (-70.0, 20),
        "byte_perplexity": (-70.0, 100),
        "bits_per_byte": (-70.0, 100),
    }
    sample = written(-70.0, parts) | {"doc": {"id": "t"}}
    task = read_task(
        "w",
        results(
            "w",
            [sample],
            {"word_perplexity,none": math.exp(3.5), "word_perplexity_stderr,none": "N/A"},
        ),
    )
    item = task.items[0]
    assert (item.values["loglikelihood"], item.values["words"], item.values["bytes"]) == (
        -70.0,
        20,
        100,
    )
    assert item.values["bits_per_byte"] == pytest.approx(0.7 / math.log(2))
    assert (item.prompt, item.answer, item.expected) == (None, None, None) and task.chance is None
    assert (
        not task.metrics["word_perplexity"].higher_is_better
        and task.metrics["word_perplexity"].stderr is None
    )


def test_a_group_joins_its_members_under_distinct_ids_and_keeps_what_they_belong_to():
    raw = results("mmlu", [], {"acc,none": 0.5})
    likelihoods = [0, -1, -2, -3]
    raw["samples"] = {
        "mmlu_sociology": [choice(0, likelihoods, 1.0, doc={"subject": "sociology"})],
        "mmlu_us_foreign_policy": [
            choice(0, likelihoods, 0.0, doc={"subject": "us_foreign_policy"})
        ],
        "mmlu_anatomy": [choice(0, likelihoods, 0.0, doc={"subject": "anatomy"})],
    }
    raw["group_subtasks"] = {
        "mmlu": ["mmlu_stem", "mmlu_social_sciences"],
        "mmlu_stem": ["mmlu_anatomy"],
        "mmlu_social_sciences": ["mmlu_sociology", "mmlu_us_foreign_policy"],
    }
    items = {item.id.split("/")[0]: item.groups for item in read_task("mmlu", raw).items}
    assert items == {
        "mmlu_sociology": {"subject": "sociology", "subject group": "social sciences"},
        "mmlu_us_foreign_policy": {
            "subject": "us foreign policy",
            "subject group": "social sciences",
        },
        "mmlu_anatomy": {"subject": "anatomy", "subject group": "stem"},
    }


def test_a_group_of_other_tasks_is_cut_by_its_members():
    raw = results("bbh", [], {"acc,none": 0.5})
    raw["samples"] = {
        f"bbh_{name}": [choice(0, [0, -1], 1.0)] for name in ("snarks", "date_understanding")
    }
    raw["group_subtasks"] = {"bbh": list(raw["samples"])}
    groups = [item.groups for item in read_task("bbh", raw).items]
    assert groups == [{"subtask": "snarks"}, {"subtask": "date understanding"}]


def test_an_analogy_belongs_to_its_category():
    sample = choice(0, [0, -1, -2, -3], 1.0, doc={"id": "a", "category": "gram3-comparative"})
    task = read_task("word_analogies", results("word_analogies", [sample], {"acc,none": 1.0}))
    assert task.items[0].groups == {"category": "gram3-comparative"}


def test_choices_that_stand_inside_the_question():
    arguments = [
        (f"The trophy does not fit because the {noun}", " is too large.")
        for noun in ("trophy", "case")
    ]
    sample = choice(0, [-9.0, -4.0], 0.0, "w", arguments=arguments, target="is too large.")
    item = read_task("winogrande", results("winogrande", [sample], {"acc,none": 0.0})).items[0]
    assert (item.prompt, item.answer) == (
        " is too large.",
        "The trophy does not fit because the case",
    )
    assert item.expected is None


@pytest.mark.parametrize(("target", "expected"), [(0, "A"), ("B", "B"), (7, None), ([0, 1], None)])
def test_the_right_choice_by_number_or_by_text(target, expected):
    sample = choice(0, [0, -1, -2, -3], 1.0, "a", target=target)
    assert read_task("q", results("q", [sample], {"acc,none": 1.0})).items[0].expected == expected


@pytest.fixture
def lm_eval(monkeypatch):
    """Its version, which the protocol names; it is installed where it measures."""
    monkeypatch.setattr(importlib.metadata, "version", {"lm-eval": "0.4.13"}.__getitem__)


def test_the_second_measurement_differs_in_what_is_computed_together_and_in_nothing_else(
    tmp_path, lm_eval
):
    flow = Flow.open(
        "cpu-smollm2", {"accuracy.again": {"concurrency": 3, "batch_size": 20}}, tmp_path
    )
    again = Flow(second_measurement(flow.config), flow.workspace)
    first, second = (accuracy_protocol(one, "0.32.0") for one in (flow, again))
    assert (second["accuracy"].pop("concurrency"), second["accuracy"].pop("batch_size")) == (3, 20)
    assert (first["accuracy"].pop("concurrency"), first["accuracy"].pop("batch_size")) == (8, 32)
    assert first == second


def test_the_protocols_say_which_servers_have_a_prefix_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    flow = Flow.open("cpu-smollm2", {}, tmp_path)
    scores, speed = (accuracy_protocol(flow, "1"), performance_protocol(flow.config, "1"))
    assert "--enable-prefix-caching" in scores["engine_arguments"]
    assert "--no-enable-prefix-caching" in speed["engine_arguments"]


def test_what_else_is_measured_does_not_make_accuracy_another_protocol(tmp_path, lm_eval):
    protocols = [
        accuracy_protocol(
            Flow.open(
                "cpu-smollm2", {"accuracy.distribution": d, "accuracy.again": None}, tmp_path
            ),
            "1",
        )
        for d in (None, {"documents": 3, "tokens": 64})
    ]
    assert protocols[0] == protocols[1]


def test_a_profile_without_a_second_measurement_asks_nothing(tmp_path):
    flow = Flow.open("cpu-smollm2", {"accuracy.again": None}, tmp_path)
    assert measure_accuracy_again(flow, server=None) is None


def test_filters_of_one_document_become_metrics_of_one_item():
    samples = [
        written("42", {"exact_match": value}, name)
        for name, value in (("strict-match", 0.0), ("flexible-extract", 1.0))
    ]
    figures = {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    task = read_task("gsm8k", results("gsm8k", samples, figures))
    assert task.n == 1 and task.items[0].answer == "42"
    assert (task.items[0].prompt, task.items[0].expected) == ("prompt", "#### 42")
    assert task.items[0].values["exact_match,flexible-extract"] == 1.0
    assert set(task.metrics) == set(figures)


def test_two_documents_with_one_id_stay_two_items():
    samples = [choice(0, [-1, -2, -3, -4], 0.0, "q1"), choice(1, [-4, -3, -1, -2], 1.0, "q1")]
    task = read_task("arc_easy", results("arc_easy", samples, {"acc,none": 0.5}))
    assert [(item.id, item.values["acc"]) for item in task.items] == [("q1", 0.0), ("q1-1", 1.0)]


def test_a_metric_that_is_a_list_per_item_stays_an_aggregate():
    sample = written(
        "text", {"prompt_level_strict_acc": True, "inst_level_strict_acc": [True, False]}
    )
    task = read_task(
        "ifeval",
        results(
            "ifeval",
            [sample],
            {"prompt_level_strict_acc,none": 1.0, "inst_level_strict_acc,none": 0.5},
        ),
    )
    assert task.items[0].values["prompt_level_strict_acc"] == 1.0
    with pytest.raises(KeyError):
        task.items[0].values["inst_level_strict_acc"]


def test_no_scored_item_is_an_error():
    with pytest.raises(FlowError, match="no scored items for task 'q'"):
        read_task("q", results("q", [], {"acc,none": 0.0}))
