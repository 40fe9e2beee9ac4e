"""Items that belong together: which of their groups are clusters,
and what clusters do to the error of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.stats.bootstrap import LEAST_UNITS
from model_serve_flow.compare.stats.paired import ALPHA, Interval
from model_serve_flow.flow.results.measured import QUESTION, Item

ITEMS_PER_CLUSTER = 2  # on average, at least; below, the items are as good as single


def cluster_key(items: Sequence[Item]) -> str | None:
    """The group of the items that is their cluster, e.g. 'subject'; None if they have none.

    It is the finest group (the one of most values) that every item has, with at least two items per
    value on average and at least `LEAST_UNITS` values. Fewer values cannot show how much values
    differ: such a group is a fixed division of the task, a stratum, and the items are taken as
    drawn within it. The answers to one question are the cluster only where there is no other: a
    coarser group holds them all.
    """
    common = set.intersection(*(set(item.groups) for item in items)) if items else set()
    counts = {key: len({item.groups[key] for item in items}) for key in sorted(common)}
    able = {
        key: n for key, n in counts.items() if LEAST_UNITS <= n <= len(items) / ITEMS_PER_CLUSTER
    }
    others = able.keys() - {QUESTION} or able.keys()
    return max(sorted(others), key=able.__getitem__, default=None)


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over items that come in clusters,
    with its cluster-robust standard error and t(G - 1) for its tests.

    Miller (2024), "Adding error bars to evals: a statistical approach to language model
    evaluations", arXiv 2411.00640; Bell and McCaffrey (2002), Survey Methodology 28:169-181, for
    the jackknife. One cluster is left out at a time, and the error is how much the mean moves: what
    the items of a cluster share moves it once, not once for every item. With clusters of one size
    this is the sum of squared deviations per cluster, times G / (G - 1); with unequal ones it is a
    little wider, as it must be.
    """

    mean: float
    error: float
    clusters: int

    @classmethod
    def of(cls, values: NDArray, labels: Sequence[str] | NDArray) -> ClusteredMean:
        """Of a value and the cluster of every item."""
        _, places = np.unique(labels, return_inverse=True)
        return cls.from_sums(np.bincount(places, values), np.bincount(places))

    @classmethod
    def from_sums(cls, sums: NDArray, sizes: NDArray) -> ClusteredMean:
        """Of the sum of the values and the number of items of each cluster, at least 2 clusters."""
        count, total, n = sums.size, sums.sum(), sizes.sum()
        moved = (total - sums) / (n - sizes) - total / n
        error = math.sqrt((count - 1) / count * float(np.sum(moved**2)))
        return cls(float(total / n), error, count)

    def interval(self, level: float = ALPHA) -> Interval:
        """The mean with its 95 % interval, or with bounds of another one-sided error each."""
        from scipy.stats import t

        half = float(t.isf(level, self.clusters - 1)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_at_most(self, value: float) -> float:
        """One-sided p-value of "the truth is `value` or less"; the error must be above 0."""
        from scipy.stats import t

        return float(t.sf((self.mean - value) / self.error, self.clusters - 1))
