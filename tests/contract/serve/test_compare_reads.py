"""What `compare` reads is what lm-eval's and vLLM's own command lines write."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from test_guidellm_mock_server import mock, tokenizer

from model_serve_flow.compare.tiers import Tiers
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
        {
            "name": name,
            "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}],
        }
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
            {
                "question": f"{name} {n} is?",
                "answer": n % 4,
                "word": "lol" if n % 3 else "x",
                "subject": f"s{n % 12}",
            }
            for n in range(DOCUMENTS)
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
        }
        shots = {} if kind is TEXT else {"fewshot_split": "test"}
        text = yaml.safe_dump(
            {"task": name, **source, **shots, **kind, "metadata": {"version": 1.0}}
        )
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
    options = [
        "--log_samples",
        "--output_path",
        str(output),
        "--seed",
        str(seed),
        "--num_fewshot",
        str(shots),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, cwd=tasks
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.fixture(scope="module")
def runs(tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [lm_eval(tasks, folder / f"seed{seed}", seed) for seed in (1, 2)]


def test_what_lm_eval_writes_is_read_and_paired(runs):
    base, candidate = map(read_side, runs)
    assert base.kinds == ("lm-eval",)
    assert set(base.answers.tasks) == {"quiz", "text", "write"}  # the group is one task
    found = compare_sides(base, candidate, Rules())
    quiz, text = (found.tasks[name].difference for name in ("quiz", "text"))
    assert (quiz.n, quiz.chance, quiz.clusters.key) == (2 * DOCUMENTS, 25.0, "subject")
    # it guesses anew with each seed
    assert quiz.flips.right_to_wrong + quiz.flips.wrong_to_right > 0
    assert (text.n, text.unit) == (DOCUMENTS, "percent")
    written = found.tasks["write"].metrics
    assert {name: d.base for name, d in written.items()} == pytest.approx(
        {"exact_match,strict": 0.0, "exact_match,loose": 200 / 3}
    )
    assert all(d.chance is None for d in written.values())


def test_another_number_of_examples_is_refused(runs, tasks, tmp_path):
    other = read_side(lm_eval(tasks, tmp_path / "shots", 2, names="write", shots=1))
    one_task = Rules(tiers=Tiers(advisory=("quiz", "text")))
    with pytest.raises(
        BadInput, match="Task write: few-shot examples is 0 for the base and 1 for the candidate"
    ):
        compare_sides(read_side(runs[0]), other, one_task)


# --- vllm bench serve ---

BENCH = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""


def test_what_vllm_bench_writes_is_read_as_repeats_of_a_load(tmp_path):
    """The command of vLLM's CPU build asks for metadata of another name,
    so its two functions are called.
    """
    folder = tokenizer(tmp_path / "base")
    with mock(20) as (url, _):
        options = [
            "--backend",
            "openai",
            "--base-url",
            url,
            "--model",
            "base",
            "--tokenizer",
            str(folder),
        ]
        load = ["--dataset-name", "random", "--random-input-len", "16", "--random-output-len", "8"]
        result = [
            "--save-result",
            "--append-result",
            "--result-dir",
            str(tmp_path),
            "--result-filename",
            "bench.json",
        ]
        for _ in range(2):
            arguments = [*options, *load, *result, "--num-prompts", "6", "--max-concurrency", "2"]
            done = subprocess.run(
                [sys.executable, "-c", BENCH, *arguments], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
    side = read_side(tmp_path / "bench.json")
    assert [one.load for one in side.loads] == ["2 concurrent requests"] * 2
    assert not any(one.problem for one in side.loads)
    assert all(one.output_tokens_per_s > 0 and one.prompt_tokens > 0 for one in side.loads)
