"""How far models are apart in score and in economy, pair by pair, with intervals that hold together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from model_serve_flow.clusters import cluster_key
from model_serve_flow.compare.stats.simultaneous import Gaps, level_of_each, log_gap, score_gap
from model_serve_flow.pairs import pair, primary_metric
from model_serve_flow.results import AccuracyResult, PerformanceResult, TaskAccuracy
from model_serve_flow.statistics import Interval, mean_of_independent


@dataclass(frozen=True)
class Evidence:
    """What the measurements show of the order of the models; a pair that is not in it is not told."""

    score: Gaps[str]  # points of the average score
    economy: Gaps[str]  # logarithm of how economical a model is


def score_gaps(models: Mapping[str, AccuracyResult], tasks: Sequence[str]) -> Gaps[str]:
    """The gaps in the average score over these tasks, in points; empty without a task.

    Raises:
        FlowError: two models did not get the same items.
    """
    if not tasks:
        return {}
    level = level_of_each(len(models))
    return {
        (one, other): mean_of_independent(
            [_task_gap(task, models[one].tasks[task], models[other].tasks[task], level) for task in tasks]
        )
        for one, other in combinations(models, 2)
    }


def _task_gap(task: str, one: TaskAccuracy, other: TaskAccuracy, level: float) -> Interval:
    pairs = pair(task, one, other)
    metric = primary_metric([name for name in one.metrics if pairs.values(name) is not None])
    key = cluster_key(one.items)
    labels = None if key is None else [item.groups[key] for item in one.items]
    return score_gap(*pairs.oriented(metric), labels, level).scaled(100)


def economy_gaps(models: Mapping[str, PerformanceResult], sizes: Mapping[str, int]) -> Gaps[str]:
    """The gaps in what orders the models in `ranking`, in logarithms, as far as there are repeats to tell from.

    Capacity is searched once on each server, so it tells no gap. Speed does: the mean over the load points that all
    models have. Without speed the size of the checkpoint counts, which is exact.
    """
    if all(result.capacity is not None and result.capacity.measured for result in models.values()):
        return {}
    loads = set.intersection(*(set(result.measured_loads()) for result in models.values()))
    if not loads:
        return {(one, other): _exact(np.log(sizes[one] / sizes[other])) for one, other in combinations(models, 2)}
    speeds = {name: _speeds(result, loads) for name, result in models.items()}
    level = level_of_each(len(models))
    return dict(_told(speeds, level))


def _told(values: Mapping[str, np.ndarray], level: float) -> Iterator[tuple[tuple[str, str], Interval]]:
    for one, other in combinations(values, 2):
        gap = log_gap(values[one], values[other], level, paired=False)
        if gap is not None:
            yield (one, other), gap


def _speeds(result: PerformanceResult, loads: Iterable[int]) -> np.ndarray:
    """Output tokens/s of every repeat, the geometric mean over the loads."""
    measured = result.measured_loads()
    rows = [[point.output_tokens_per_s for point in measured[load]] for load in loads]
    return np.exp(np.mean(np.log(rows), axis=0))


def _exact(value: float) -> Interval:
    return Interval(float(value), float(value), float(value))
