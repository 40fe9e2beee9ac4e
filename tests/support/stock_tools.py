"""lm-eval's own command against any OpenAI-compatible server, with two questions."""

import json
import os
import subprocess
import sys

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


def run(folder, *arguments, key="none"):
    """Runs a tool's command; its output is shown if it fails."""
    command = [sys.executable, "-m", *map(str, arguments)]
    log = folder / "tool.log"
    with log.open("wb") as output:
        variables = {**os.environ, **OFFLINE, "OPENAI_API_KEY": key}
        done = subprocess.run(command, cwd=folder, env=variables, stdout=output, stderr=output)
    assert done.returncode == 0, log.read_text()[-3000:]


def lm_eval(folder, url, model, tokenizer, concurrent=2, key="none"):
    """Scores a server's model; returns lm-eval's samples."""
    data = folder / "quiz.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (folder / "quiz.yaml").write_text(json.dumps(task))
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer={tokenizer}"
    run(
        folder,
        *("lm_eval", "run", "--model", "local-completions"),
        *("--model_args", f"{arguments},num_concurrent={concurrent},tokenized_requests=True"),
        *("--tasks", "quiz", "--include_path", ".", "--output_path", "out", "--log_samples"),
        key=key,
    )
    [samples] = (folder / "out").rglob("samples_quiz_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]
