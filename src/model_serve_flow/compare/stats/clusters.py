"""Finds which items belong together (clusters), and computes the error of a mean over clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.stats.bootstrap import LEAST_UNITS
from model_serve_flow.compare.stats.paired import ALPHA, Interval
from model_serve_flow.flow.results.measured import QUESTION, Item

ITEMS_PER_CLUSTER = 2  # at least, on average; with fewer, items count as single


def cluster_key(items: Sequence[Item]) -> str | None:
    """Returns the group of the items that is their cluster, e.g. 'subject'; None if there is none.

    The cluster is the finest group, i.e. the group with the most values. Every item must have it,
    with at least two items per value on average, and it must have at least `LEAST_UNITS` values.

    Fewer values cannot show how much values differ. Such a group is a fixed division of the task, a
    stratum, and the items are taken as drawn within it. The answers to one question are the cluster
    only if there is no other group: a coarser group holds all answers to its questions.
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
    """A mean over items that come in clusters, with its cluster-robust standard error.

    Its intervals and tests use t. With G clusters of one size it has G - 1 degrees of freedom, with
    unequal sizes fewer, see `degrees`.

    One cluster is left out at a time (jackknife), and the error is how much the mean moves. What
    the items of a cluster share moves the mean once, not once for every item. With clusters of one
    size the squared error is the sum of squared deviations per cluster, times G / (G - 1). With
    unequal sizes it is a little larger, as it must be.

    Sources: Miller (2024), "Adding error bars to evals: a statistical approach to language model
    evaluations", arXiv 2411.00640; for the jackknife Bell and McCaffrey (2002), Survey Methodology
    28:169-181; for the degrees Imbens and Kolesar (2016), "Robust standard errors in small samples:
    some practical advice", Review of Economics and Statistics 98:701-712.
    """

    mean: float
    error: float
    clusters: int
    degrees: float  # of freedom of t

    @classmethod
    def of(cls, values: NDArray, labels: Sequence[str] | NDArray) -> ClusteredMean:
        """Computes the mean from the value and the cluster of every item."""
        _, places = np.unique(labels, return_inverse=True)
        return cls.from_sums(np.bincount(places, values), np.bincount(places))

    @classmethod
    def from_sums(cls, sums: NDArray, sizes: NDArray) -> ClusteredMean:
        """Computes the mean from the sum of values and the number of items of each cluster.

        There must be at least 2 clusters.
        """
        count, total, n = sums.size, sums.sum(), sizes.sum()
        moved = (total - sums) / (n - sizes) - total / n
        error = math.sqrt((count - 1) / count * float(np.sum(moved**2)))
        return cls(float(total / n), error, count, degrees(sizes))

    def interval(self, level: float = ALPHA) -> Interval:
        """Returns the mean with its 95 % interval, or with bounds of another one-sided error."""
        from scipy.stats import t

        half = float(t.isf(level, self.degrees)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_at_most(self, value: float) -> float:
        """Returns the one-sided p-value of "the truth is `value` or less".

        The error must be above 0.
        """
        from scipy.stats import t

        return float(t.sf((self.mean - value) / self.error, self.degrees))


def degrees(sizes: NDArray) -> float:
    """Computes t's degrees of freedom for clusters of these sizes.

    One cluster that holds a tenth of the items gives much of the variance, so the error is less
    sure than with clusters of one size. The degrees are one less than Satterthwaite's effective
    number of clusters, sum(v)^2 / sum(v^2). A cluster's part of the variance v is n (1 + n / mean):
    half of it from single items and half from what the items share, for a cluster of mean size.
    """
    parts = sizes * (1.0 + sizes / sizes.mean())
    return max(1.0, float(parts.sum() ** 2 / np.sum(parts**2)) - 1)
