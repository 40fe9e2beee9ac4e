"""Computes paired differences, their 95 % intervals, and their tests against a margin. No I/O.

Every function refuses impossible data.

A p-value against a margin and the interval of the same data always agree: p < 0.025 exactly where
the whole interval is on the good side of the margin, and 1 - p < 0.025 exactly where the whole
interval is on the bad side. docs/Statistics.md explains each method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_serve_flow.compare.stats.bootstrap import RatioBootstrap, Resamples

CONFIDENCE = 0.95
ALPHA = (1 - CONFIDENCE) / 2  # error of a one-sided test
POWER = 0.8
Z = 1.959963984540054  # standard normal quantile at 97.5 %
Z_POWER = 0.8416212335729143  # standard normal quantile at 80 %
# Below LEAST_Z a p-value counts as 0.5, above MOST_Z as that of MOST_Z.
LEAST_Z, MOST_Z = 0.05, 8.0
ASSURED = 2001  # equally likely true differences over which a probability is averaged
MOST_ITEMS = 1e6  # an advice to measure more than this helps nobody
FAR = 0.05  # an item whose value falls by this or more carries a loss
LEAST_LOSERS = 20  # with fewer items that carry the loss, the bootstrap alone does not decide
_STAKES = np.arange(1, 21) / 20  # shares of the capital that the gambler of `betting_p` bets
_STAKE_SHARES = np.array([0.5 / 19] * 19 + [0.5])  # share of the gambler's money bet at each stake
ROUNDING = 1e-12  # a smaller spread of logarithms is rounding
_EDGE = 1e-9  # keeps a bracket off its own estimate, where the score's variance can be 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95 % confidence interval."""

    difference: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """Returns the interval in another unit; `factor` must be positive."""
        return Interval(self.difference * factor, self.low * factor, self.high * factor)


def is_binary(values: ArrayLike) -> bool:
    """Tells whether all values are exactly 0 or 1."""
    return bool(np.isin(np.asarray(values, dtype=float), (0.0, 1.0)).all())


def paired_binary_difference(
    base: ArrayLike, candidate: ArrayLike, level: float = ALPHA
) -> Interval:
    """Computes candidate minus base in the proportion of ones, over the same items.

    The interval is the score interval of Tango (1998), "Equivalence test and confidence interval
    for the difference in proportions for the paired-sample design", Statistics in Medicine
    17:891-908. Unlike the Wald interval, it keeps its coverage if few answers differ, and stays
    wider than a point if no answer differs.

    Args:
        base, candidate: n values of 0 or 1, item by item.
        level: error of each bound; 0.025 for a 95 % interval.

    Returns:
        Difference and bounds as proportions, in [-1, 1].

    Raises:
        ValueError: no values, unequal lengths, NaN or infinity, or a value that is neither 0 nor 1.
    """
    from scipy.stats import norm

    return score_interval(*_flips(base, candidate), Z if level == ALPHA else float(norm.isf(level)))


@dataclass(frozen=True)
class PairedMean:
    """A continuous metric of the same items, resampled once for its interval and all its tests.

    The interval is the BCa bootstrap over items, see `RatioBootstrap`. If few items carry the loss,
    the resamples hold only what these few items show. Then the betting bound for values in [0, 1]
    counts too, see `betting_p`.
    """

    base: NDArray
    candidate: NDArray
    draws: Resamples

    @classmethod
    def of(cls, base: ArrayLike, candidate: ArrayLike, seed: int) -> PairedMean:
        """Draws the resamples of n values of each side, item by item.

        Raises:
            ValueError: fewer than two values, unequal lengths, NaN or infinity.
        """
        base, candidate = paired_values(base, candidate, at_least=2)
        return cls(base, candidate, Resamples.of((base, candidate, np.ones_like(base)), seed))

    @property
    def change(self) -> RatioBootstrap:
        """Candidate minus base in the mean."""
        return self.draws.ratio((-1, 1, 0), (0, 0, 1))

    @property
    def bounded(self) -> bool:
        """Whether every value is in [0, 1], as a share or a score is."""
        return all(bool(((side >= 0) & (side <= 1)).all()) for side in (self.base, self.candidate))

    @property
    def sparse(self) -> bool:
        """Whether so few items carry the loss that the bootstrap alone would not be safe.

        The number of items is Kish's effective number, of the items that fell by `FAR` or more. Few
        means below `LEAST_LOSERS`.
        """
        losses = self.base - self.candidate
        far = losses[losses >= FAR]
        few = far.size == 0 or far.sum() ** 2 / (far**2).sum() < LEAST_LOSERS
        return self.bounded and (few or not self.change.has_spread)

    def interval(self) -> Interval:
        """Returns candidate minus base with its 95 % interval."""
        change = self.change
        low, high = change.bound(ALPHA), change.bound(1 - ALPHA)
        if self.sparse:
            low = min(low, -_betting_limit(self.base - self.candidate))
            if not change.has_spread:  # equal items cannot show a rare gain either
                high = max(high, _betting_limit(self.candidate - self.base))
        return Interval(change.estimate, low, high)

    def base_low(self) -> float:
        """Returns the lower bound of the base's mean, one-sided at 97.5 %."""
        return self.draws.ratio((1, 0, 0), (0, 0, 1)).bound(ALPHA)

    def retention_p(self, retained: float, chance: float) -> float:
        """Tests whether the candidate keeps more than `retained` of the base's mean above `chance`.

        Returns:
            The one-sided p-value of "it keeps this share or less".
        """
        floor = (1 - retained) * chance
        p = self.draws.ratio((-retained, 1, -floor), (0, 0, 1)).p_at_most(0.0)
        return (
            max(p, betting_p(retained * self.base + floor - self.candidate, 0.0))
            if self.sparse
            else p
        )

    def noninferiority_p(self, margin: float) -> float:
        """Returns the one-sided p-value of "the mean falls by `margin` or more".

        Raises:
            ValueError: the margin is not above 0.
        """
        change, fall = self.change, positive(margin)
        if not self.sparse:
            return change.p_at_most(-fall)
        if not change.has_spread and change.estimate < -fall:
            return 1 - betting_p(self.candidate - self.base, -fall)
        return max(change.p_at_most(-fall), betting_p(self.base - self.candidate, fall))


def betting_p(losses: ArrayLike, margin: float) -> float:
    """Computes the one-sided p-value of "the mean loss is `margin` or more".

    It holds for every distribution of n losses in [-1, 1]: Waudby-Smith and Ramdas (2024),
    "Estimating means of bounded random variables by betting", Journal of the Royal Statistical
    Society B 86:1-27.

    A gambler who believes that the claim is false bets a share f of the capital on every item. A
    loss d multiplies the capital by 1 - f + f (1 - d) / (1 - margin). If the claim is true, the
    capital does not grow on average, so it reaches 1/p with a probability of at most p (Markov,
    Ville). Half of the gambler's money is bet with f = 1. The other half is spread over smaller f,
    since the best f is known only afterwards.

    If no item falls, the money at f = 1 grows as (1 - margin)^-n. No test can do better: with a
    mean loss of m, at least a share m of all items falls, because no item falls by more than 1. So
    n items without a fall have a probability of at most (1 - m)^n, and no p-value may be smaller.
    The p-value of this function is at most twice that.
    """
    losses = np.asarray(losses, dtype=float)
    growth = 1 - _STAKES[:, None] + _STAKES[:, None] * (1 - losses) / (1 - margin)
    with np.errstate(divide="ignore"):
        capital = np.log(np.maximum(growth, 0.0)).sum(axis=1) + np.log(_STAKE_SHARES)
    return math.exp(-max(float(np.logaddexp.reduce(capital)), 0.0))


def _betting_limit(losses: NDArray) -> float:
    """Finds the mean loss that `betting_p` just rejects at 2.5 %."""
    from scipy.optimize import brentq

    def excess(limit: float) -> float:
        return betting_p(losses, limit) - ALPHA

    highest = 1 - _EDGE
    return (
        1.0
        if excess(highest) > 0
        else float(brentq(excess, float(losses.mean()), highest, xtol=1e-12))
    )


def share_at_most(count: int, n: int) -> float:
    """Computes the upper 95 % confidence bound of a share of which `count` of n units were seen.

    It is Clopper and Pearson's one-sided bound (1934). With a count of 0 it is about 3 / n, the
    rule of three.

    Raises:
        ValueError: n is not positive, or the count is not in 0..n.
    """
    from scipy.stats import beta

    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is not a share")
    return 1.0 if count == n else float(beta.ppf(CONFIDENCE, count + 1, n - count))


def mean_of_independent(
    intervals: Sequence[Interval], weights: Sequence[float] | None = None
) -> Interval:
    """Averages estimates from independent samples, plainly or with weights.

    The plain average over tasks is the macro average. The interval is MOVER (Zou and Donner 2008,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27:1693-1702):
    the distances from estimate to bound of the tasks add in quadrature. So asymmetric score
    intervals are kept, and tasks of any kind combine.

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
    """Computes a proportion with its Wilson score interval (Wilson 1927), which holds near 0 and 1.

    Raises:
        ValueError: n is not positive, or successes are not in 0..n.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is not a proportion")
    bounds = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high))


def mcnemar_p(base: ArrayLike, candidate: ArrayLike) -> float:
    """Computes the exact two-sided p-value of "as many items became right as became wrong".

    The test is McNemar's (1947), over values of 0 and 1.

    Raises:
        ValueError: as `paired_binary_difference`.
    """
    from scipy.stats import binomtest

    gained, lost, _ = _flips(base, candidate)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def binary_noninferiority_p(base: ArrayLike, candidate: ArrayLike, margin: float) -> float:
    """Computes the one-sided p-value of "the proportion of ones falls by `margin` or more".

    It is Tango's score test over the same items. Its inversion is the interval of
    `paired_binary_difference`.

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


def binary_retention_p(
    base: ArrayLike, candidate: ArrayLike, retained: float, chance: float
) -> float:
    """Tests whether the candidate keeps more than `retained` of the base's score above guessing.

    This is a test of mean(candidate - retained * base) - (1 - retained) * chance against 0. The
    tested figure is the change plus (1 - retained) of what the base scores above guessing. MOVER
    joins Tango's bound of the change and Wilson's bound of the base's score (see
    `mean_of_independent`). Items that were right can only fall, so the two are negatively
    correlated, and the joint bound is a little cautious. The p-value is the level at which the
    bound is 0.

    Args:
        base, candidate: n values of 0 or 1, 1 for right.
        retained: above 0 and below 1.
        chance: expected score of guessing, as a proportion.

    Returns:
        The one-sided p-value of "it keeps this share or less".

    Raises:
        ValueError: as `paired_binary_difference`, or `retained` out of range.
    """
    from scipy.optimize import brentq

    gained, lost, n = _flips(base, candidate)
    if not 0 < retained < 1:
        raise ValueError(f"the share to retain must be between 0 and 1, not {retained}")
    score, share = float(np.asarray(base).mean()), 1 - retained
    estimate = (gained - lost) / n + share * (score - chance)
    side = math.copysign(1.0, estimate)

    def excess(z: float) -> float:
        change, level = score_interval(gained, lost, n, z), _wilson(score, n, z)
        nearer = [
            (i.difference - i.low) if side > 0 else (i.high - i.difference) for i in (change, level)
        ]
        return abs(estimate) - math.hypot(nearer[0], share * nearer[1])

    if excess(LEAST_Z) <= 0:
        return 0.5
    return _upper_tail(
        side * (MOST_Z if excess(MOST_Z) > 0 else float(brentq(excess, LEAST_Z, MOST_Z, xtol=1e-9)))
    )


def average_noninferiority_p(interval: Interval, margin: float) -> float:
    """Computes the one-sided p-value of "the average falls by `margin` or more" from its interval.

    Higher is better. The distance to the bound on the margin's side is taken as 1.96 standard
    errors, as MOVER does. A point interval gives 0.5: without spread there is no evidence of the
    spread.

    Raises:
        ValueError: a margin that is not above 0.
    """
    distance = interval.difference + positive(margin)
    width = (
        interval.difference - interval.low if distance > 0 else interval.high - interval.difference
    )
    if width == 0:
        return 0.5
    return _upper_tail(Z * distance / width)


def smallest_detectable_drop(n: int, discordant_share: float) -> float:
    """Computes the smallest true drop that n paired 0/1 items detect with 80 % power.

    Detected means that the whole 95 % interval is below 0. The power is exact: it sums over the
    number of items that change, and over the losses among them at which the score test rejects
    equality. A drop larger than `discordant_share` needs at least as many changed items, so the
    share is then raised to the drop.

    Args:
        n: items.
        discordant_share: share of the items whose answer became right or wrong.

    Returns:
        A proportion; 1 if not even a drop from all to none would be detected (n below 4).

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
    """Computes the true change that an interval of this width would show with 80 % power.

    It is for all values but 0/1 values.
    """
    return (Z + Z_POWER) / Z * (interval.high - interval.low) / 2


def items_to_settle(n: int, interval: Interval, margin: float, tests: int = 1) -> int | None:
    """Computes how many items decide against the margin with a probability of 80 %.

    The true difference is not known. The probability is averaged over the normal distribution of
    the true difference around the estimate (assurance; O'Hagan, Stevens and Campbell 2005,
    Pharmaceutical Statistics 4, 187-201). The spread of the items is assumed to stay as it is.

    Args:
        n: items that gave the interval.
        interval: of the difference; higher is better.
        margin: accepted drop, above 0, in the interval's unit.
        tests: number of tests over which the decision is Holm-corrected. The strictest level
            is used: 0.025 divided by `tests`.

    Returns:
        More than n; None if n settles it already, or if more than a million items were needed.

    Raises:
        ValueError: n or tests is not positive, or the margin is not above 0.
    """
    from scipy.stats import norm

    if n < 1 or tests < 1:
        raise ValueError(f"n = {n} and {tests} tests; both must be positive")
    distance = interval.difference + positive(margin)
    width = (
        interval.difference - interval.low if distance > 0 else interval.high - interval.difference
    )
    error, critical = width / Z, float(norm.isf(ALPHA / tests))
    if critical * error < abs(distance):
        return None
    return _assured_items(n, abs(distance) / error, critical)


def binary_items_to_settle(
    gained: int, lost: int, n: int, margin: float, tests: int = 1
) -> int | None:
    """Computes the same as `items_to_settle` for values of 0 and 1, from the score test.

    With N items and a true change, the statistic N * (change + margin) has a mean that grows with N
    and a spread that grows with the square root of N. The spread is one under the claim that the
    margin is lost, and another under the shares of this sample.

    Args:
        gained, lost, n: items that became right, items that became wrong, and all items.
        margin: accepted drop, as a proportion.
        tests: as in `items_to_settle`.
    """
    from scipy.stats import norm

    change, changed = (gained - lost) / n, (gained + lost) / n
    distance = abs(change + positive(margin))
    critical, claimed = (
        float(norm.isf(ALPHA / tests)),
        _score_deviation(gained, lost, n, -margin) / math.sqrt(n),
    )
    if critical * claimed < distance * math.sqrt(n):
        return None
    # A sample without changes shows no spread; the claim's stands in.
    spread = math.sqrt(changed - change**2) or claimed
    return _assured_items(n, distance * math.sqrt(n) / spread, critical * claimed / spread)


def _assured_items(n: int, z: float, critical: float) -> int | None:
    """Finds the number N of items with E[Phi(|u| sqrt(N / n) - critical)] = 80 %, u ~ N(z, 1).

    Args:
        n: items so far.
        z: distance of the estimate from the margin, in standard errors of n items.
        critical: a decision needs a distance of more than this, in standard errors of N items.

    Returns:
        More than n; None if more than a million.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    truth = np.abs(z + norm.ppf((np.arange(ASSURED) + 0.5) / ASSURED))

    def missing(root: float) -> float:
        return float(norm.cdf(truth * root - critical).mean()) - POWER

    most = math.sqrt(MOST_ITEMS / n)
    if most <= 1 or missing(most) < 0:
        return None
    if missing(1.0) >= 0:
        return n + 1
    return max(math.ceil(n * brentq(missing, 1.0, most) ** 2), n + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for being several, by Holm's method; the order is kept.

    Rejecting the adjusted p-values at or below alpha keeps the chance of even one false rejection
    at alpha, whatever the dependence of the tests (Holm 1979, Scandinavian Journal of Statistics
    6:65-70).

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


def geometric_ratio(
    base: ArrayLike, candidate: ArrayLike
) -> tuple[float, tuple[float, float] | None]:
    """Computes candidate over base as a ratio of geometric means of independent repeats.

    The interval is Welch's 95 % t interval on the logarithms.

    Args:
        base, candidate: values above 0; the two sides may differ in number.

    Returns:
        The ratio and its interval; None instead of the interval if either side has fewer than two
        values.

    Raises:
        ValueError: no values, or a value that is not finite and above 0.
    """
    from scipy.stats import ttest_ind

    base, candidate = np.asarray(base, dtype=float), np.asarray(candidate, dtype=float)
    for values in (base, candidate):
        if (
            values.ndim != 1
            or values.size == 0
            or not (np.isfinite(values).all() and (values > 0).all())
        ):
            raise ValueError(f"repeats must be finite and above 0, got {values.tolist()}")
    first, second = np.log(base), np.log(candidate)
    ratio = math.exp(second.mean() - first.mean())
    if min(base.size, candidate.size) < 2:
        return ratio, None
    if np.ptp(first) == np.ptp(second) == 0:
        return ratio, (ratio, ratio)  # Welch's degrees of freedom are undefined without spread
    bounds = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return ratio, (math.exp(bounds.low), math.exp(bounds.high))


def paired_ratio(base: ArrayLike, candidate: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Computes candidate over base as a ratio of geometric means over blocks.

    The interval is the paired 95 % t interval on the logarithms. In a block both servers are
    started anew and measured one after the other. So the spread of the ratios includes what differs
    from start to start, as it must: Kalibera and Jones (2013), "Rigorous benchmarking in reasonable
    time", International Symposium on Memory Management, pages 63-74.

    Args:
        base, candidate: one value above 0 per block, at least two.

    Raises:
        ValueError: fewer than two blocks, unequal numbers, or a value that is not finite and above
            0.
    """
    from scipy.stats import ttest_rel

    base, candidate = paired_values(base, candidate, at_least=2)
    if not ((base > 0).all() and (candidate > 0).all()):
        raise ValueError(f"blocks must be above 0, got {base.tolist()} and {candidate.tolist()}")
    change = np.log(candidate) - np.log(base)
    ratio = math.exp(change.mean())
    if np.ptp(change) <= ROUNDING:
        return ratio, (ratio, ratio)
    bounds = ttest_rel(np.log(candidate), np.log(base)).confidence_interval(CONFIDENCE)
    return ratio, (math.exp(bounds.low), math.exp(bounds.high))


def ratio_of_sums(numerator: ArrayLike, denominator: ArrayLike, seed: int) -> Interval:
    """Computes sum(numerator) / sum(denominator) over sampled units, with its 95 % interval.

    The interval is the BCa bootstrap over the units.

    Raises:
        ValueError: fewer than two units, unequal lengths, NaN or infinity, or a denominator that is
            not above 0.
    """
    numerator, denominator = paired_values(numerator, denominator, at_least=2)
    if (denominator <= 0).any():
        raise ValueError("a denominator is not above 0")
    return _interval(numerator, denominator, seed)


def paired_values(
    first: ArrayLike, second: ArrayLike, at_least: int = 1
) -> tuple[NDArray, NDArray]:
    """Returns both as float vectors of one length without NaN or infinity.

    Raises:
        ValueError: what is wrong.
    """
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
    """Counts the items that became right, the items that became wrong, and all items."""
    base, candidate = paired_values(base, candidate)
    if not (is_binary(base) and is_binary(candidate)):
        raise ValueError("values of a paired proportion must be 0 or 1")
    return int(np.sum(base < candidate)), int(np.sum(base > candidate)), base.size


def _interval(numerator: NDArray, denominator: NDArray, seed: int) -> Interval:
    resamples = RatioBootstrap.of(numerator, denominator, seed)
    return Interval(resamples.estimate, resamples.bound(ALPHA), resamples.bound(1 - ALPHA))


def positive(margin: float) -> float:
    """Returns the margin.

    Raises:
        ValueError: it is not a number above 0.
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"a margin must be above 0, not {margin}")
    return margin


def _upper_tail(z: float) -> float:
    """Returns the probability that a standard normal variable exceeds z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def _power(n: int, discordant_share: float, drop: float) -> float:
    """Computes the probability that n items detect `drop`.

    Detected means that the whole interval is below 0. `discordant_share` is the share of the items
    that change.
    """
    from scipy.stats import binom

    low, high = binom.ppf([1e-9, 1 - 1e-9], n, discordant_share)
    changed = np.arange(low, high + 1)
    # lost - gained > Z * sqrt(changed), with gained = changed - lost: the score test of equality
    most_kept = np.floor((changed + Z * np.sqrt(changed)) / 2)
    loss_share = (1 + drop / discordant_share) / 2 if discordant_share else 0.5
    return float(
        np.sum(binom.pmf(changed, n, discordant_share) * binom.sf(most_kept, changed, loss_share))
    )


def _wilson(share: float, n: int, z: float) -> Interval:
    """Computes Wilson's score interval at z, in closed form."""
    middle, weight = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, (middle - half) / weight, (middle + half) / weight)


def score_interval(gained: int, lost: int, n: int, z: float = Z) -> Interval:
    """Computes Tango's interval at z, by bracketed root finding.

    The bounds are the two values at which the score test is just not rejected.

    Args:
        gained, lost, n: items that became right, items that became wrong, and all items.
        z: quantile of the standard normal distribution.
    """
    from scipy.optimize import brentq

    estimate = (gained - lost) / n

    def excess(value: float, sign: float) -> float:
        return sign * (gained - lost - n * value) - z * _score_deviation(gained, lost, n, value)

    low, high = -1.0, 1.0
    if estimate - _EDGE > -1:
        low = brentq(excess, -1.0, estimate - _EDGE, args=(1.0,), xtol=1e-12)
    if estimate + _EDGE < 1:
        high = brentq(excess, estimate + _EDGE, 1.0, args=(-1.0,), xtol=1e-12)
    return Interval(estimate, float(low), float(high))


def _score_deviation(gained: int, lost: int, n: int, value: float) -> float:
    """Computes the standard deviation of gained - lost if the true difference is `value`.

    The rate of losses is its restricted maximum likelihood estimate.
    """
    b = -gained - lost + (2 * n - gained + lost) * value
    root = math.sqrt(max(b * b + 8 * n * lost * value * (1 - value), 0.0))
    loss_rate = (root - b) / (4 * n)
    return math.sqrt(max(n * (2 * loss_rate + value * (1 - value)), 0.0))
