"""Tests growing data at several looks, with p-values that hold over all looks. No I/O.

The bounds spend the error bit by bit: Lan and DeMets (1983), "Discrete sequential boundaries for
clinical trials", Biometrika 70:659-663.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Carried = tuple[NDArray, NDArray]  # places of a score, and their probabilities

POINTS = 401  # at which the density between two looks is computed
FAR = 8.0  # standard deviations up to which the density is computed
LEVELS = np.logspace(-9, math.log10(0.49), 60)  # inverted for a p-value


def spent(alpha: float, fraction: float) -> float:
    """Computes the error spent when this fraction of the planned items is measured.

    It is 2 - 2 Phi(z / sqrt(fraction)), where z is the quantile at 1 - alpha / 2; one-sided. Like
    O'Brien and Fleming's bounds, it spends little early.
    """
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(ndtri(alpha / 2) / math.sqrt(fraction)))


def bounds(fractions: Sequence[float], alpha: float) -> NDArray:
    """Computes the bound of the standard normal statistic at each look, one-sided.

    All looks together have the error `alpha`. With four equal looks and 0.025 the bounds are 4.333,
    2.963, 2.359 and 2.014, as in rpact and gsDesign. The density of the score that has not crossed
    a bound is carried from look to look by numerical integration (Armitage, McPherson and Rowe
    1969, Journal of the Royal Statistical Society A 132:235-244).

    Args:
        fractions: of the planned items, rising, the last at most 1.
        alpha: one-sided error of all looks together.

    Returns:
        [looks] bounds, in standard deviations.

    Raises:
        ValueError: fractions that do not rise within (0, 1], or alpha not between 0 and 0.5.
    """
    if (
        not (0 < alpha < 0.5)
        or list(fractions) != sorted({*fractions})
        or not 0 < fractions[0] <= fractions[-1] <= 1
    ):
        raise ValueError(f"no bounds for the fractions {list(fractions)} and an error of {alpha}")
    found: list[float] = []
    used, before, carried = 0.0, 0.0, None
    for fraction in fractions:
        step, root, total = (
            math.sqrt(fraction - before),
            math.sqrt(fraction),
            spent(alpha, fraction),
        )
        found.append(_bound(carried, total - used, step, root))
        carried = _carried(carried, found[-1] * root, step, root)
        used, before = total, fraction
    return np.array(found)


def _bound(carried: Carried | None, due: float, step: float, root: float) -> float:
    """Finds the bound that is first crossed at this look with the probability `due`."""
    from scipy.optimize import brentq
    from scipy.special import ndtr, ndtri

    if carried is None:
        return -float(ndtri(due))
    places, mass = carried
    return brentq(
        lambda bound: mass @ ndtr((places - bound * root) / step) - due, -FAR, 2 * FAR, xtol=1e-10
    )


def _carried(carried: Carried | None, bound: float, step: float, root: float) -> Carried:
    """Carries the density of the score below the bound over one step of this deviation.

    Returns:
        Places of the score and their probabilities (Simpson's rule).
    """
    places = np.linspace(-FAR * root, bound, POINTS)
    weights = np.full(POINTS, 2.0)
    weights[1::2], weights[[0, -1]] = 4.0, 1.0
    weights *= (places[1] - places[0]) / 3
    if carried is None:
        return places, weights * _density(places, step)
    before, mass = carried
    return places, weights * (_density(places[:, None] - before, step) @ mass)


def _density(distance: NDArray, step: float) -> NDArray:
    """Computes the density of a normal variable with this deviation."""
    return np.exp(-0.5 * (distance / step) ** 2) / (step * math.sqrt(2 * math.pi))


@functools.lru_cache(maxsize=64)
def _table(fractions: tuple[float, ...]) -> NDArray:
    """Computes the bounds for every level in `LEVELS`: [level, look]."""
    return np.array([bounds(fractions, level) for level in LEVELS])


@functools.lru_cache(maxsize=256)
def repeated_level(level: float, fractions: tuple[float, ...]) -> float:
    """Computes the error that the bound of the last of these looks leaves to a plain interval.

    The plain interval with this error is the repeated confidence interval at the last look: it
    holds with the error `level` whatever made one stop there, and it is clear of a limit exactly
    where the last look's bound is crossed. Jennison and Turnbull (1989), "Interim analyses: the
    repeated confidence interval approach", Journal of the Royal Statistical Society B 51:305-361.

    Args:
        level: one-sided error over all looks, above 0 and below 0.5.
        fractions: of the planned items at the looks made, as in `bounds`.
    """
    from scipy.special import ndtr

    return level if fractions == (1.0,) else float(ndtr(-bounds(fractions, level)[-1]))


def sequential_p(p_values: Sequence[float], fractions: Sequence[float]) -> float:
    """Computes one p-value for a hypothesis that was tested at each look.

    It is the smallest error at which any look rejects the hypothesis. It only falls from look to
    look, so a settled question stays settled. P-values of several hypotheses can be Holm-adjusted
    like any others: Liu and Anderson (2008), "On adaptive extensions of group sequential trials for
    clinical investigations", Journal of the American Statistical Association 103:1621-1630.

    Args:
        p_values: one-sided, of the items up to each look.
        fractions: of the planned items at these looks, as in `bounds`.
    """
    from scipy.stats import norm

    if list(fractions) == [1.0]:
        return float(p_values[0])
    table = _table(tuple(round(fraction, 6) for fraction in fractions))
    found = [_level(float(norm.isf(p)), table[:, look]) for look, p in enumerate(p_values)]
    return min(found)


def _level(z: float, column: NDArray) -> float:
    """Finds the level whose bound is z; the bounds fall as the level rises."""
    from scipy.interpolate import PchipInterpolator

    if z <= column[-1]:
        return 1.0
    return float(np.exp(PchipInterpolator(-column, np.log(LEVELS))(max(-z, -column[0]))))
