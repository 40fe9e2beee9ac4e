"""The intervals of many samples at once, for simulations;
a test holds each against the library's of one sample.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import norm, t

from model_serve_flow.compare.stats import bootstrap

Z = norm.ppf(0.975)
HALVINGS = 48  # of an interval of width 2: to 1e-14
CHUNK = 200  # samples whose resamples are in memory together


def score_intervals(
    gained: NDArray, lost: NDArray, n: int, z: float = Z
) -> tuple[NDArray, NDArray]:
    """Tango's bounds of as many tables, 95 % or those at z, by bisection:
    where the score test just does not reject.
    """
    tables, place = np.unique(np.stack([gained, lost], axis=1), axis=0, return_inverse=True)
    gained, lost = tables[:, 0], tables[:, 1]
    estimate = (gained - lost) / n
    bounds = [
        _bisect(estimate, np.full(estimate.shape, far), gained, lost, n, z) for far in (-1.0, 1.0)
    ]
    return bounds[0][place], bounds[1][place]


def score_p_values(gained: NDArray, lost: NDArray, n: int, margin: float) -> NDArray:
    """One-sided p-value of "the share falls by `margin` or more", of as many tables."""
    return ndtr(-(gained - lost + n * margin) / score_deviation(gained, lost, n, -margin))


def _bisect(
    inside: NDArray, outside: NDArray, gained: NDArray, lost: NDArray, n: int, z: float
) -> NDArray:
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        distance = np.abs(gained - lost - n * middle)
        rejected = distance > z * score_deviation(gained, lost, n, middle)
        inside, outside = np.where(rejected, inside, middle), np.where(rejected, middle, outside)
    return (inside + outside) / 2


def score_deviation(gained: NDArray, lost: NDArray, n: int, value: NDArray | float) -> NDArray:
    """Standard deviation of gained - lost if the true difference is `value` (Tango 1998,
    equation 3).
    """
    half = (gained + lost - (2 * n - gained + lost) * value) / 2
    losses = (half + np.sqrt(np.maximum(half**2 + 2 * n * lost * value * (1 - value), 0))) / (2 * n)
    return np.sqrt(np.maximum(n * (2 * losses + value * (1 - value)), 0))


def ratio_intervals(
    numerators: NDArray, denominators: NDArray, seed: int
) -> tuple[NDArray, NDArray]:
    """BCa bounds of sum / sum with expanded levels; samples are rows,
    and all have the resamples of this seed.
    """
    counts = _resamples(bootstrap.RESAMPLES, numerators.shape[1], seed)
    parts = [
        _ratio_bounds(counts, numerators[i : i + CHUNK], denominators[i : i + CHUNK])
        for i in range(0, len(numerators), CHUNK)
    ]
    low, high = (np.concatenate(side) for side in zip(*parts, strict=True))
    return low, high


def text_intervals(
    numerators: NDArray, denominators: NDArray, seed: int
) -> tuple[NDArray, NDArray]:
    """The most cautious bounds of `PairedLoss`: BCa, studentised bootstrap, and jackknife t."""
    counts = _resamples(bootstrap.RESAMPLES, numerators.shape[1], seed)
    parts = []
    for i in range(0, len(numerators), CHUNK):
        sides = (numerators[i : i + CHUNK], denominators[i : i + CHUNK])
        found = (_ratio_bounds(counts, *sides), *_student_bounds(counts, *sides))
        lows, highs = zip(*found, strict=True)
        parts.append((np.minimum.reduce(lows), np.maximum.reduce(highs)))
    low, high = (np.concatenate(side) for side in zip(*parts, strict=True))
    return low, high


def _student_bounds(counts: NDArray, top: NDArray, bottom: NDArray) -> tuple:
    """Studentised bootstrap and t, both with the jackknife's error."""
    n, (x, w) = top.shape[1], (top.sum(axis=1), bottom.sum(axis=1))
    estimate = x / w
    left = (x[:, None] - top) / (w[:, None] - bottom) - estimate[:, None]
    error = np.sqrt((n - 1) / n * np.sum(left**2, axis=1))
    xs, ws, xx, xw, ww = (
        each @ counts.T for each in (top, bottom, top**2, top * bottom, bottom**2)
    )
    ratio = xs / ws
    own = np.sqrt(np.maximum(xx - 2 * ratio * xw + ratio**2 * ww, 0) * n / (n - 1)) / ws
    scores = (ratio - estimate[:, None]) / np.maximum(own, 0.1 * error[:, None])
    scores.sort(axis=1)
    parts = bottom * (1 + bottom / bottom.mean(axis=1, keepdims=True))
    degrees = parts.sum(axis=1) ** 2 / np.sum(parts**2, axis=1) - 1
    t_half = t.ppf(0.975, degrees) * error
    return (
        tuple(
            estimate - _quantile(scores, np.full(len(x), share)) * error for share in (0.975, 0.025)
        ),
        (estimate - t_half, estimate + t_half),
    )


@functools.cache
def _resamples(number: int, units: int, seed: int) -> NDArray:
    """How often each unit is in each resample."""
    drawn = np.random.default_rng(seed).integers(0, units, (number, units))
    return np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(float)


def _ratio_bounds(
    counts: NDArray, numerators: NDArray, denominators: NDArray
) -> tuple[NDArray, NDArray]:
    units = numerators.shape[1]
    estimate = numerators.sum(axis=1) / denominators.sum(axis=1)
    resampled = np.sort((numerators @ counts.T) / (denominators @ counts.T), axis=1)
    bias = ndtri(np.mean(resampled < estimate[:, None], axis=1))
    left = numerators.sum(axis=1, keepdims=True) - numerators
    left = left / (denominators.sum(axis=1, keepdims=True) - denominators)
    pull = left.mean(axis=1, keepdims=True) - left
    acceleration = np.sum(pull**3, axis=1) / (6 * np.sum(pull**2, axis=1) ** 1.5)
    return tuple(
        _quantile(resampled, _level(level, units, bias, acceleration)) for level in (0.025, 0.975)
    )


def _level(level: float, units: int, bias: NDArray, acceleration: NDArray) -> NDArray:
    """Which share of the resamples lies below the bound."""
    shifted = bias + math.sqrt(units / (units - 1)) * t.ppf(level, units - 1)
    return ndtr(bias + shifted / (1 - acceleration * shifted))


def _quantile(rows: NDArray, shares: NDArray) -> NDArray:
    place = shares * (rows.shape[1] - 1)
    below = np.floor(place).astype(int)
    pairs = np.take_along_axis(
        rows, np.stack([below, np.minimum(below + 1, rows.shape[1] - 1)], axis=1), axis=1
    )
    return pairs[:, 0] + (place - below) * (pairs[:, 1] - pairs[:, 0])
