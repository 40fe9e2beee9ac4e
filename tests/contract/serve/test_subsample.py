"""The second measurement asks some items with the prompts that lm-eval gave them in the first."""

import json

import pytest
import yaml
from test_resume import SETTINGS, Endpoint, folder, serving  # noqa: F401

from model_serve_flow.compare.distribution_shift import pairs_of_second
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import measure_accuracy, measure_accuracy_again
from model_serve_flow.setup.tasks import task_definition

PARTS = {"left": 40, "right": 10}


@pytest.fixture
def examples(folder):  # noqa: F811
    """A group of two parts, whose prompts begin with two examples that lm-eval draws at random."""
    data = Flow.open("ci", SETTINGS, folder).workspace.data
    for part, size in PARTS.items():
        path = data / f"{part}.jsonl"
        rows = [
            {
                "id": f"{part}{n}",
                "question": f"{part} {n} is",
                "choices": list("defg"),
                "answer": n % 4,
            }
            for n in range(size)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        drawn = {"task": part, "num_fewshot": 2, "fewshot_split": "test"}
        (data / "tasks" / f"{part}.yaml").write_text(
            yaml.safe_dump(task_definition("word_analogies", path) | drawn)
        )
    mean = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {"group": "both", "task": list(PARTS), "aggregate_metric_list": mean}
    (data / "tasks" / "both.yaml").write_text(yaml.safe_dump(group))
    return folder


def opened(folder, items, **changes):  # noqa: F811
    again = {"accuracy.again": {"concurrency": 2, "batch_size": 3, "items_per_task": items}}
    tasks = {"accuracy.tasks": ["both", "word_analogies", "wikipedia"]}
    return Flow.open("ci", {**SETTINGS, **again, **tasks, **changes}, folder)


def test_the_items_that_are_asked_again_keep_their_prompts(examples):
    flow = opened(examples, 12)
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        first, again = measure_accuracy(flow, server), measure_accuracy_again(flow, server)
        assert measure_accuracy_again(flow, server) == again, "kept"
    pairs = pairs_of_second(first, again)  # refuses other prompts
    assert {task: len(found.rows) for task, found in pairs.items()} == {
        "both": 12,
        "word_analogies": 12,
    }
    parts = [item.id.partition("/")[0] for item in again.tasks["both"].items]
    assert parts.count("left") == pytest.approx(12 * 40 / 50, abs=1) and parts.count("right") >= 1
    assert len({row[0].prompt for row in pairs["both"].rows}) == 12
    assert again.protocol["items_per_task"] == 12


def test_all_items_are_asked_of_a_task_with_fewer_and_of_the_first_up_to_the_limit(examples):
    flow = opened(examples, 12, **{"accuracy.limit": 7})
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        first, again = measure_accuracy(flow, server), measure_accuracy_again(flow, server)
    assert {task: len(found.rows) for task, found in pairs_of_second(first, again).items()} == {
        "both": 12,
        "word_analogies": 7,
    }


def test_a_profile_of_texts_alone_asks_nothing_again(folder):  # noqa: F811
    flow = opened(folder, 5, **{"accuracy.tasks": ["wikipedia"]})
    with Endpoint() as endpoint:
        again = measure_accuracy_again(flow, serving(flow, endpoint.url))
        assert (again.tasks, endpoint.asked) == ({}, [])
