"""Asks some tasks several times with other seeds, and joins the answers as items of one task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import QUESTION, Item, Metric, TaskAccuracy


def repeated_tasks(config: FlowConfig, tasks: Sequence[str]) -> tuple[str, ...]:
    """Returns the tasks that are asked several times."""
    repeats = config.accuracy.repeats
    return tuple(task for task in tasks if repeats is not None and task in repeats.tasks)


def seeds(config: FlowConfig) -> tuple[int, ...]:
    """Lists the seeds: one for each answer to an item."""
    repeats = config.accuracy.repeats
    assert repeats is not None
    return tuple(config.seed + number for number in range(1, repeats.count + 1))


def require_written(task: str, measured: TaskAccuracy) -> None:
    """Refuses a task whose answers the model does not write: seeds do not change log-likelihoods.

    Raises:
        FlowError: the task has choices, or scores a given text.
    """
    if measured.chance is not None or any(item.answer is None for item in measured.items):
        raise FlowError(
            f"accuracy.repeats names {task}, whose answers the model does not write.",
            "Another seed gives the same log-likelihoods: remove it from accuracy.repeats.tasks.",
        )


def joined(answers: dict[int, TaskAccuracy]) -> TaskAccuracy:
    """Joins the measurements of one task with different seeds.

    An item of the result is one answer. Its id is 'item#seed', and its group 'question' is the
    item. Figures are means over the seeds. They have no standard error, because lm-eval computes
    none for them.

    Args:
        answers: seed -> the measurement with this seed.
    """
    first = next(iter(answers.values()))
    items = [_answer(item, seed) for seed, measured in answers.items() for item in measured.items]
    figures = {
        name: Metric(
            value=fmean(measured.metrics[name].value for measured in answers.values()),
            stderr=None,
            higher_is_better=metric.higher_is_better,
        )
        for name, metric in first.metrics.items()
    }
    return TaskAccuracy(n=len(items), chance=None, metrics=figures, items=tuple(items))


def _answer(item: Item, seed: int) -> Item:
    groups = {**item.groups, QUESTION: item.id}
    return item.model_copy(update={"id": f"{item.id}#{seed}", "groups": groups})
