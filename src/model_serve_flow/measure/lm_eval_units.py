"""Resolves the profile's task names, and rehearses each task before an engine is asked.

lm-eval's names are tasks, groups and tags. A tag has no figure of its own, and a group has one only
if it declares it. Where a name has no figure that is the mean over its items, its members count as
tasks of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import TaskAccuracy
from model_serve_flow.measure.lm_eval_results import PERPLEXITY_METRICS, read_task

REHEARSED_ANSWER = "0"
SANDBOX = (
    "Run it with lm-eval itself in a sandbox, and compare the two results as docs/Compare.md says. "
    "Here, drop it from accuracy.tasks."
)


def units(index: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Returns the tasks and groups that are measured for the profile's names, each once.

    Args:
        index: lm-eval's `TaskManager.task_index`.
        names: tasks, groups and tags.

    Raises:
        FlowError: a group has members without a name, or a task is in two of the names.
    """
    found = tuple(dict.fromkeys(unit for name in names for unit in _units(index, name)))
    owners: dict[str, str] = {}
    for unit in found:
        for leaf in _leaves(index, unit):
            if owners.setdefault(leaf, unit) != unit:
                raise FlowError(
                    f"accuracy.tasks asks the task {leaf} twice: in {owners[leaf]} and in {unit}.",
                    "Name only one of the two.",
                )
    return found


def _units(index: Mapping[str, Any], name: str) -> list[str]:
    entry = index[name]
    if not _is_group(entry):
        return [name] if entry.cfg is not None else sorted(entry.tags)
    if _is_mean_over_items(entry.cfg):
        return [name]
    members = entry.cfg["task"]
    if odd := [member for member in members if not isinstance(member, str)]:
        raise FlowError(
            f"The group {name} has no mean over its items, and changes its members in place: "
            f"{odd[0]!r:.80}.",
            "Name the tasks themselves in accuracy.tasks.",
        )
    return [unit for member in members for unit in _units(index, member)]


def _is_group(entry: Any) -> bool:
    return entry.cfg is not None and isinstance(entry.cfg.get("task"), list)


def _is_mean_over_items(group: Mapping[str, Any]) -> bool:
    """Checks whether all figures of a group weight its members by their numbers of items."""
    declared = group.get("aggregate_metric_list") or []
    listed = declared if isinstance(declared, list) else [declared]
    return bool(listed) and all(figure.get("weight_by_size", True) for figure in listed)


def _leaves(index: Mapping[str, Any], name: str) -> list[str]:
    if name not in index or not _is_group(index[name]):
        return [name]
    members = [member for member in index[name].cfg["task"] if isinstance(member, str)]
    return [leaf for member in members for leaf in _leaves(index, member)]


def rehearse(manager: Any, names: Sequence[str], num_fewshot: int | None) -> None:
    """Asks the first item of each task without an engine, and reads the result.

    A task that cannot be measured or paired then fails now, and not after hours.

    Args:
        manager: lm-eval's `TaskManager`.
        names: the tasks and groups, as `units` returns them.
        num_fewshot: `accuracy.num_fewshot`.

    Raises:
        FlowError: a task would run code that the model wrote, has no value for each item, or gives
            results of another form.
    """
    import lm_eval

    for name in names:
        loaded = manager.load([name])
        _require_safe(loaded["tasks"])
        raw = lm_eval.simple_evaluate(
            model=_rehearsal(),
            tasks=[loaded["groups"][name]]
            if name in loaded.get("groups", {})
            else list(loaded["tasks"].values()),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=1,
            bootstrap_iters=0,
        )
        require_values(name, read_task(name, raw))


def _require_safe(tasks: Mapping[str, Any]) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise FlowError(
                f"The task {name} runs code that the model wrote, on this machine and with your "
                "rights. This flow does not.",
                SANDBOX,
            )


def require_values(name: str, measured: TaskAccuracy) -> None:
    """Checks that the task's figure is made of values of its items, so that items can be paired.

    Raises:
        FlowError: names the task and its figures.
    """
    metric = primary_metric(measured.metrics)
    parts = {"loglikelihood"} if metric in PERPLEXITY_METRICS else {metric}
    if not all(parts <= item.values.keys() for item in measured.items):
        raise FlowError(
            f"The task {name} gives no value of {metric} for each item, only a figure of them all. "
            "So base and candidate cannot be paired item by item.",
            "Drop it from accuracy.tasks, or take a task that scores each item.",
        )


def _rehearsal() -> Any:
    """Returns a model of lm-eval that gives every request the same answer."""
    from lm_eval.api.model import LM

    class Rehearsal(LM):
        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            return [-1.0] * len(requests)

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            return [REHEARSED_ANSWER] * len(requests)

    return Rehearsal()
