"""Finds which of several models differ. No I/O.

The intervals of all differences hold together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.stats import paired as paired_module
from model_serve_flow.compare.stats.clusters import ClusteredMean
from model_serve_flow.compare.stats.paired import ALPHA, ROUNDING, Interval

Model = TypeVar("Model", bound=Hashable)
Gaps = Mapping[tuple[Model, Model], Interval]  # (one, other) -> other minus one; each pair once


def level_of_each(models: int) -> float:
    """Computes the one-sided error of each interval, so that all pairs hold together in 95 %.

    The correction is Bonferroni's: the models are compared on the same items or in the same blocks,
    so independence is not assumed.
    """
    return ALPHA / max(1, models * (models - 1) // 2)


def score_gap(one: NDArray, other: NDArray, labels: Sequence[str] | None, level: float) -> Interval:
    """Computes other minus one in the mean of the same items, with an interval.

    The two-sided error of the interval is 2 * level. Right or wrong: Tango's score interval. Other
    values: the jackknife over items, with t. Where the items come in clusters, the clustered
    interval is used if it is wider, as in the verdict.

    Args:
        one, other: n values, item by item; higher is better.
        labels: the cluster of every item; None: there are no clusters.
        level: one-sided, from `level_of_each`.
    """
    binary = paired_module.is_binary(one) and paired_module.is_binary(other)
    found = []
    if binary:
        found.append(paired_module.paired_binary_difference(one, other, level))
    if labels is not None or not binary:
        places = labels if labels is not None else np.arange(one.size)
        found.append(ClusteredMean.of(other - one, places).interval(level))
    return max(found, key=lambda interval: interval.high - interval.low)


def log_gap(one: NDArray, other: NDArray, level: float, paired: bool) -> Interval | None:
    """Computes other minus one in the mean logarithm of repeats, with its t interval.

    Args:
        one, other: values above 0, one per repeat.
        level: one-sided, from `level_of_each`.
        paired: the repeats are blocks in which both models were measured, one after the other.

    Returns:
        None for fewer than two repeats.
    """
    from scipy.stats import ttest_ind, ttest_rel

    first, second = np.log(one), np.log(other)
    change = float(second.mean() - first.mean())
    if min(first.size, second.size) < 2:
        return None
    spread = np.ptp(second - first) if paired else max(np.ptp(first), np.ptp(second))
    if spread <= ROUNDING:
        return Interval(change, change, change)
    test = ttest_rel(second, first) if paired else ttest_ind(second, first, equal_var=False)
    bounds = test.confidence_interval(1 - 2 * level)
    return Interval(change, float(bounds.low), float(bounds.high))


def better(gaps: Gaps, model: Model) -> set[Model]:
    """Returns the models that are surely better than this model.

    Surely better means that the whole interval of the difference is on their side.
    """
    above = {other for (one, other), gap in gaps.items() if one == model and gap.low > 0}
    return above | {one for (one, other), gap in gaps.items() if other == model and gap.high < 0}


def ranks(gaps: Gaps, models: Sequence[Model]) -> dict[Model, int]:
    """Ranks each model: 1 + the number of models that are surely better.

    Models that cannot be told apart can share a rank. With probability 95 % no model is ranked
    behind a model that is not truly better.
    """
    return {model: 1 + len(better(gaps, model)) for model in models}
