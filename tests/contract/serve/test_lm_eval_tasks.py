"""The profiles' tasks against the real lm-eval."""

import json

import pytest

from model_serve_flow.accuracy import task_manager
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.packaged_data import TASKS, task_definition


def test_lm_eval_knows_every_task_of_the_gpu_profile(tmp_path):
    flow = Flow.open("gpu-llama-3.1-8b", {}, tmp_path)
    manager = task_manager(flow)
    assert set(flow.config.accuracy.tasks) <= set(manager.all_tasks)


def test_an_unknown_task_is_named(tmp_path):
    flow = Flow.open("gpu-llama-3.1-8b", {"accuracy.tasks": ["arc_easy", "arc_hard"]}, tmp_path)
    with pytest.raises(FlowError, match=r"Unknown task arc_hard in accuracy\.tasks"):
        task_manager(flow)


def test_lm_eval_loads_the_packaged_tasks_as_we_write_them(tmp_path):
    import yaml
    from lm_eval.tasks import TaskManager

    rows = {
        "mmlu_dev": {
            "question": "What is red?",
            "choices": ["sky", "blood", "grass", "coal"],
            "answer": 1,
            "subject": "art",
        },
        "word_analogies": {"question": "a is to b as c is to", "choices": ["d", "e", "f", "g"], "answer": 0},
        "wikipedia": {"title": "Red", "text": "Red is a colour."},
    }
    assert rows.keys() == TASKS.keys()
    for task, row in rows.items():
        data = tmp_path / f"{task}.jsonl"
        data.write_text(json.dumps({"id": "1", **row}) + "\n")
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(task_definition(task, data)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    loaded = manager.load(list(rows))["tasks"]
    prompts = {name: task.doc_to_text(task.test_docs()[0]) for name, task in loaded.items()}
    assert prompts["mmlu_dev"].endswith("A. sky\nB. blood\nC. grass\nD. coal\nAnswer:")
    assert prompts["word_analogies"] == "a is to b as c is to"
