"""Turns lm-eval's results into `TaskAccuracy` with one record per item."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import RIGHT_CHOICE, Item, Metric, TaskAccuracy
from model_serve_flow.measure.right_choice import keep_whole, right_choice_probability

PERPLEXITY_METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def read_task(task: str, raw: dict[str, Any]) -> TaskAccuracy:
    """Reads one task of lm-eval's results.

    Raises:
        FlowError: the results are not in the form of lm-eval 0.4; names the place.
    """
    try:
        return _unchecked_task(task, raw)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise FlowError(
            f"lm-eval's results for task {task!r} are not those of lm-eval 0.4: "
            f"{type(error).__name__}: {error}",
            "Was another version of lm-eval installed? See its samples, or drop the task.",
        ) from error


def _unchecked_task(task: str, raw: dict[str, Any]) -> TaskAccuracy:
    paths = [path for path in _paths(task, raw) if path[-1] in raw["samples"]]
    records = [record for path in paths for record in _records(path, raw["samples"][path[-1]])]
    keep_whole(records)
    items = [Item(**record) for record in records]
    metrics = _metrics(task, raw)
    if not items or not metrics:
        raise FlowError(
            f"lm-eval returned no scored items for task {task!r}.",
            "See its samples, or drop the task.",
        )
    return TaskAccuracy(
        n=len(items),
        chance=_chance(raw["samples"][path[-1]] for path in paths),
        metrics=metrics,
        items=tuple(items),
    )


def _paths(task: str, raw: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lists the tasks with samples behind a name: the task, or the members of a group.

    Each member is given with its path. `mmlu` has 57, such as ("mmlu", "mmlu_stem",
    "mmlu_anatomy").
    """
    members = raw.get("group_subtasks", {}).get(task) or []
    return [(task, *path) for member in members for path in _paths(member, raw)] or [(task,)]


def was_asked(task: str, raw: dict[str, Any]) -> bool:
    """Checks whether lm-eval's results contain samples of the task."""
    return any(path[-1] in raw["samples"] for path in _paths(task, raw))


def _metrics(task: str, raw: dict[str, Any]) -> dict[str, Metric]:
    """Reads lm-eval's figures of a task.

    lm-eval's keys are 'metric,filter' and 'metric_stderr,filter'. The filter 'none' is dropped from
    the name.
    """
    figures = raw["results"][task]
    higher = raw.get("higher_is_better", {}).get(task, {})
    metrics = {}
    for key, value in figures.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = figures.get(f"{metric}_stderr,{filter_name}")
        metrics[_key(metric, filter_name)] = Metric(
            value=_number(value),
            stderr=stderr if isinstance(stderr, float) and math.isfinite(stderr) else None,
            higher_is_better=metric not in PERPLEXITY_METRICS
            and higher.get(metric, True) is not False,
        )
    return metrics


def _records(path: tuple[str, ...], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collects the fields of one item per document.

    lm-eval gives one sample per filter and document.
    """
    by_document: dict[str, dict[str, Any]] = {}
    owners: dict[str, Any] = {}
    for number, sample in enumerate(samples):
        try:
            identity = str(
                sample["doc"].get("id") or f"{sample['doc_id']}-{sample['doc_hash'][:16]}"
            )
            identity = f"{path[-1]}/{identity}" if len(path) > 1 else identity
            if owners.setdefault(identity, sample["doc_id"]) != sample["doc_id"]:
                # the dataset gives two documents the same id
                identity = f"{identity}-{sample['doc_id']}"
            if identity not in by_document:
                by_document[identity] = {
                    "id": identity,
                    "groups": _groups(path, sample["doc"]),
                    **_texts(sample),
                }
            by_document[identity].update(_values(sample))
            if (probability := right_choice_probability(sample)) is not None:
                by_document[identity][RIGHT_CHOICE] = probability
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ValueError(
                f"sample {number} of {path[-1]}: {type(error).__name__}: {error}"
            ) from error
    return list(by_document.values())


def _groups(path: tuple[str, ...], document: dict[str, Any]) -> dict[str, str]:
    """Returns the groups of a document: its subject or category, and its part of the task.

    The part of an MMLU task is, for instance, 'stem'.
    """
    own = {
        key: document[key] for key in ("subject", "category") if isinstance(document.get(key), str)
    }
    groups = {key: value.replace("_", " ") for key, value in own.items()}
    if path == ("mmlu_dev",):
        groups["subject group"] = mmlu_subject_group(groups["subject"])
    elif len(path) > 1:
        part = path[1].removeprefix(f"{path[0]}_").replace("_", " ")
        groups["subject group" if "subject" in groups else "subtask"] = part
    return groups


def mmlu_subject_group(subject: str) -> str:
    """Returns MMLU's group of a subject, as lm-eval forms it: 'abstract algebra' -> 'stem'."""
    from lm_eval.tasks.mmlu._generate_configs import SUBJECTS

    return SUBJECTS[subject.replace(" ", "_")].replace("_", " ")


def _values(sample: dict[str, Any]) -> dict[str, float]:
    """Reads an item's values: one number per metric.

    For rolling perplexity the values are its parts, from which any corpus figure can be computed. A
    metric that is a list per item (IFEval's instruction level) has no single value. Only lm-eval's
    own figure of such a metric is kept.
    """
    values = {}
    for metric in sample["metrics"]:
        value = sample[metric]
        if metric in PERPLEXITY_METRICS:
            log_likelihood, weight = value
            unit = "words" if metric == "word_perplexity" else "bytes"
            values |= {"loglikelihood": _number(log_likelihood), unit: _number(weight)}
            if metric == "bits_per_byte":
                values[metric] = -log_likelihood / (weight * math.log(2))
        elif not isinstance(value, list | tuple):
            values[_key(metric, sample["filter"])] = _number(value)
    return values


def _number(value: Any) -> float:
    """Converts a figure of lm-eval, a NumPy number or a bool to float; refuses text.

    Raises:
        ValueError: the value is text or not finite.
    """
    if isinstance(value, str | bytes) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} is not a finite number")
    return float(value)


def _texts(sample: dict[str, Any]) -> dict[str, str | None]:
    """Returns the prompt, the model's answer and the right answer; None for a perplexity."""
    if sample["metrics"] and sample["metrics"][0] in PERPLEXITY_METRICS:
        return {"prompt": None, "answer": None, "expected": None}
    target, arguments = sample["target"], sample["arguments"]
    if (written := _written(sample["filtered_resps"][0])) is not None:
        expected = target if isinstance(target, str) else None
        return {"prompt": str(arguments[0][0]), "answer": written, "expected": expected}
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    best = likelihoods.index(max(likelihoods))
    # In winogrande the choices are inside the question: the contexts differ and the continuations
    # are equal.
    differ = len(arguments) == 1 or len({continuation for _, continuation in arguments}) > 1
    given, choices = (0, 1) if differ else (1, 0)
    return {
        "prompt": str(arguments[0][given]),
        "answer": str(arguments[best][choices]).strip(),
        "expected": _right_choice(target, [str(pair[choices]).strip() for pair in arguments])
        if differ
        else None,
    }


def _written(answer: Any) -> str | None:
    """Returns the text that the model wrote, the first if it wrote several; None for a choice.

    A choice is (log-likelihood, is greedy), in lm-eval's files ["-1.5", "True"]. Tasks with code
    give a list of texts.
    """
    if not isinstance(answer, list | tuple):
        return str(answer)
    choice = len(answer) == 2 and str(answer[1]) in ("True", "False")
    return str(answer[0]) if answer and isinstance(answer[0], str) and not choice else None


def _right_choice(target: Any, choices: list[str]) -> str | None:
    """Returns the text of the right choice, which tasks name by number or by text.

    Returns:
        None if a number is out of range, or the target is neither number nor text.
    """
    if isinstance(target, int):
        return choices[target] if 0 <= target < len(choices) else None
    return target.strip() if isinstance(target, str) else None


def _chance(samples: Iterable[list[dict[str, Any]]]) -> float | None:
    """Computes the expected score of guessing; None if the model writes its answers."""
    choices = [
        len(s["filtered_resps"])
        for leaf in samples
        for s in leaf
        if _written(s["filtered_resps"][0]) is None
    ]
    return sum(1 / n for n in choices) / len(choices) if choices and min(choices) > 1 else None


def _key(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def plain(raw: dict[str, Any]) -> dict[str, Any]:
    """Converts lm-eval's results to JSON types; other values become text."""
    return json.loads(json.dumps(raw, default=str))
