"""Paired differences, their 95 % intervals and tests against a margin. No I/O; every function refuses impossible data.

A p-value against a margin and the interval of the same data always agree: p < 0.025 exactly where the interval lies on
the good side of the margin, 1 - p < 0.025 exactly where it lies on the bad side. docs/Statistics.md explains each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_serve_flow.bootstrap import RatioBootstrap, without_doubt

CONFIDENCE = 0.95
ALPHA = (1 - CONFIDENCE) / 2  # of a one-sided test
POWER = 0.8
Z = 1.959963984540054  # standard normal quantile at 97.5 %
Z_POWER = 0.8416212335729143  # and at 80 %
MOST_ITEMS = 1e9  # a benchmark of more items than this will not be made
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
    return _tango(*_flips(base, candidate))


def paired_mean_difference(base: ArrayLike, candidate: ArrayLike, seed: int) -> Interval:
    """Candidate minus base in the mean of a continuous metric, over the same items.

    The interval is the BCa bootstrap over items, see `RatioBootstrap`. Where every item differs by the same amount the
    sample shows no spread, and the interval is that amount alone.

    Args:
        base, candidate: n values, item by item, n at least 2.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: fewer than two values, unequal lengths, NaN or infinity.
    """
    base, candidate = _paired(base, candidate, at_least=2)
    return _interval(candidate - base, np.ones_like(base), seed)


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
    base, candidate, sizes = _documents(base_loglik, candidate_loglik, sizes)
    return _interval(base - candidate, sizes, seed)


def paired_ratio_change(base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int) -> Interval:
    """Change of corpus perplexity, in percent of the base's perplexity; above 0 the candidate is worse.

    Arguments and errors are those of `paired_loss_change`; the bounds are its bounds, transformed.
    """
    change = paired_loss_change(base_loglik, candidate_loglik, sizes, seed)
    return Interval(*(100 * math.expm1(value) for value in (change.difference, change.low, change.high)))


def mean_of_independent(intervals: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """The mean of estimates from independent samples: plain, the macro average over tasks, or weighted.

    The interval is MOVER (Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in
    Medicine 27:1693-1702): each task's distance from estimate to bound adds in quadrature, so asymmetric score
    intervals are kept and tasks of any kind combine.

    Raises:
        ValueError: no intervals.
    """
    if not intervals:
        raise ValueError("no intervals to average")
    weights = weights or [1.0] * len(intervals)
    shares = [weight / math.fsum(weights) for weight in weights]
    weighted = list(zip(shares, intervals, strict=True))
    mean = math.fsum(share * i.difference for share, i in weighted)
    below = math.hypot(*(share * (i.difference - i.low) for share, i in weighted))
    above = math.hypot(*(share * (i.high - i.difference) for share, i in weighted))
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


def mcnemar_p(base: ArrayLike, candidate: ArrayLike) -> float:
    """Exact two-sided p-value of "as many items became right as became wrong" (McNemar 1947), over 0/1 values.

    Raises:
        ValueError: as `paired_binary_difference`.
    """
    from scipy.stats import binomtest

    gained, lost, _ = _flips(base, candidate)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def binary_noninferiority_p(base: ArrayLike, candidate: ArrayLike, margin: float) -> float:
    """One-sided p-value of "the proportion of ones falls by `margin` or more", over the same items.

    Tango's score test, whose inversion is the interval of `paired_binary_difference`.

    Args:
        base, candidate: n values of 0 or 1, item by item.
        margin: a proportion above 0 and below 1.

    Raises:
        ValueError: as `paired_binary_difference`, or a margin out of range.
    """
    gained, lost, n = _flips(base, candidate)
    if not 0 < margin < 1:
        raise ValueError(f"the margin of a proportion must be between 0 and 1, not {margin}")
    return _upper_tail((gained - lost + n * margin) / _score_deviation(gained, lost, n, -margin))


def mean_noninferiority_p(base: ArrayLike, candidate: ArrayLike, margin: float, seed: int) -> float:
    """One-sided p-value of "the mean falls by `margin` or more", by inversion of the interval of the same seed.

    It is between 1/5000 and 1 - 1/5000, which is as fine as the bootstrap can tell. Without spread between the items it
    is 0 above the margin, 1 below it and 0.5 on it.

    Raises:
        ValueError: as `paired_mean_difference`, or a margin that is not above 0.
    """
    base, candidate = _paired(base, candidate, at_least=2)
    return RatioBootstrap.of(candidate - base, np.ones_like(base), seed).p_at_most(-_positive(margin))


def loss_noninferiority_p(
    base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, margin: float, seed: int
) -> float:
    """One-sided p-value of "the loss per unit of text rises by `margin` nats or more", as `mean_noninferiority_p`.

    Raises:
        ValueError: as `paired_loss_change`, or a margin that is not above 0.
    """
    base, candidate, sizes = _documents(base_loglik, candidate_loglik, sizes)
    return RatioBootstrap.of(candidate - base, sizes, seed).p_at_most(-_positive(margin))


def average_noninferiority_p(interval: Interval, margin: float) -> float:
    """One-sided p-value of "the average falls by `margin` or more", from its interval; higher is better.

    The distance to the bound on the margin's side is taken as 1.96 standard errors, which is what MOVER took it for.
    A point interval gives 0, 1 or, on the margin, 0.5.

    Raises:
        ValueError: a margin that is not above 0.
    """
    distance = interval.difference + _positive(margin)
    width = interval.difference - interval.low if distance > 0 else interval.high - interval.difference
    if width == 0:
        return without_doubt(distance)
    return _upper_tail(Z * distance / width)


def smallest_detectable_drop(n: int, discordant_share: float) -> float:
    """The true drop that n paired 0/1 items show as a drop (95 % interval below 0) with 80 % power.

    The power is exact: it sums over the number of items that change, of which so many must be losses that the score
    test rejects equality. A drop larger than `discordant_share` needs as many changed items and is given them.

    Args:
        n: items.
        discordant_share: share of the items whose answer became right or wrong.

    Returns:
        A proportion; 1 where not even a drop from all to none would show (n below 4).

    Raises:
        ValueError: n is not positive, or the share is not in [0, 1].
    """
    from scipy.optimize import brentq

    if n < 1 or not 0 <= discordant_share <= 1:
        raise ValueError(f"no power for n = {n} and a share of {discordant_share} changed items")

    def excess(drop: float) -> float:
        return _power(n, max(discordant_share, drop), drop) - POWER

    return 1.0 if excess(1.0) < 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-9))


def smallest_detectable_change(interval: Interval) -> float:
    """The true change that an interval of this width would show with 80 % power; for everything but 0/1 values."""
    return (Z + Z_POWER) / Z * (interval.high - interval.low) / 2


def items_to_settle(n: int, interval: Interval, margin: float, tests: int = 1) -> int | None:
    """Items at which, estimate and spread unchanged, the decision against the margin has 80 % power.

    Args:
        n: items that gave the interval.
        interval: of the difference; higher is better.
        margin: accepted drop, above 0, in the interval's unit.
        tests: over how many tests the decision is Holm-corrected; each is taken at the strictest level, 0.025 / tests.

    Returns:
        More than n; None if n settles it already, or if more than a thousand million were needed.

    Raises:
        ValueError: n or tests is not positive, or the margin is not above 0.
    """
    from scipy.stats import norm

    if n < 1 or tests < 1:
        raise ValueError(f"n = {n} and {tests} tests; both must be positive")
    distance = interval.difference + _positive(margin)
    width = interval.difference - interval.low if distance > 0 else interval.high - interval.difference
    error, critical = width / Z, float(norm.isf(ALPHA / tests))
    if distance == 0 or critical * error < abs(distance):
        return None
    needed = n * ((critical + Z_POWER) * error / distance) ** 2
    return math.ceil(needed) if needed <= MOST_ITEMS else None


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in the order given (Holm 1979, Scandinavian Journal of Statistics 6:65-70).

    Rejecting those at or below alpha keeps the chance of even one false rejection at alpha, whatever their dependence.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values must be in [0, 1], got {list(p_values)}")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(values.size, 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


def geometric_ratio(base: ArrayLike, candidate: ArrayLike) -> tuple[float, tuple[float, float] | None]:
    """Candidate over base as a ratio of geometric means, with Welch's 95 % t interval on the logarithms.

    Args:
        base, candidate: values above 0 of independent repeats, not necessarily as many.

    Returns:
        The ratio and its interval; None instead of the interval if either side has fewer than two values.

    Raises:
        ValueError: no values, or one that is not finite and above 0.
    """
    from scipy.stats import ttest_ind

    base, candidate = np.asarray(base, dtype=float), np.asarray(candidate, dtype=float)
    for values in (base, candidate):
        if values.ndim != 1 or values.size == 0 or not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"repeats must be finite and above 0, got {values.tolist()}")
    first, second = np.log(base), np.log(candidate)
    ratio = math.exp(second.mean() - first.mean())
    if min(base.size, candidate.size) < 2:
        return ratio, None
    if np.ptp(first) == np.ptp(second) == 0:
        return ratio, (ratio, ratio)  # Welch's degrees of freedom are undefined without spread
    bounds = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return ratio, (math.exp(bounds.low), math.exp(bounds.high))


def ratio_of_sums(numerator: ArrayLike, denominator: ArrayLike, seed: int) -> Interval:
    """sum(numerator) / sum(denominator) over sampled units, with the BCa bootstrap interval over the units.

    Raises:
        ValueError: fewer than two units, unequal lengths, NaN or infinity, or a denominator that is not above 0.
    """
    numerator, denominator = _paired(numerator, denominator, at_least=2)
    if (denominator <= 0).any():
        raise ValueError("a denominator is not above 0")
    return _interval(numerator, denominator, seed)


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


def _flips(base: ArrayLike, candidate: ArrayLike) -> tuple[int, int, int]:
    """Items that became right, items that became wrong, and all of them."""
    base, candidate = _paired(base, candidate)
    if not (is_binary(base) and is_binary(candidate)):
        raise ValueError("values of a paired proportion must be 0 or 1")
    return int(np.sum(base < candidate)), int(np.sum(base > candidate)), base.size


def _documents(base: ArrayLike, candidate: ArrayLike, sizes: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Log-likelihoods and sizes of the same documents."""
    base, candidate = _paired(base, candidate, at_least=2)
    sizes, _ = _paired(sizes, base)
    if (base > 0).any() or (candidate > 0).any():
        raise ValueError("a log-likelihood is above 0")
    if (sizes <= 0).any():
        raise ValueError("a document's size is not above 0")
    return base, candidate, sizes


def _interval(numerator: NDArray, denominator: NDArray, seed: int) -> Interval:
    resamples = RatioBootstrap.of(numerator, denominator, seed)
    return Interval(resamples.estimate, resamples.bound(ALPHA), resamples.bound(1 - ALPHA))


def _positive(margin: float) -> float:
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"a margin must be above 0, not {margin}")
    return margin


def _upper_tail(z: float) -> float:
    """Probability that a standard normal variable exceeds z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _power(n: int, discordant_share: float, drop: float) -> float:
    """Probability that n items, of which this share changes, show `drop` as an interval below 0."""
    from scipy.stats import binom

    low, high = binom.ppf([1e-9, 1 - 1e-9], n, discordant_share)
    changed = np.arange(low, high + 1)
    # lost - gained > Z * sqrt(changed), with gained = changed - lost: the score test of equality
    most_kept = np.floor((changed + Z * np.sqrt(changed)) / 2)
    loss_share = (1 + drop / discordant_share) / 2 if discordant_share else 0.5
    return float(np.sum(binom.pmf(changed, n, discordant_share) * binom.sf(most_kept, changed, loss_share)))


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
