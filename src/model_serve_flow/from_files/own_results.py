"""Reads the results of this flow: accuracy.json and performance.json of one model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_serve_flow.flow.results.measured import AccuracyResult, Item, PerformanceResult
from model_serve_flow.from_files.sides import Answers, Load, Task, concurrent
from model_serve_flow.system.files import read_result

KIND = "model-serve-flow"
ACCURACY, PERFORMANCE = "accuracy.json", "performance.json"
PER_TASK = ("data_sha256", "task_definitions")  # parts of the protocol with a value per task
WHICH_TASKS = ("tasks", "packaged")  # keys of its section 'accuracy' that only name the tasks
SURROUNDINGS = ("engine_version", "engine_arguments")  # may differ, and the reader is told


def read_accuracy(path: Path) -> Answers:
    """Reads an accuracy.json.

    Raises:
        FlowError: names the file and the wrong field.
    """
    result = read_result(path, AccuracyResult)
    protocol = {key: value for key, value in result.protocol.items() if key not in SURROUNDINGS}
    tasks = {
        name: Task(task, _of_task(name, protocol), {i.id: _question(i) for i in task.items})
        for name, task in result.tasks.items()
    }
    around = {key: result.protocol.get(key) for key in SURROUNDINGS}
    return Answers(KIND, tasks, result.model.name, around)


def read_performance(path: Path) -> tuple[Load, ...]:
    """Reads every load point and repeat of a performance.json.

    Raises:
        FlowError: names the file and the wrong field.
    """
    result = read_result(path, PerformanceResult)
    return tuple(
        Load(
            concurrent(point.concurrency),
            point.output_tokens_per_s,
            point.prompt_tokens,
            point.output_tokens,
            point.problem,
        )
        for point in result.points
    )


def _of_task(task: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parts of the protocol that concern one task."""
    accuracy = protocol.get("accuracy", {})
    settings = {key: value for key, value in accuracy.items() if key not in WHICH_TASKS}
    rest = {key: value for key, value in protocol.items() if key not in (*PER_TASK, "accuracy")}
    return {**settings, **rest, **{part: protocol.get(part, {}).get(task) for part in PER_TASK}}


def _question(item: Item) -> str:
    return hashlib.sha256(f"{item.prompt}\0{item.expected}".encode()).hexdigest()
