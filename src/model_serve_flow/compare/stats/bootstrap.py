"""Computes bootstrap bounds and p-values of ratios of sums.

Bounds and p-values come from the same resamples, so they never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 99_999
# Fewer units do not show how much units differ, so their bootstrap decides nothing.
LEAST_UNITS = 10
MOST_UNITS = 1000  # more units are joined at random into this number of groups
_BATCH = 250  # resamples drawn at once, so that they fit into the processor's cache
_DUST = 1e-12  # a smaller relative spread is rounding


def monte_carlo_error(p: float) -> float:
    """Computes the standard error of a bootstrap p-value that random resampling causes.

    It is 0.0005 at a p-value of 0.025.
    """
    return math.sqrt(p * (1 - p) / (RESAMPLES + 1))


@dataclass(frozen=True)
class Resamples:
    """Sums over units that are drawn again with replacement.

    All figures of a sample come from one set of resamples.

    More than `MOST_UNITS` units are joined at random into as many groups, and the groups are drawn.
    The sums of random groups are independent and alike, as the units are, and have the same
    variance and skewness per unit. So 100,000 items take about as long as 1,000.
    """

    units: NDArray  # [units, columns]
    sums: NDArray  # [resamples, columns]

    @classmethod
    def of(cls, columns: Sequence[NDArray], seed: int) -> Resamples:
        """Draws the resamples of vectors of one length, at least 2.

        The same seed gives the same resamples.
        """
        rng = np.random.default_rng(seed)
        units = grouped(np.column_stack(columns), rng)
        count = len(units)
        sums = np.empty((RESAMPLES, units.shape[1]))
        for start in range(0, RESAMPLES, _BATCH):
            drawn = rng.integers(0, count, (min(_BATCH, RESAMPLES - start), count))
            for place, column in enumerate(units.T):
                sums[start : start + _BATCH, place] = column[drawn].sum(axis=1)
        return cls(units, sums)

    def ratio(self, numerator: Sequence[float], denominator: Sequence[float]) -> RatioBootstrap:
        """Returns the ratio of two weighted sums of the columns.

        Args:
            numerator, denominator: a weight for every column. The weighted sum of the denominator
                must be above 0 for every unit.
        """
        top, bottom = self.units @ numerator, self.units @ denominator
        return RatioBootstrap.from_resamples(
            top, bottom, (self.sums @ numerator) / (self.sums @ denominator)
        )


@dataclass(frozen=True)
class RatioBootstrap:
    """sum(numerator) / sum(denominator) over sampled units, resampled by unit.

    The bounds are BCa (bias-corrected and accelerated): Efron (1987), "Better bootstrap confidence
    intervals", Journal of the American Statistical Association 82:171-185. `scipy.stats.bootstrap`
    has BCa too, but gives no p-value.

    With few units BCa is too narrow, so its levels are expanded, as a t interval is wider than a
    normal interval: Hesterberg (2015), "What teachers should know about the bootstrap", The
    American Statistician 69:371-386.
    """

    units: int
    estimate: float
    resampled: NDArray  # sorted; empty if the sample has no spread, where BCa is undefined
    bias: float = 0.0
    acceleration: float = 0.0

    @classmethod
    def of(cls, numerator: NDArray, denominator: NDArray, seed: int) -> RatioBootstrap:
        """Draws the resamples of two vectors of one length, at least 2.

        The same seed gives the same resamples.
        """
        return Resamples.of((numerator, denominator), seed).ratio((1, 0), (0, 1))

    @classmethod
    def from_resamples(
        cls, numerator: NDArray, denominator: NDArray, resampled: NDArray
    ) -> RatioBootstrap:
        """Builds the bootstrap from the units and the ratio in every resample, in any order."""
        from scipy.stats import norm

        units, estimate = numerator.size, float(numerator.sum() / denominator.sum())
        each = numerator / denominator
        if np.ptp(each) <= _DUST * np.abs(each).max():
            return cls(units, estimate, np.empty(0))
        below = (np.mean(resampled < estimate) + np.mean(resampled <= estimate)) / 2
        bias = float(norm.ppf(np.clip(below, edge(), 1 - edge())))
        return cls(units, estimate, np.sort(resampled), bias, _acceleration(numerator, denominator))

    @property
    def has_spread(self) -> bool:
        """Whether the units differ at all."""
        return self.resampled.size > 0

    def bound(self, level: float) -> float:
        """Returns the one-sided confidence bound at this level.

        The levels 0.025 and 0.975 give the two bounds of a 95 % interval.
        """
        from scipy.stats import norm, t

        if not self.has_spread:
            return self.estimate
        shifted = self.bias + self._expansion * t.ppf(level, self.units - 1)
        share = norm.cdf(self.bias + shifted / (1 - self.acceleration * shifted))
        return float(np.quantile(self.resampled, share))

    def p_at_most(self, value: float) -> float:
        """Returns the one-sided p-value of "the truth is `value` or less".

        It is the level whose bound equals `value`.

        Without spread it is the p-value of the sign test, because n equal units do not show how
        other units would be: if half of all units were at `value` or below, a sample of n units
        would hold no such unit with a probability of 2^-n.
        """
        from scipy.stats import norm, t

        if not self.has_spread:
            p = 0.5**self.units
            return 0.5 if self.estimate == value else p if self.estimate > value else 1 - p
        shifted = norm.ppf(self._share(value)) - self.bias
        if np.isinf(shifted):
            return edge() if shifted < 0 else 1 - edge()
        level = t.cdf(
            (shifted / (1 + self.acceleration * shifted) - self.bias) / self._expansion,
            self.units - 1,
        )
        return float(np.clip(level, edge(), 1 - edge()))

    @property
    def _expansion(self) -> float:
        """Factor that widens the levels: the variance of resamples is too small by (n - 1) / n."""
        return math.sqrt(self.units / (self.units - 1))

    def _share(self, value: float) -> float:
        """Returns the share of the resamples up to `value`, interpolated between resamples.

        It is the inverse of np.quantile.
        """
        upto = int(np.searchsorted(self.resampled, value, side="right"))
        if upto in (0, self.resampled.size):
            return float(upto > 0)
        below, above = self.resampled[upto - 1 : upto + 1]
        return (upto - 1 + (value - below) / (above - below)) / (self.resampled.size - 1)


def grouped(units: NDArray, rng: np.random.Generator) -> NDArray:
    """Returns the units, or the sums of random groups if there are more than `MOST_UNITS` units."""
    if len(units) <= MOST_UNITS:
        return units
    group = rng.permutation(len(units)) % MOST_UNITS
    return np.column_stack([np.bincount(group, column) for column in units.T])


def edge() -> float:
    """Returns the smallest probability that the resamples can tell from 0."""
    return 1 / (RESAMPLES + 1)


def _acceleration(numerator: NDArray, denominator: NDArray) -> float:
    """Computes the skewness of the jackknife values, leaving out one unit at a time.

    It is 0 if the values do not differ.
    """
    without_one = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    pull = without_one.mean() - without_one
    spread = float(np.sum(pull**2))
    return float(np.sum(pull**3) / (6 * spread**1.5)) if spread**1.5 > 0 else 0.0
