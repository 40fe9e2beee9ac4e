"""Names of lm-eval that are no single task, and tasks that cannot be paired: the real lm-eval."""

import json

import pytest
import yaml
from test_resume import SETTINGS, Endpoint, folder, serving  # noqa: F401 (a fixture)
from transformers import AutoTokenizer

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure import accuracy
from model_serve_flow.measure.accuracy import measure_accuracy, prepare_evaluation

CODE = """
def build(resps, docs):
    return [[doc["q"] + answer for answer in one] for one, doc in zip(resps, docs)]

def passes(references, predictions):
    return 1.0

def together(doc, results):
    return {"f1": (1, results[0] == "x")}

def f1(items):
    return 0.5
"""
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
}
PASSES = "- metric: !function code.passes\n  aggregation: mean\n  higher_is_better: true\n"
FILTER = "- name: code\n  filter: [{function: custom, filter_fn: !function code.build}]\n"
F1 = "- {metric: f1, aggregation: !function code.f1, higher_is_better: true}\n"


@pytest.fixture
def tasks(folder, monkeypatch):  # noqa: F811
    """Tasks as users write them, in the workspace's folder; lm-eval's thousands are not indexed."""
    index = accuracy._task_index
    monkeypatch.setattr(accuracy, "_task_index", lambda place, names, _: index(place, names, False))
    place = Flow.open("ci", {}, folder).workspace.data / "tasks"
    (place / "code.py").write_text(CODE)
    for name, size in (("a", 6), ("b", 2)):
        rows = [{"q": f"{name}{n} is", "choices": ["x", "y"], "gold": n % 2} for n in range(size)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines)

    def write(name, settings, more=""):
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **settings}) + more)

    def data(name):
        files = {"test": str(place / f"{name}.jsonl")}
        return {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
        }

    for name in "ab":
        write(f"leaf_{name}", {**data(name), **CHOICE, "tag": "tagged"})
    for name, figures in (("micro", [True]), ("macro", [False]), ("plain", [])):
        listed = [{"metric": "acc", "weight_by_size": by_size} for by_size in figures]
        group = {"group": name, "task": ["leaf_a", "leaf_b"], "aggregate_metric_list": listed}
        (place / f"{name}.yaml").write_text(yaml.safe_dump(group))
    code = {**data("a"), **WRITTEN}
    write("code_task", code, f"metric_list:\n{PASSES}filter_list:\n{FILTER}")
    write("unsafe", {**code, "unsafe_code": True}, f"metric_list:\n{PASSES}filter_list:\n{FILTER}")
    write("whole", code, f"process_results: !function code.together\nmetric_list:\n{F1}")
    write("long", {**code, "doc_to_text": "Begin. {{ 'x ' * 150 }}{{q}}", "metric_list": [EXACT]})
    write("endless", {**code, "generation_kwargs": {"until": ["x"]}, "metric_list": [EXACT]})
    return folder


def opened(tasks, *names):
    return Flow.open("ci", SETTINGS | {"accuracy.tasks": list(names)}, tasks)


def measured(flow):
    prepare_evaluation(flow)
    with Endpoint() as endpoint:
        return measure_accuracy(flow, serving(flow, endpoint.url)), endpoint


@pytest.mark.parametrize("name", ["tagged", "plain", "macro"])
def test_a_tag_and_a_group_without_a_mean_over_items_are_read_by_their_leaves(tasks, name):
    result, _ = measured(opened(tasks, name))
    assert {task: scored.n for task, scored in result.tasks.items()} == {"leaf_a": 6, "leaf_b": 2}
    assert all("acc" in item.values for scored in result.tasks.values() for item in scored.items)


def test_a_group_weighted_by_size_stays_one_task(tasks):
    result, _ = measured(opened(tasks, "micro"))
    (group,) = result.tasks.values()
    values = [item.values["acc"] for item in group.items]
    assert len(values) == 8 and group.metrics["acc"].value == pytest.approx(sum(values) / 8)


def test_answers_may_be_lists_of_text(tasks):
    result, _ = measured(opened(tasks, "code_task"))
    item = result.tasks["code_task"].items[0]
    assert item.answer.startswith("a0 is ") and result.tasks["code_task"].chance is None
    assert item.values == {"passes,code": 1.0}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("unsafe",), "The task unsafe runs code that the model wrote"),
        (("whole",), "The task whole gives no value of f1 for each item"),
        (("tagged", "micro"), "the task leaf_a twice: in leaf_a and in micro"),
    ],
)
def test_what_cannot_be_paired_is_refused_before_an_engine_is_asked(tasks, names, message):
    with pytest.raises(FlowError, match=message):
        prepare_evaluation(opened(tasks, *names))


def test_prompts_that_were_cut_are_counted_and_told(tasks, capsys):
    result, _ = measured(opened(tasks, "long", "leaf_a"))
    assert result.cut_prompts == 6 and sum(result.requests.values()) == 6 + 6 * 2
    assert "6 prompts were longer than engine.max_model_len allows" in capsys.readouterr().out


def test_answers_that_leave_no_room_for_a_question_are_refused(tasks):
    with pytest.raises(FlowError, match="answers of 256 tokens, but only 127 fit"):
        measured(opened(tasks, "endless"))


@pytest.mark.parametrize("templated", [False, True])
def test_a_prompt_begins_as_the_endpoint_itself_would_begin_it(tasks, templated):
    """A tokenizer that writes a BOS: the prompt has one, and a chat template writes its own."""
    from tokenizers.processors import TemplateProcessing

    flow = opened(tasks, "leaf_a", "free", "wikipedia")
    flow = Flow.open("ci", {**flow.overrides, "accuracy.apply_chat_template": templated}, tasks)
    base = flow.workspace.model("base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer._tokenizer.post_processor = begin
    tokenizer.chat_template = "<bos>{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(base)
    _, endpoint = measured(flow)
    texts = [prompt for prompt in endpoint.asked if len(prompt) > 100]  # windows of long texts
    others = [prompt for prompt in endpoint.asked if 1 < len(prompt) <= 100]
    assert others and all(prompt[0] == bos and bos not in prompt[1:] for prompt in others)
    assert texts and all(prompt.count(bos) <= 1 for prompt in texts)
