"""Computes the paired change of a loss per unit of text, with its interval and its test. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_serve_flow.compare.stats.bootstrap import (
    LEAST_UNITS,
    RatioBootstrap,
    Resamples,
    edge,
    grouped,
)
from model_serve_flow.compare.stats.clusters import ClusteredMean
from model_serve_flow.compare.stats.paired import ALPHA, Interval, paired_values, positive

LEAST_ERROR = 0.1  # of the sample's error: what a resample's error counts at least


@dataclass(frozen=True)
class PairedLoss:
    """Loss per unit of text of the same documents, resampled once for its interval and its test.

    The loss is the ratio estimator -sum(log-likelihood) / sum(size), as in lm-eval's
    word_perplexity and bits_per_byte, so long documents weigh more.

    Three methods over documents must agree; each bound is the most cautious of theirs. With few
    documents, unequal sizes and changes that are skewed to the bad side, each of them alone lets a
    loss on the margin pass in about 3 % instead of 2.5 %:

    - the paired BCa bootstrap, see `RatioBootstrap`;
    - the studentised bootstrap, see `StudentBootstrap`;
    - t with the jackknife's error, see `ClusteredMean`; a document is a cluster of words.

    Fewer than `LEAST_UNITS` documents decide nothing, and have the interval of BCa alone. If every
    document changes by the same amount, the sample shows no spread, and the interval is this amount
    alone.
    """

    rise: RatioBootstrap  # candidate minus base, in nats per unit; above 0 the candidate is worse
    student: StudentBootstrap | None = None

    @classmethod
    def of(
        cls, base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int
    ) -> PairedLoss:
        """Draws the resamples of the same documents of base and candidate.

        Args:
            base_loglik, candidate_loglik: log-likelihood of each document in nats.
            sizes: size of each document in words or bytes.
            seed: of the resampling.

        Raises:
            ValueError: fewer than two documents, unequal lengths, NaN or infinity, a log-likelihood
                above 0, or a size that is not above 0.
        """
        base, candidate, sizes = _documents(base_loglik, candidate_loglik, sizes)
        generator = np.random.default_rng([seed, 1])
        rise, size = grouped(np.column_stack((base - candidate, sizes)), generator).T
        products = (rise * rise, rise * size, size * size)
        draws = Resamples.of((rise, size, *products), seed)
        found = draws.ratio((1, 0, 0, 0, 0), (0, 1, 0, 0, 0))
        if rise.size < LEAST_UNITS or not found.has_spread:
            return cls(found)
        return cls(found, StudentBootstrap.of(draws))

    def interval(self) -> Interval:
        """Returns candidate minus base with its 95 % interval, in nats per word or byte."""
        lows, highs = ([one.bound(level) for one in self._methods] for level in (ALPHA, 1 - ALPHA))
        return Interval(self.rise.estimate, min(lows), max(highs))

    def percent(self) -> Interval:
        """Returns the change of corpus perplexity with its 95 % interval.

        Both are in percent of the base's perplexity.
        """
        rise = self.interval()
        return Interval(
            *(100 * math.expm1(value) for value in (rise.difference, rise.low, rise.high))
        )

    def noninferiority_p(self, margin: float) -> float:
        """Returns the one-sided p-value of "the loss rises by `margin` nats or more".

        Of the methods' p-values it is the one nearest to 0.5, which agrees with the interval.

        Raises:
            ValueError: the margin is not above 0.
        """
        ps = [1 - one.p_at_most(positive(margin)) for one in self._methods]
        return float(np.clip(0.5, min(ps), max(ps)))

    @property
    def _methods(self) -> tuple[RatioBootstrap | StudentBootstrap, ...]:
        return (self.rise,) if self.student is None else (self.rise, self.student)


@dataclass(frozen=True)
class StudentBootstrap:
    """sum(numerator) / sum(denominator) by the studentised bootstrap and by t.

    In each resample the distance to the estimate is divided by the resample's own error, so the
    bootstrap imitates Student's t. It follows the skewness of the units more closely than BCa does:
    Efron and Tibshirani (1993), "An introduction to the bootstrap", section 12.5; Hall (1988),
    "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16:927-953.

    The resample's error is that of the linearised ratio, the sample's error the jackknife's, which
    is a little larger where sizes differ. Every bound is at least as cautious as that of t(n - 1)
    with the same error.
    """

    by_t: ClusteredMean
    studentised: NDArray  # sorted

    @classmethod
    def of(cls, draws: Resamples) -> StudentBootstrap:
        """Builds it from resamples of x, w, x * x, x * w and w * w; the ratio is that of x to w."""
        by_t = ClusteredMean.from_sums(*draws.units.T[:2])
        sums, n = draws.sums, len(draws.units)
        ratio = sums[:, 0] / sums[:, 1]
        squares = sums[:, 2] - 2 * ratio * sums[:, 3] + ratio**2 * sums[:, 4]
        error = np.sqrt(np.maximum(squares, 0.0) * n / (n - 1)) / sums[:, 1]
        error = np.maximum(error, LEAST_ERROR * by_t.error)
        return cls(by_t, np.sort((ratio - by_t.mean) / error))

    def bound(self, level: float) -> float:
        """Returns the one-sided confidence bound at this level, below 0.5 the lower one."""
        quantile = float(np.quantile(self.studentised, 1 - level))
        bounds = (self.by_t.mean - quantile * self.by_t.error, self._t_bound(level))
        return min(bounds) if level < 0.5 else max(bounds)

    def p_at_most(self, value: float) -> float:
        """Returns the one-sided p-value of "the truth is `value` or less", the cautious one."""
        z = (self.by_t.mean - value) / self.by_t.error
        share = np.interp(z, self.studentised, np.linspace(0, 1, self.studentised.size))
        ps = (float(np.clip(1 - share, edge(), 1 - edge())), self.by_t.p_at_most(value))
        return max(ps) if z > 0 else min(ps)

    def _t_bound(self, level: float) -> float:
        interval = self.by_t.interval(min(level, 1 - level))
        return interval.low if level < 0.5 else interval.high


def _documents(
    base: ArrayLike, candidate: ArrayLike, sizes: ArrayLike
) -> tuple[NDArray, NDArray, NDArray]:
    """Checks and returns the log-likelihoods and sizes of the same documents."""
    base, candidate = paired_values(base, candidate, at_least=2)
    sizes, _ = paired_values(sizes, base)
    if (base > 0).any() or (candidate > 0).any():
        raise ValueError("a log-likelihood is above 0")
    if (sizes <= 0).any():
        raise ValueError("a document's size is not above 0")
    return base, candidate, sizes
