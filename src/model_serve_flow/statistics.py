"""Paired differences and their 95 % intervals. No I/O; every function refuses data that cannot be right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 4999
Z = 1.959963984540054  # standard normal quantile at 97.5 %
_EDGE = 1e-9  # keeps a bracket off its own estimate, where the score's variance can be 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95 % confidence interval."""

    difference: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The same in another unit; `factor` must be positive."""
        return Interval(self.difference * factor, self.low * factor, self.high * factor)


def is_binary(values: ArrayLike) -> bool:
    """Whether all values are exactly 0 or 1."""
    return bool(np.isin(np.asarray(values, dtype=float), (0.0, 1.0)).all())


def paired_binary_difference(base: ArrayLike, candidate: ArrayLike) -> Interval:
    """Candidate minus base in the proportion of ones, over the same items.

    The interval is the score interval of Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17:891-908. Unlike the Wald interval it keeps its
    coverage where few answers differ, and stays honest (wider than a point) where none does.

    Args:
        base, candidate: n values of 0 or 1, item by item.

    Returns:
        Difference and bounds as proportions, in [-1, 1].

    Raises:
        ValueError: no values, unequal lengths, NaN or infinity, or a value that is neither 0 nor 1.
    """
    base, candidate = _paired(base, candidate)
    if not (is_binary(base) and is_binary(candidate)):
        raise ValueError("values of a paired proportion must be 0 or 1")
    gained = int(np.sum((base == 0) & (candidate == 1)))
    lost = int(np.sum((base == 1) & (candidate == 0)))
    return _tango(gained, lost, base.size)


def paired_mean_difference(base: ArrayLike, candidate: ArrayLike, seed: int) -> Interval:
    """Candidate minus base in the mean of a continuous metric, over the same items.

    The interval is the bias-corrected and accelerated bootstrap over items (Efron 1987; `scipy.stats.bootstrap`). Where
    every item differs by the same amount the sample shows no spread, and the interval is that amount alone.

    Args:
        base, candidate: n values, item by item, n at least 2.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: fewer than two values, unequal lengths, NaN or infinity.
    """
    base, candidate = _paired(base, candidate, at_least=2)
    return _bootstrap_ratio(candidate - base, np.ones_like(base), seed)


def paired_loss_change(base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int) -> Interval:
    """Candidate minus base in loss per unit of text, over the same documents; above 0 the candidate is worse.

    The loss is the ratio estimator -sum(log-likelihood) / sum(size), as in lm-eval's word_perplexity and bits_per_byte,
    so long documents weigh more. The interval is the paired BCa bootstrap over documents.

    Args:
        base_loglik, candidate_loglik: log-likelihood of each document, in nats.
        sizes: its size in words or bytes.
        seed: of the resampling.

    Returns:
        Difference and bounds in nats per word (or byte).

    Raises:
        ValueError: fewer than two documents, unequal lengths, NaN or infinity, a log-likelihood above 0, or a size that
            is not above 0.
    """
    base, candidate = _paired(base_loglik, candidate_loglik, at_least=2)
    sizes, _ = _paired(sizes, base)
    if (base > 0).any() or (candidate > 0).any():
        raise ValueError("a log-likelihood is above 0")
    if (sizes <= 0).any():
        raise ValueError("a document's size is not above 0")
    return _bootstrap_ratio(base - candidate, sizes, seed)


def paired_ratio_change(base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int) -> Interval:
    """Change of corpus perplexity, in percent of the base's perplexity; above 0 the candidate is worse.

    Arguments and errors are those of `paired_loss_change`; the bounds are its bounds, transformed.
    """
    change = paired_loss_change(base_loglik, candidate_loglik, sizes, seed)
    return Interval(*(100 * math.expm1(value) for value in (change.difference, change.low, change.high)))


def mean_of_independent(intervals: Sequence[Interval]) -> Interval:
    """The plain mean of estimates from independent samples: the macro average over tasks.

    The interval is MOVER (Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in
    Medicine 27:1693-1702): each task's distance from estimate to bound adds in quadrature, so asymmetric score
    intervals are kept and tasks of any kind combine.

    Raises:
        ValueError: no intervals.
    """
    if not intervals:
        raise ValueError("no intervals to average")
    share = 1 / len(intervals)
    mean = share * math.fsum(i.difference for i in intervals)
    below = share * math.hypot(*(i.difference - i.low for i in intervals))
    above = share * math.hypot(*(i.high - i.difference for i in intervals))
    return Interval(mean, mean - below, mean + above)


def wilson_interval(successes: int, n: int) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927), which holds near 0 and 1.

    Raises:
        ValueError: n is not positive, or successes are not in 0..n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is not a proportion")
    bounds = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def _paired(first: ArrayLike, second: ArrayLike, at_least: int = 1) -> tuple[NDArray, NDArray]:
    """Both as float vectors of one length without NaN or infinity; ValueError says what is wrong."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.ndim != 1 or second.ndim != 1:
        raise ValueError(f"values must be vectors, got shapes {first.shape} and {second.shape}")
    if first.size != second.size:
        raise ValueError(f"paired values differ in number: {first.size} and {second.size}")
    if first.size < at_least:
        raise ValueError(f"{first.size} paired values; at least {at_least} needed")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a value is NaN or infinite")
    return first, second


def _tango(gained: int, lost: int, n: int) -> Interval:
    """The two values at which the score test is just not rejected, each found by bracketed root finding."""
    from scipy.optimize import brentq

    estimate = (gained - lost) / n

    def excess(value: float, sign: float) -> float:
        return sign * (gained - lost - n * value) - Z * _score_deviation(gained, lost, n, value)

    low, high = -1.0, 1.0
    if estimate - _EDGE > -1:
        low = brentq(excess, -1.0, estimate - _EDGE, args=(1.0,), xtol=1e-12)
    if estimate + _EDGE < 1:
        high = brentq(excess, estimate + _EDGE, 1.0, args=(-1.0,), xtol=1e-12)
    return Interval(estimate, float(low), float(high))


def _score_deviation(gained: int, lost: int, n: int, value: float) -> float:
    """Standard deviation of gained - lost if the true difference is `value`; losses at their restricted MLE."""
    b = -gained - lost + (2 * n - gained + lost) * value
    root = math.sqrt(max(b * b + 8 * n * lost * value * (1 - value), 0.0))
    loss_rate = (root - b) / (4 * n)
    return math.sqrt(max(n * (2 * loss_rate + value * (1 - value)), 0.0))


def _bootstrap_ratio(numerator: NDArray, denominator: NDArray, seed: int) -> Interval:
    """sum(numerator) / sum(denominator), resampled in pairs."""
    from scipy.stats import bootstrap

    def ratio(top: NDArray, bottom: NDArray, axis: int = -1) -> NDArray:
        return np.sum(top, axis=axis) / np.sum(bottom, axis=axis)

    estimate = float(ratio(numerator, denominator))
    if np.ptp(numerator / denominator) == 0:
        return Interval(estimate, estimate, estimate)  # BCa is undefined without spread
    result = bootstrap(
        (numerator, denominator), ratio, paired=True, vectorized=True, method="BCa", n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE, batch=250, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high))
