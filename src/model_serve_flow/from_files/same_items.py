"""Refuses two sides with different items, prompts or settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from model_serve_flow.compare.stats.bootstrap import LEAST_UNITS
from model_serve_flow.compare.stats.clusters import ITEMS_PER_CLUSTER
from model_serve_flow.errors import BadInput
from model_serve_flow.from_files.sides import Answers, Side, Task, escaped

CLUSTER = "cluster"  # the column of a file of scores
SHOWN = 3  # items named in a message
SAME_WORK = "Measure both sides with the same items, prompts and settings."


def require_two_sides(base: Side, candidate: Side) -> None:
    """Refuses two sides that are the same path or have nothing to compare.

    Raises:
        BadInput: names both sides and their kinds.
    """
    if base.path.resolve() == candidate.path.resolve():
        raise BadInput(f"Base and candidate are the same: {base.path}.", "Name two results.")
    if base.answers and candidate.answers:
        if base.answers.kind != candidate.answers.kind:
            problem = (
                f"{base.path} is of {base.answers.kind} and {candidate.path} of "
                f"{candidate.answers.kind}: their items have other ids."
            )
            raise BadInput(problem, "Give two results of the same tool.")
    elif not (base.loads and candidate.loads):
        kinds = [f"{side.path} holds {', '.join(side.kinds)}" for side in (base, candidate)]
        raise BadInput(f"{' and '.join(kinds)}: there is nothing to compare.", SAME_WORK)


def shared_tasks(base: Side, candidate: Side, may_miss: Collection[str]) -> list[str]:
    """Lists the tasks of both sides, in the base's order.

    Args:
        may_miss: tasks that one side may lack.

    Raises:
        BadInput: one side lacks another task.
    """
    ours, theirs = base.answered.tasks, candidate.answered.tasks
    for side, other in ((base, candidate), (candidate, base)):
        lacking = sorted(other.answered.tasks.keys() - side.answered.tasks.keys() - set(may_miss))
        if lacking:
            raise BadInput(
                f"{side.path} lacks the task {', '.join(lacking)}, which {other.path} has.",
                f"Measure it as well, or let it not decide: --advisory {lacking[0]}",
            )
    return [task for task in ours if task in theirs]


def require_same_items(task: str, base: Side, candidate: Side) -> None:
    """Refuses a task if its items, prompts or settings differ.

    Raises:
        BadInput: names the task and the difference, with items or values of both sides.
    """
    ours, theirs = (side.answered.tasks[task] for side in (base, candidate))
    _require_same_protocol(task, ours, theirs)
    _require_same_ids(task, base, candidate)
    _require_same_questions(task, ours, theirs)
    _require_same_clusters(task, ours, theirs)
    if ours.accuracy.chance != theirs.accuracy.chance:
        chances = f"{ours.accuracy.chance} for the base, {theirs.accuracy.chance} for the candidate"
        raise BadInput(f"Task {task}: guessing scores {chances}.", SAME_WORK)
    lacking = sorted(ours.accuracy.metrics.keys() ^ theirs.accuracy.metrics.keys())
    if lacking:
        raise BadInput(f"Task {task}: only one side has the metric {lacking[0]}.", SAME_WORK)


def other_surroundings(base: Answers, candidate: Answers) -> list[str]:
    """Lists other settings that differ: allowed, but they contribute to the difference."""
    keys = dict.fromkeys([*base.surroundings, *candidate.surroundings])
    values = {key: (base.surroundings.get(key), candidate.surroundings.get(key)) for key in keys}
    return [
        f"{key} differs, so the difference holds its effect too: {_short(one)} for the base, "
        f"{_short(other)} for the candidate."
        for key, (one, other) in values.items()
        if one != other
    ]


def ignored_clusters(task: str, base: Task, candidate: Task) -> str:
    """Says why the column `cluster` of a task is ignored; empty if it is used or not there.

    The base's column counts for both sides, because a cluster belongs to the item.
    """
    ours, n = _clusters(base), base.accuracy.n
    count = len(set(ours.values()))
    if not ours and not _clusters(candidate):
        return ""
    if not ours:
        reason = "only the candidate has it; the base's column counts"
    elif len(ours) < n:
        reason = f"{n - len(ours)} of {n} items of the base have none"
    elif count < LEAST_UNITS:
        reason = f"it has {count} values, and at least {LEAST_UNITS} are needed"
    elif count > n / ITEMS_PER_CLUSTER:
        reason = f"it has {count} values for {n} items, fewer than {ITEMS_PER_CLUSTER} items each"
    else:
        return ""
    return f"Task {task}: the column cluster is ignored, and each item counts as single: {reason}."


def _require_same_clusters(task: str, base: Task, candidate: Task) -> None:
    ours, theirs = _clusters(base), _clusters(candidate)
    for id in sorted(ours.keys() & theirs.keys()):
        if ours[id] != theirs[id]:
            values = f"{_short(ours[id])} for the base and {_short(theirs[id])} for the candidate"
            raise BadInput(f"Task {task}: the cluster of the item {id} is {values}.", SAME_WORK)


def _clusters(task: Task) -> dict[str, str]:
    """Returns item id -> cluster; an item without one is not there."""
    items = task.accuracy.items
    return {item.id: item.groups[CLUSTER] for item in items if CLUSTER in item.groups}


def _require_same_protocol(task: str, base: Task, candidate: Task) -> None:
    for key in dict.fromkeys([*base.protocol, *candidate.protocol]):
        ours, theirs = base.protocol.get(key), candidate.protocol.get(key)
        if ours != theirs:
            values = f"{_short(ours)} for the base and {_short(theirs)} for the candidate"
            raise BadInput(f"Task {task}: {key} is {values}.", SAME_WORK)


def _require_same_ids(task: str, base: Side, candidate: Side) -> None:
    for side, other in ((base, candidate), (candidate, base)):
        ids = _ids(task, other)
        lacking = sorted(ids - _ids(task, side))
        if lacking:
            count = f"{len(lacking)} item{'s' if len(lacking) > 1 else ''} of {len(ids)}"
            raise BadInput(f"Task {task}: {side.path} lacks {count}: {_names(lacking)}.", SAME_WORK)


def _require_same_questions(task: str, base: Task, candidate: Task) -> None:
    other = candidate.questions
    odd = [id for id, asked in base.questions.items() if other.get(id, asked) != asked]
    if odd:
        count = f"{len(odd)} of {base.accuracy.n} items"
        problem = f"Task {task}: {count} have another prompt or right answer"
        reasons = "a chat template, the few-shot examples or their seed, another data set."
        raise BadInput(f"{problem}: {_names(odd)}.", f"What may differ: {reasons} {SAME_WORK}")


def _ids(task: str, side: Side) -> set[str]:
    return {item.id for item in side.answered.tasks[task].accuracy.items}


def _names(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")


def _short(value: Any) -> str:
    text = escaped(str(value))
    return text if len(text) <= 200 else f"{text[:200]}…"
