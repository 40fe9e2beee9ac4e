"""Computes shares and quantiles of tokens, with intervals over documents. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t

from model_serve_flow.compare.stats.clusters import ClusteredMean
from model_serve_flow.compare.stats.paired import ALPHA, Interval


def share_over_documents(hits: Sequence[NDArray]) -> Interval:
    """Estimates the share of all tokens that are hits, with a 95 % interval over the documents.

    The standard error is cluster-robust (see `ClusteredMean`). The interval is t on the
    logit, so it stays between 0 and 1. If all tokens are alike, a document counts as one
    observation: with G documents, the bound is 1 - 0.025^(1/G) for a share of 0, and 0.025^(1/G)
    for a share of 1.

    Args:
        hits: one vector of true and false per document, at least 2 documents, none empty.
    """
    sums, sizes = (np.array([count(one) for one in hits], float) for count in (np.sum, np.size))
    whole = ClusteredMean.from_sums(sums, sizes)
    if whole.mean in (0.0, 1.0):
        seen = ALPHA ** (1 / len(hits))
        return Interval(whole.mean, *((0.0, 1 - seen) if whole.mean == 0.0 else (seen, 1.0)))
    half = float(t.isf(ALPHA, whole.degrees)) * whole.error / (whole.mean * (1 - whole.mean))
    low, high = (float(expit(logit(whole.mean) + side * half)) for side in (-1, 1))
    return Interval(whole.mean, low, high)


def quantile_over_documents(values: Sequence[NDArray], share: float) -> Interval:
    """Estimates the value that `share` of all tokens do not exceed, with a 95 % interval.

    The interval holds every value x for which the interval of the share of tokens above x (see
    `share_over_documents`) holds 1 - `share`. So the tokens of one document need not be
    independent. Francisco and Fuller (1991), "Quantile estimation with a complex survey design",
    Annals of Statistics 19:454-469.

    Args:
        values: one vector per document, at least 2 documents, none empty.
        share: above 0 and below 1.
    """
    ordered: NDArray[np.float64] = np.sort(np.concatenate(values))
    found = float(np.quantile(ordered, share))
    place = int(np.searchsorted(ordered, found, side="right")) - 1

    def above(which: int) -> Interval:
        return share_over_documents([one > ordered[which] for one in values])

    low = _last(0, place, lambda which: above(which).low > 1 - share)
    high = _last(place, ordered.size - 1, lambda which: above(which).high >= 1 - share) + 1
    return Interval(found, float(ordered[low]), float(ordered[min(high, ordered.size - 1)]))


def _last(first: int, end: int, holds: Callable[[int], bool]) -> int:
    """Finds the last place that holds, by bisection.

    `first` is assumed to hold and `end` not to hold.
    """
    while end - first > 1:
        middle = (first + end) // 2
        first, end = (middle, end) if holds(middle) else (first, middle)
    return first
