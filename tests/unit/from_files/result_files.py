"""Result files as the tools write them: lm-eval, GuideLLM, vllm bench, plain scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DATE = "2026-11-29T10-00-00.000000"


def scores(path: Path, values: list[float], **columns: list[Any]) -> Path:
    """A CSV of id and score, with further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join(["id", "score", *columns])]
    for number, value in enumerate(values):
        rows.append(
            ",".join(map(str, [f"q{number}", value, *(c[number] for c in columns.values())]))
        )
    path.write_text("\n".join(rows) + "\n")
    return path


def binary(n: int, right: int, broken: int = 0, repaired: int = 0) -> list[float]:
    """n answers of which the first `right` are right, but for `broken` of them;
    `repaired` others are right.
    """
    values = [1.0] * right + [0.0] * (n - right)
    values[:broken] = [0.0] * broken
    values[right : right + repaired] = [1.0] * repaired
    return values


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lm_eval_sample(
    number: int, filters: dict[str, float], *, prompt: str, metric: str
) -> list[dict]:
    """The lines of one document with four choices, one line for each filter."""
    question = prompt.format(number)
    choices = [["-1.0", "True"], ["-2.0", "False"], ["-3.0", "False"], ["-4.0", "False"]]
    return [
        {
            "doc_id": number,
            "doc": {"question": f"Question {number}", "category": f"part {number % 20}"},
            "target": "0",
            "arguments": {
                f"gen_args_{i}": {"arg_0": question, "arg_1": f" {c}"} for i, c in enumerate("ABCD")
            },
            "resps": [[choice] for choice in choices],
            "filtered_resps": choices,
            "filter": name,
            "metrics": [metric],
            "doc_hash": digest(f"Question {number}"),
            "prompt_hash": digest(question),
            "target_hash": digest("0"),
            metric: value,
        }
        for name, value in filters.items()
    ]


def lm_eval(folder: Path, tasks: dict[str, Any], *, date: str = DATE, **changes: Any) -> Path:
    """lm-eval's `--log_samples` output.

    Args:
        tasks: task -> values of its items, or filter -> values.
        changes: version, shots, prompt, metric, groups (name -> members), generation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metric, prompt = changes.get("metric", "acc"), changes.get("prompt", "Q: question {}\nA:")
    filters = {task: v if isinstance(v, dict) else {"none": v} for task, v in tasks.items()}
    for task, by_filter in filters.items():
        lines = []
        for number in range(len(next(iter(by_filter.values())))):
            values = {name: column[number] for name, column in by_filter.items()}
            lines += lm_eval_sample(number, values, prompt=f"{task} {prompt}", metric=metric)
        for line in lines:
            line["doc_hash"] = digest(f"{task} {line['doc_hash']}")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"samples_{task}_{date}.jsonl").write_text(text)
    results = _lm_eval_results(filters, metric, changes)
    (folder / f"results_{date}.json").write_text(json.dumps(results))
    return folder


def _lm_eval_results(
    filters: dict[str, dict[str, list[float]]], metric: str, changes: dict[str, Any]
) -> dict:
    groups = changes.get("groups", {})
    figures = {
        task: {f"{metric},{name}": sum(values) / len(values) for name, values in by_filter.items()}
        | {"alias": task}
        for task, by_filter in filters.items()
    }
    for group, members in groups.items():
        pooled = [value for member in members for value in filters[member]["none"]]
        figures[group] = {"alias": group, f"{metric},none": sum(pooled) / len(pooled)}
    generation = changes.get("generation")
    return {
        "results": figures,
        "group_subtasks": {**groups, **{task: [] for task in filters}},
        "configs": {task: {"task": task, "output_type": "multiple_choice",
                           "generation_kwargs": generation}
                    for task in filters},
        "versions": dict.fromkeys(filters, changes.get("version", 1.0)),
        "n-shot": dict.fromkeys(filters, changes.get("shots", 0)),
        "higher_is_better": {task: {metric: True} for task in figures},
        "n-samples": {task: {"original": 100, "effective": 100} for task in filters},
        "config": {"model": "local-completions",
                   "model_args": changes.get("model_args", {"model": "some-model"})},
        "max_length": changes.get("max_length", 2048),
        "lm_eval_version": changes.get("lm_eval_version", "0.4.13"),
        "model_name": "some-model",
    }  # fmt: skip


def vllm_bench(path: Path, tokens_per_s: float, concurrency: int = 8, **changes: Any) -> Path:
    """What `vllm bench serve --save-result` writes, without the details."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "date": "20261129-100000", "endpoint_type": "openai", "backend": "openai", "label": None,
        "model_id": "some-model", "tokenizer_id": "some-model", "num_prompts": 100,
        "request_rate": "inf",
        "burstiness": 1.0, "max_concurrency": concurrency, "duration": 20.0, "completed": 100,
        "failed": 0,
        "total_input_tokens": 12800, "total_output_tokens": 3200, "request_throughput": 5.0,
        "request_goodput": None, "output_throughput": tokens_per_s,
        "total_token_throughput": 5 * tokens_per_s,
        "mean_ttft_ms": 50.0, "median_ttft_ms": 48.0, "std_ttft_ms": 4.0, "p99_ttft_ms": 70.0,
    } | changes  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return path


def guidellm(
    path: Path, loads: dict[int, float], *, kind: str = "concurrent", output_tokens: float = 32
) -> Path:
    """The part of GuideLLM 0.8's JSON that tells how fast each load was;
    streams -> output tokens/s.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def load(streams: int, speed: float) -> dict:
        key = "streams" if kind == "concurrent" else "rate"
        latency = {
            "successful": {"mean": 50.0, "percentiles": {"p50": 50.0, "p95": 60.0, "p99": 70.0}}
        }
        return {
            "type_": "generative_benchmark",
            "config": {"strategy": {"type_": kind, key: streams}},
            "start_time": 100.0, "end_time": 120.0, "duration": 20.0,
            "metrics": {
                "request_totals": {"successful": 50, "errored": 0, "incomplete": 1, "total": 51},
                "output_token_count": {"successful": {"mean": output_tokens}},
                "prompt_token_count": {"successful": {"mean": 128.0}},
                "requests_per_second": {"successful": {"mean": 2.5}},
                "output_tokens_per_second": {"total": {"mean": speed}},
                "time_to_first_token_ms": latency, "inter_token_latency_ms": latency,
                "request_latency": latency,
            },
        }  # fmt: skip

    document = {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "benchmarks": [load(*pair) for pair in loads.items()],
        "conclusions": [],
    }
    path.write_text(json.dumps(document))
    return path
