"""GuideLLM and lm-eval, unchanged, against the own server."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
QUESTIONS = [
    {
        "question": "The end of the process is",
        "choices": [" import", " a file", " os"],
        "answer": 1,
    },
    {"question": "def", "choices": [" one", " another one"], "answer": 0},
]
TASK = {
    "task": "quiz",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "num_fewshot": 0,
    "metric_list": [{"metric": "acc"}],
}


def run(folder, *arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    log = folder / "tool.log"
    with log.open("wb") as output:
        variables = {**os.environ, **OFFLINE}
        done = subprocess.run(command, cwd=folder, env=variables, stdout=output, stderr=output)
    assert done.returncode == 0, log.read_text()[-3000:]


def test_guidellm_measures_it(server, tiny_model, tmp_path):
    data = {"kind": "synthetic_text", "prompt_tokens": 32, "output_tokens": 16}
    run(
        tmp_path,
        *("guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={server.url},model=tiny"),
        *("--tokenizer", f"kind=huggingface_auto,model={tiny_model}"),
        *("--data", json.dumps(data)),
        *("--profile", '{"kind":"concurrent","streams":[4]}'),
        *("--constraint", "kind=max_requests,count=20"),
        *("--output", "kind=json,path=report.json"),
    )
    [load] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    requests = load["requests"]
    assert len(requests["successful"]) == 20 and not requests["errored"]
    assert all(request["output_tokens"] == 16 for request in requests["successful"])
    assert all(request["time_to_first_token_ms"] > 0 for request in requests["successful"])


def likelihood(model, tokenizer, question, choice):
    """What transformers thinks of an answer."""
    begin, whole = (tokenizer.encode(text).ids for text in (question, question + choice))
    scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].detach(), dim=-1)
    places = range(len(begin), len(whole))
    return sum(float(scores[place - 1, whole[place]]) for place in places)


def test_lm_eval_scores_it_as_transformers_would(server, tiny_model, tokenizer, tmp_path):
    data = tmp_path / "quiz.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (tmp_path / "quiz.yaml").write_text(json.dumps(task))
    arguments = f"model=tiny,base_url={server.url}/v1/completions,tokenizer={tiny_model}"
    run(
        tmp_path,
        *("lm_eval", "run", "--model", "local-completions"),
        *("--model_args", f"{arguments},num_concurrent=2,tokenized_requests=True"),
        *("--tasks", "quiz", "--include_path", ".", "--output_path", "out", "--log_samples"),
    )
    [samples] = (tmp_path / "out").rglob("samples_quiz_*.jsonl")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for sample in map(json.loads, samples.read_text().splitlines()):
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        expected = [likelihood(model, tokenizer, question, choice) for choice in choices]
        assert found == pytest.approx(expected, abs=1e-3)
