"""lm-eval in, `AccuracyResult` with one record per item out."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.kernels import require_expected_kernel
from model_serve_flow.packaged_data import TASKS
from model_serve_flow.results import AccuracyResult, Item, Metric, TaskAccuracy, protocol_hash
from model_serve_flow.serving import Server, engine_arguments
from model_serve_flow.workspace import describe_model, file_digest, write_json

PERPLEXITY_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def measure_accuracy(flow: Flow, server: Server) -> AccuracyResult:
    """Scores the served model on the profile's tasks and writes `accuracy.json` and lm-eval's samples (`raw/`).

    Raises:
        FlowError: a task lm-eval does not know, one without per-item values, or a kernel that is not the checkpoint's.
    """
    started = time.monotonic()
    raw = evaluate(flow, server)
    facts = server.facts()
    require_expected_kernel(facts, server.model_name, server.folder)
    protocol = accuracy_protocol(flow, facts.version)
    result = AccuracyResult(
        model=describe_model(server.model_name, server.folder),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        engine=facts,
        seconds=time.monotonic() - started,
        tasks={task: _task(task, raw) for task in flow.config.accuracy.tasks},
    )
    write_json(flow.workspace.raw(server.model_name) / "lm-eval.json", _plain(raw))
    write_json(flow.workspace.results(server.model_name) / "accuracy.json", result)
    return result


def evaluate(flow: Flow, server: Server) -> dict[str, Any]:
    """Runs lm-eval's `simple_evaluate` against the endpoint; returns its results with all samples.

    Its progress can be followed in `logs/lm-eval-<model>.log`.
    """
    import lm_eval

    accuracy = flow.config.accuracy
    endpoint = {
        "model": server.model_name,
        "base_url": f"{server.url}/v1/completions",
        "tokenizer": str(server.folder),
        "tokenizer_backend": "huggingface",
        "tokenized_requests": True,
        "num_concurrent": accuracy.concurrency,
        "batch_size": accuracy.batch_size,
        "max_length": flow.config.engine.max_model_len,
    }
    if server.api_key:
        os.environ["OPENAI_API_KEY"] = server.api_key
    seed = flow.config.seed
    run = functools.partial(
        lm_eval.simple_evaluate,
        model="local-completions",
        model_args=endpoint,
        tasks=list(accuracy.tasks),
        task_manager=task_manager(flow),
        num_fewshot=accuracy.num_fewshot,
        limit=accuracy.limit,
        apply_chat_template=accuracy.apply_chat_template,
        log_samples=True,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    log = flow.workspace.logs / f"lm-eval-{server.model_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Its progress bars would be hundreds of lines of an executed notebook: they go to a log that can be followed.
    # It starts an event loop of its own, which a notebook's thread, having one already, does not allow.
    with (
        log.open("w", encoding="utf-8", buffering=1) as sink,
        contextlib.redirect_stderr(sink),
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        return thread.submit(run).result()


def task_manager(flow: Flow) -> Any:
    """lm-eval's index of tasks: the packaged ones, and its own where the profile names any of them.

    Raises:
        FlowError: the profile names a task nobody knows.
    """
    from lm_eval.tasks import TaskManager

    folder = flow.workspace.data / "tasks"
    packaged = {path.stem for path in folder.glob("*.yaml")}
    stock = [task for task in flow.config.accuracy.tasks if task not in packaged]
    # Indexing lm-eval's thousands of tasks takes seconds: only where one of them is asked for.
    manager = TaskManager(include_path=str(folder) if packaged else None, include_defaults=bool(stock))
    unknown = [task for task in stock if task not in manager.all_tasks]
    if unknown:
        raise FlowError(
            f"Unknown task {', '.join(unknown)} in accuracy.tasks.",
            f"Packaged tasks: {', '.join(sorted(packaged)) or 'none'}. lm-eval's own: 'lm-eval ls tasks' prints them.",
        )
    return manager


def accuracy_protocol(flow: Flow, engine_version: str) -> dict[str, Any]:
    """All that must be equal for two accuracy results to be comparable."""
    tasks = flow.config.accuracy.tasks
    packaged = [task for task in tasks if (flow.workspace.data / f"{task}.jsonl").is_file()]
    return {
        "accuracy": flow.config.accuracy.model_dump(mode="json"),
        "data_sha256": {task: file_digest(flow.workspace.data / f"{task}.jsonl") for task in packaged},
        "task_definitions": {task: TASKS[task] for task in packaged},
        "engine_arguments": engine_arguments(flow.config),
        "engine_version": engine_version,
        "lm_eval_version": importlib.metadata.version("lm-eval"),
        "seed": flow.config.seed,
    }


def _task(task: str, raw: dict[str, Any]) -> TaskAccuracy:
    leaves = [leaf for leaf in _leaves(task, raw) if leaf in raw["samples"]]
    items = [item for leaf in leaves for item in _items(leaf, raw["samples"][leaf], grouped=leaves != [task])]
    metrics = _metrics(task, raw)
    if not items or not metrics:
        raise FlowError(f"lm-eval returned no scored items for task {task!r}.", "See its samples, or drop the task.")
    return TaskAccuracy(
        n=len(items), chance=_chance(raw["samples"][leaf] for leaf in leaves), metrics=metrics, items=tuple(items)
    )


def _leaves(task: str, raw: dict[str, Any]) -> list[str]:
    """The tasks with samples behind a name: itself, or the members of a group (mmlu has 57), in depth."""
    members = raw.get("group_subtasks", {}).get(task) or []
    return [leaf for member in members for leaf in _leaves(member, raw)] or [task]


def _metrics(task: str, raw: dict[str, Any]) -> dict[str, Metric]:
    """lm-eval's figures: keys are 'metric,filter', or 'metric_stderr,filter'; the filter 'none' is dropped."""
    figures = raw["results"][task]
    higher = raw.get("higher_is_better", {}).get(task, {})
    metrics = {}
    for key, value in figures.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = figures.get(f"{metric}_stderr,{filter_name}")
        metrics[_key(metric, filter_name)] = Metric(
            value=float(value),
            stderr=stderr if isinstance(stderr, float) and math.isfinite(stderr) else None,
            higher_is_better=metric not in PERPLEXITY_METRICS and higher.get(metric, True) is not False,
        )
    return metrics


def _items(leaf: str, samples: list[dict[str, Any]], *, grouped: bool) -> Iterator[Item]:
    """One item per document; a task with several filters has one sample per filter and document."""
    by_document: dict[str, dict[str, Any]] = {}
    for sample in samples:
        identity = str(sample["doc"].get("id") or f"{sample['doc_id']}-{sample['doc_hash'][:16]}")
        identity = f"{leaf}/{identity}" if grouped else identity
        record = by_document.setdefault(identity, {"id": identity, "answer": _answer(sample)})
        record.update(_values(sample))
    for record in by_document.values():
        yield Item(**record)


def _values(sample: dict[str, Any]) -> dict[str, float]:
    """The per-item values: a number per metric; for rolling perplexity its parts, so that any corpus figure follows.

    A metric that is a list per item (IFEval's instruction level) has no single value and is left to lm-eval's figure.
    """
    values = {}
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric in PERPLEXITY_METRICS:
            log_likelihood, weight = value
            unit = "words" if metric == "word_perplexity" else "bytes"
            values |= {"loglikelihood": float(log_likelihood), unit: float(weight)}
            if metric == "bits_per_byte":
                values[metric] = -log_likelihood / (weight * math.log(2))
        elif not isinstance(value, list | tuple):
            values[_key(metric, sample["filter"])] = float(value)
    return values


def _answer(sample: dict[str, Any]) -> str | None:
    """What the model chose or wrote: the likeliest choice, the text; none for a perplexity."""
    responses = sample["filtered_resps"]
    if sample["metrics"] and sample["metrics"][0] in PERPLEXITY_METRICS:
        return None
    if isinstance(responses[0], list | tuple):
        likelihoods = [float(response[0]) for response in responses]
        best = likelihoods.index(max(likelihoods))
        return str(sample["arguments"][best][1]).strip()
    return str(responses[0])


def _chance(samples: Iterable[list[dict[str, Any]]]) -> float | None:
    """Expected score of guessing among the choices; none where the model writes freely."""
    choices = [
        len(s["filtered_resps"]) for leaf in samples for s in leaf if isinstance(s["filtered_resps"][0], list | tuple)
    ]
    return sum(1 / n for n in choices) / len(choices) if choices and min(choices) > 1 else None


def _key(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _plain(raw: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results with what JSON cannot hold written as text."""
    return json.loads(json.dumps(raw, default=str))
