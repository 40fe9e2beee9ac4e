"""Computes how far models are apart in score and in economy, for every pair of models.

The intervals of all pairs hold together with 95 % confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.looks import part_of
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.compare.speed import block_means, output_bracket
from model_serve_flow.compare.stats.clusters import cluster_key
from model_serve_flow.compare.stats.paired import Interval, mean_of_independent
from model_serve_flow.compare.stats.simultaneous import Gaps, level_of_each, log_gap, score_gap
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    Capacity,
    PerformanceResult,
    TaskAccuracy,
)


@dataclass(frozen=True)
class Evidence:
    """The gaps between models; a pair of models without evidence is missing."""

    score: Gaps[str]  # in points of the average score
    economy: Gaps[str]  # natural logarithms; above 0 the other model is more economical


def score_gaps(models: Mapping[str, AccuracyResult], tasks: Sequence[str]) -> Gaps[str]:
    """Computes the gap in the average score over these tasks for every pair of models.

    Returns:
        Gaps in points; empty without a task.

    Raises:
        FlowError: two models did not get the same items.
    """
    if not tasks:
        return {}
    level = level_of_each(len(models))
    return {
        (one, other): mean_of_independent(
            [
                _task_gap(task, models[one].tasks[task], models[other].tasks[task], level)
                for task in tasks
            ]
        )
        for one, other in combinations(models, 2)
    }


def _task_gap(task: str, one: TaskAccuracy, other: TaskAccuracy, level: float) -> Interval:
    # A candidate that was decided at an early look was asked fewer items.
    common = {item.id for item in one.items} & {item.id for item in other.items}
    pairs = pair(task, part_of(one, common), part_of(other, common))
    metric = primary_metric([name for name in one.metrics if pairs.values(name) is not None])
    key = cluster_key(pairs.base.items)
    labels = None if key is None else [item.groups[key] for item in pairs.base.items]
    return score_gap(*pairs.oriented(metric), labels, level).scaled(100)


def economy_gaps(models: Mapping[str, PerformanceResult], sizes: Mapping[str, int]) -> Gaps[str]:
    """Computes the gap in economy for every pair of models, as far as repeats can show it.

    The first figure that all models have is compared:

    - Output tokens/s at capacity. A pair needs searches on at least two servers: one search shows
      no gap.
    - Speed: the mean over the load points that all models have.
    - Size of the checkpoint, which is exact.

    Args:
        models: name -> performance result.
        sizes: name -> size of the checkpoint in bytes.

    Returns:
        Gaps in natural logarithms.
    """
    level = level_of_each(len(models))
    if all(result.capacity is not None and result.capacity.measured for result in models.values()):
        return _gaps(
            {name: result.searches for name, result in models.items()}, _capacity_gap, level
        )
    loads = set.intersection(*(set(result.measured_loads()) for result in models.values()))
    if not loads:
        return {
            (one, other): _exact(np.log(sizes[one] / sizes[other]))
            for one, other in combinations(models, 2)
        }
    paired = min(result.blocks for result in models.values()) > 1
    speeds = {name: _speeds(result, loads) for name, result in models.items()}
    return _gaps(speeds, lambda one, other, level: log_gap(one, other, level, paired), level)


def _gaps(
    values: Mapping[str, Any], gap: Callable[[Any, Any, float], Interval | None], level: float
) -> Gaps[str]:
    found = {
        (one, other): gap(values[one], values[other], level)
        for one, other in combinations(values, 2)
    }
    return {pair: interval for pair, interval in found.items() if interval is not None}


def _capacity_gap(
    one: dict[int, Capacity], other: dict[int, Capacity], level: float
) -> Interval | None:
    """Computes the gap in output tokens/s at capacity, paired over the blocks.

    Half of both brackets is added on either side, as in `bracket_interval`.
    """
    blocks = sorted(one.keys() & other.keys())
    ends = [
        np.array([output_bracket(side[block]) for block in blocks], dtype=float)
        for side in (one, other)
    ]
    if len(blocks) < 2 or not all(np.isfinite(side).all() and (side > 0).all() for side in ends):
        return None
    middles = [np.sqrt(side.prod(axis=1)) for side in ends]
    half = sum(float(np.log(side[:, 1] / side[:, 0]).mean()) / 2 for side in ends)
    gap = log_gap(*middles, level, paired=True)
    assert gap is not None  # two blocks or more
    return Interval(gap.difference, gap.low - half, gap.high + half)


def _speeds(result: PerformanceResult, loads: Iterable[int]) -> NDArray:
    """Returns output tokens/s of every block, or of every repeat if there is one server.

    Each value is the geometric mean over the loads.
    """
    measured = result.measured_loads()
    rows = [
        block_means(measured[load])
        if result.blocks > 1
        else [point.output_tokens_per_s for point in measured[load]]
        for load in sorted(loads)
    ]
    return np.exp(np.mean(np.log(rows), axis=0))


def _exact(value: float) -> Interval:
    return Interval(float(value), float(value), float(value))
