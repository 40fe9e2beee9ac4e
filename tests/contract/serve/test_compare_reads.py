"""What `compare` reads is what lm-eval's and vLLM's own command lines write."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from model_serve_flow.errors import BadInput
from model_serve_flow.from_files.decision import compare_sides
from model_serve_flow.from_files.recognise import read_side
from model_serve_flow.from_files.rules import Rules

DOCUMENTS = 30
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["A", "B", "C", "D"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{word}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for name, pattern in (("strict", "(lolly)"), ("loose", "(lol)"))
    ],
}
TEXT = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
GROUP = {
    "group": "quiz",
    "task": ["quiz_red", "quiz_blue"],
    "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tasks of every output type, with local documents: a group, several filters, a text."""
    folder = tmp_path_factory.mktemp("tasks")
    kinds = {"quiz_red": CHOICE, "quiz_blue": CHOICE, "write": WRITTEN, "text": TEXT}
    for name, kind in kinds.items():
        rows = [
            {"question": f"{name} {n} is?", "answer": n % 4, "word": "lol" if n % 3 else "x", "subject": f"s{n % 12}"}
            for n in range(DOCUMENTS)
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        shots = {} if kind is TEXT else {"fewshot_split": "test"}
        text = yaml.safe_dump({"task": name, **source, **shots, **kind, "metadata": {"version": 1.0}})
        (folder / f"{name}.yaml").write_text(text)
    (folder / "quiz.yaml").write_text(yaml.safe_dump(GROUP))
    return folder


def lm_eval(tasks, output, seed, names="quiz,write,text", shots=0):
    """Runs lm-eval's command line with its model that guesses."""
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "dummy",
        "--tasks",
        names,
        "--include_path",
        str(tasks),
    ]
    options = ["--log_samples", "--output_path", str(output), "--seed", str(seed), "--num_fewshot", str(shots)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=tasks)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def runs(tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [lm_eval(tasks, folder / f"seed{seed}", seed) for seed in (1, 2)]


def test_what_lm_eval_writes_is_read_and_paired(runs):
    base, candidate = map(read_side, runs)
    assert base.kinds == ("lm-eval",)
    assert list(base.answers.tasks) == ["quiz", "text", "write"] or set(base.answers.tasks) == {"quiz", "text", "write"}
    found = compare_sides(base, candidate, Rules())
    quiz, write, text = (found.tasks[name].difference for name in ("quiz", "write", "text"))
    assert (quiz.n, quiz.chance, quiz.clusters.key) == (2 * DOCUMENTS, 25.0, "subject")
    assert (write.n, write.base, write.chance) == (DOCUMENTS, 100 * 20 / DOCUMENTS, None) or write.base == 0
    assert set(found.tasks["write"].metrics) == {"exact_match,strict", "exact_match,loose"}
    assert (text.n, text.unit) == (DOCUMENTS, "percent")
    assert quiz.flips.right_to_wrong + quiz.flips.wrong_to_right > 0  # it guesses anew with each seed


def test_another_number_of_examples_is_refused(runs, tasks, tmp_path):
    other = lm_eval(tasks, tmp_path / "shots", 2, names="quiz", shots=1)
    options = Rules()
    with pytest.raises(BadInput, match=r"lacks the task text, write|few-shot examples"):
        compare_sides(read_side(runs[0]), read_side(other), options)
