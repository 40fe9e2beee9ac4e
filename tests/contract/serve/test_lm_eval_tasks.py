"""The profiles' tasks against the real lm-eval."""

import json

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import task_manager
from model_serve_flow.measure.lm_eval_results import mmlu_subject_group, read_task
from model_serve_flow.setup.tasks import TASKS, task_definition


def test_lm_eval_knows_every_task_of_the_gpu_profile(tmp_path):
    flow = Flow.open("gpu-llama-3.1-8b", {}, tmp_path)
    manager = task_manager(flow)
    assert set(flow.config.accuracy.tasks) <= set(manager.all_tasks)


def test_an_unknown_task_is_named(tmp_path):
    flow = Flow.open("gpu-llama-3.1-8b", {"accuracy.tasks": ["arc_easy", "arc_hard"]}, tmp_path)
    with pytest.raises(FlowError, match=r"Unknown task arc_hard in accuracy\.tasks"):
        task_manager(flow)


@pytest.fixture
def packaged(tmp_path):
    """lm-eval's index of the packaged tasks, one item each."""
    import yaml
    from lm_eval.tasks import TaskManager

    rows = {
        "mmlu_dev": {
            "question": "What is red?",
            "choices": ["sky", "blood", "grass", "coal"],
            "answer": 1,
            "subject": "human aging",
        },
        "word_analogies": {
            "question": "a is to b as c is to",
            "choices": ["d", "e", "f", "g"],
            "answer": 0,
            "category": "letters",
        },
        "wikipedia": {"title": "Red", "text": "Red is a colour."},
    }
    assert rows.keys() == TASKS.keys()
    for task, row in rows.items():
        data = tmp_path / f"{task}.jsonl"
        data.write_text(json.dumps({"id": "1", **row}) + "\n")
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(task_definition(task, data)))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_lm_eval_loads_the_packaged_tasks_as_we_write_them(packaged):
    loaded = packaged.load(list(TASKS))["tasks"]
    prompts = {name: task.doc_to_text(task.test_docs()[0]) for name, task in loaded.items()}
    assert prompts["mmlu_dev"].endswith("A. sky\nB. blood\nC. grass\nD. coal\nAnswer:")
    assert prompts["word_analogies"] == "a is to b as c is to"


def test_items_keep_what_was_asked_what_was_right_and_what_they_belong_to(packaged):
    import lm_eval

    raw = lm_eval.simple_evaluate(
        model="dummy", tasks=list(TASKS), task_manager=packaged, bootstrap_iters=0
    )
    items = {task: read_task(task, raw).items[0] for task in TASKS}
    mmlu, analogy, text = items["mmlu_dev"], items["word_analogies"], items["wikipedia"]
    assert mmlu.prompt.startswith(
        "The following are multiple choice questions (with answers) about human aging.\n\n"
    )
    assert mmlu.prompt.endswith("What is red?\nA. sky\nB. blood\nC. grass\nD. coal\nAnswer:")
    assert (mmlu.expected, mmlu.groups) == (
        "B",
        {"subject": "human aging", "subject group": "other"},
    )
    assert (analogy.prompt, analogy.expected) == ("a is to b as c is to", "d")
    assert analogy.groups == {"category": "letters"}
    assert (text.prompt, text.expected, text.answer) == (None, None, None)


def test_lm_eval_has_a_group_for_every_subject_of_its_mmlu():
    from importlib.resources import files

    prompts = files("lm_eval") / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    subjects = json.loads(prompts.read_text(encoding="utf-8"))
    groups = {mmlu_subject_group(subject.replace("_", " ")) for subject in subjects}
    assert groups == {"stem", "humanities", "social sciences", "other"} and len(subjects) == 57
