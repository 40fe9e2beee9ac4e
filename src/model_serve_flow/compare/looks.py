"""Compares a candidate that is asked its items in parts (looks), and decides after each look.

The tests of all looks are joined into one p-value per question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_serve_flow.compare.differences import (
    LOGLIKELIHOOD_METRIC,
    TEXT_KEYS,
    Differences,
    compare_suite,
    compare_task,
    deciding,
)
from model_serve_flow.compare.intervals import repeated_interval
from model_serve_flow.compare.pairs import Pairs, pair
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.compare.secondary import secondary_readings, warnings
from model_serve_flow.compare.stats.looks import sequential_p
from model_serve_flow.compare.tiers import WITHHELD, Tiers, withheld
from model_serve_flow.compare.verdict import decide, loss_p_values
from model_serve_flow.flow.profile import FlowConfig, Verdict
from model_serve_flow.flow.results.compared import Decision, Difference, GrossLoss, Warned
from model_serve_flow.flow.results.measured import (
    LOOK,
    AccuracyResult,
    Item,
    Looks,
    Metric,
    TaskAccuracy,
)


@dataclass(frozen=True)
class Answers:
    """The differences of one candidate from the base, not yet corrected for other candidates."""

    tasks: list[Pairs]
    differences: Differences
    counting: Differences  # without the advisory tasks
    suite: Difference | None
    looks: Looks | None


def compare_answers(
    base: AccuracyResult, candidate: AccuracyResult, margins: Verdict, seed: int
) -> Answers:
    """Computes the paired differences over the items that the candidate was asked.

    The p-values are those over all looks of the candidate.

    Raises:
        FlowError: the candidate's items are not the base's.
    """
    until, tiers = _items_until(candidate), tiers_of(margins)
    seen = [_one_look(base, candidate, ids, margins, seed) for ids in until]
    if not candidate.looks:
        return seen[0]
    shares = [{task: len(ids[task]) / base.tasks[task].n for task in base.tasks} for ids in until]
    differences = _tasks_over_looks(seen, shares)
    return Answers(
        tasks=seen[-1].tasks,
        differences=differences,
        counting=tiers.counting(differences),
        suite=_suite_over_looks(seen, shares),
        looks=_looks(base, candidate),
    )


def decided(
    margins: Verdict, answers: Answers, others: Sequence[float], secondary: Sequence[Warned]
) -> tuple[Decision, tuple[str, ...]]:
    """Returns the verdict with its reasons.

    Secondary margins add warnings. With `action: withhold` in the profile they also turn SHIP into
    INCONCLUSIVE.
    """
    verdict, reasons, _ = decide(answers.differences, answers.suite, tiers_of(margins), others)
    told = warnings(margins.secondary, secondary)
    if margins.secondary.action == "withhold" and told and verdict == "SHIP":
        return withheld(verdict, told), (*(f"{sentence} {WITHHELD}" for sentence in told), *reasons)
    return verdict, (*reasons, *told)


def tiers_of(margins: Verdict) -> Tiers:
    """Returns the tiers that the profile gives its tasks."""
    return Tiers(margins.required, margins.advisory)


def gross_losses(differences: Differences) -> dict[str, GrossLoss]:
    """Returns task -> gross loss in the primary metric, for the tasks that decide."""
    primaries = {task: metrics[primary_metric(metrics)] for task, metrics in differences.items()}
    return {task: d.gross_loss for task, d in primaries.items() if d.gross_loss and d.decides}


def looks_sentence(looks: Looks | None) -> list[str]:
    """Says how many looks were made and what was saved; empty if all items were asked at once."""
    if looks is None:
        return []
    share = looks.items / looks.of_items
    asked = f"{looks.items:,} of {looks.of_items:,} items ({share:.0%})"
    if looks.made < looks.planned:
        saved = f"it was decided then, and {1 - share:.0%} of its answers were not needed"
    else:
        saved = "no look before the last decided it"
    return [f"Looked at {looks.made} of {looks.planned} times, at last on {asked}: {saved}."]


def interim_verdict(
    config: FlowConfig, base: AccuracyResult, candidate: AccuracyResult
) -> Decision:
    """Decides on the items asked until now; no other candidate can undo SHIP or DO NOT SHIP.

    SHIP is corrected over all candidates. A candidate that is not measured yet counts with p-values
    of 1. Where secondary margins withhold SHIP, gross losses count already; divergence does not
    depend on the items and is left out.
    """
    margins = config.verdict
    found = compare_answers(base, candidate, margins, config.seed)
    questions = len(loss_p_values(found.counting, found.suite))
    unknown = [1.0] * (questions * (len(config.candidates) - 1))
    secondary = secondary_readings(margins.secondary, None, gross_losses(found.differences))
    return decided(margins, found, unknown, secondary)[0]


def _items_until(candidate: AccuracyResult) -> list[dict[str, set[str]]]:
    """Returns, for every look, task -> ids of all items asked until then.

    If all items were asked at once, there is one look.
    """
    if not candidate.looks:
        return [{name: {item.id for item in task.items} for name, task in candidate.tasks.items()}]
    until: list[dict[str, set[str]]] = []
    for new in candidate.looks:
        before = until[-1] if until else {}
        until.append({task: before.get(task, set()) | set(ids) for task, ids in new.items()})
    return until


def _one_look(
    base: AccuracyResult,
    candidate: AccuracyResult,
    ids: Mapping[str, set[str]],
    margins: Verdict,
    seed: int,
) -> Answers:
    ours, theirs = (
        {task: part_of(result.tasks[task], ids[task]) for task in base.tasks}
        for result in (base, candidate)
    )
    tasks = [pair(task, ours[task], theirs[task]) for task in base.tasks]
    differences = {pairs.task: compare_task(pairs, margins, seed) for pairs in tasks}
    counting = tiers_of(margins).counting(differences)
    return Answers(tasks, differences, counting, compare_suite(counting, margins), looks=None)


def _tasks_over_looks(
    seen: Sequence[Answers], shares: Sequence[Mapping[str, float]]
) -> Differences:
    def told(task: str, metric: str, last: Difference) -> Difference:
        looks = [one.differences[task].get(metric) for one in seen]
        return _over_looks(last, looks, [share[task] for share in shares])

    return {
        task: {metric: told(task, metric, d) for metric, d in metrics.items()}
        for task, metrics in seen[-1].differences.items()
    }


def _suite_over_looks(
    seen: Sequence[Answers], shares: Sequence[Mapping[str, float]]
) -> Difference | None:
    """Returns the average with the p-values of all looks joined.

    The average's share of the items at a look is the mean of its tasks' shares.
    """
    last = seen[-1]
    if last.suite is None:
        return None
    tasks = list(deciding(last.counting))
    means = [float(np.mean([share[task] for task in tasks])) for share in shares]
    return _over_looks(last.suite, [one.suite for one in seen], means)


def _looks(base: AccuracyResult, candidate: AccuracyResult) -> Looks:
    made, planned = candidate.protocol[LOOK]
    asked = sum(task.n for task in candidate.tasks.values())
    whole = sum(base.tasks[task].n for task in candidate.tasks)
    return Looks(planned=planned, made=made, items=asked, of_items=whole)


def _over_looks(
    last: Difference, looks: Sequence[Difference | None], shares: Sequence[float]
) -> Difference:
    """Returns the difference of the last look with the p-values of all looks joined into one.

    A look at which the task could not decide rejects nothing. The interval becomes the repeated
    confidence interval, which holds although one may have stopped because of what was seen.
    """
    ps = [_p_values(d) for d in looks]
    new = dict(zip(shares, ps, strict=True))  # a small task may get no new items at a look
    within, beyond = (sequential_p([p[side] for p in new.values()], list(new)) for side in (0, 1))
    made = tuple(new)
    return last.model_copy(
        update={
            "look_p": (within, beyond),
            "look_shares": made,
            "ci95": repeated_interval(last, made),
        }
    )


def _p_values(difference: Difference | None) -> tuple[float, float]:
    """Returns the p-values of "the loss is beyond the limit" and "the loss is within it".

    Both are 1 where the task could not decide.
    """
    if difference is None or difference.silent or difference.decision_p is None:
        return 1.0, 1.0
    return difference.decision_p, 1 - difference.decision_p


def part_of(task: TaskAccuracy, ids: set[str]) -> TaskAccuracy:
    """Returns the task on some of its items, with the figures recomputed from these items.

    If the ids name all items of the task, or none, the task is returned unchanged.
    """
    items = tuple(item for item in task.items if item.id in ids)
    if len(items) in (0, task.n):
        return task  # all items, or none: then `pair` says what is wrong
    metrics = {name: _figure(name, metric, items) for name, metric in task.metrics.items()}
    return task.model_copy(update={"n": len(items), "items": items, "metrics": metrics})


def _figure(name: str, metric: Metric, items: Sequence[Item]) -> Metric:
    values = {key: _sum(items, key) for key in TEXT_KEYS} if _has(items, TEXT_KEYS) else {}
    if values:
        per_byte = -values["loglikelihood"] / values["bytes"]
        texts = {"word_perplexity": math.exp(-values["loglikelihood"] / values["words"]),
                 "byte_perplexity": math.exp(per_byte),
                 "bits_per_byte": per_byte / math.log(2)}  # fmt: skip
        return metric.model_copy(update={"value": texts.get(name, metric.value), "stderr": None})
    if not _has(items, [name]):
        return metric
    mean = _sum(items, name) / len(items)
    value = math.exp(-mean) if name.partition(",")[0] == LOGLIKELIHOOD_METRIC else mean
    return metric.model_copy(update={"value": value, "stderr": None})


def _has(items: Iterable[Item], keys: Iterable[str]) -> bool:
    return all(key in item.values for item in items for key in keys)


def _sum(items: Iterable[Item], key: str) -> float:
    return math.fsum(item.values[key] for item in items)
