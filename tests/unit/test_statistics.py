"""Intervals against published examples, against brute force, and against data that cannot be right."""

import math

import numpy as np
import pytest

from model_serve_flow import statistics
from model_serve_flow.statistics import Interval


def table(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Base and candidate answers with these counts."""
    pairs = [(1, 1)] * both + [(0, 1)] * gained + [(1, 0)] * lost + [(0, 0)] * neither
    base, candidate = zip(*pairs, strict=True)
    return np.array(base), np.array(candidate)


def test_tango_gives_the_published_interval():
    """Airway hyper-responsiveness before and after transplantation; Fagerland, Lydersen and Laake (2014)."""
    after, before = table(both=1, gained=7, lost=1, neither=12)
    interval = statistics.paired_binary_difference(before, after)
    assert interval.difference == pytest.approx(-6 / 21)
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("n", "gained", "lost"), [(50, 12, 2), (21, 1, 7), (30, 0, 4), (12, 5, 0), (300, 20, 20)])
def test_tango_bounds_are_where_brute_force_stops_rejecting(n, gained, lost):
    """The score test with the restricted likelihood maximised on a grid, not by the formula under test."""

    def rejected(difference: float) -> bool:
        lowest = max(0.0, -difference)
        losses = np.linspace(lowest, (1 - difference) / 2, 40001)[1:-1]
        gains, rest = losses + difference, 1 - 2 * losses - difference
        likelihood = gained * np.log(gains) + lost * np.log(losses) + (n - gained - lost) * np.log(rest)
        loss = losses[np.argmax(likelihood)]
        deviation = math.sqrt(n * (2 * loss + difference - difference**2))
        return abs(gained - lost - n * difference) > statistics.Z * deviation

    found = statistics.paired_binary_difference(*table(1, gained, lost, n - gained - lost - 1))
    for bound, outward in ((found.low, -1), (found.high, 1)):
        assert rejected(bound + outward * 2e-3)
        assert not rejected(bound - outward * 2e-3)


def test_tango_holds_its_coverage_where_flips_are_rare():
    rng = np.random.default_rng(1)
    draws = rng.multinomial(60, [0.9, 0.03, 0.05, 0.02], size=400)
    found = [statistics.paired_binary_difference(*table(*row)) for row in draws]
    assert np.mean([i.low <= -0.02 <= i.high for i in found]) >= 0.93


def test_equal_answers_give_zero_with_a_width_that_shrinks_with_n():
    z2 = statistics.Z**2
    for n in (10, 1000):
        interval = statistics.paired_binary_difference(np.ones(n), np.ones(n))
        assert interval.difference == 0
        assert interval.high == pytest.approx(z2 / (n + z2))
        assert interval.low == pytest.approx(-interval.high)


def test_extremes_stay_within_minus_one_and_one():
    for n in (1, 2, 400):
        up = statistics.paired_binary_difference(np.zeros(n), np.ones(n))
        down = statistics.paired_binary_difference(np.ones(n), np.zeros(n))
        z2 = statistics.Z**2
        assert up.high == 1 and up.low == pytest.approx((n - z2) / (n + z2))
        assert (down.low, down.high) == (-1, pytest.approx(-up.low))


def test_mean_difference_covers_and_repeats():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 5, 80)
    candidate = base + rng.normal(0.3, 0.2, 80)
    first = statistics.paired_mean_difference(base, candidate, seed=7)
    half = 1.99 * np.std(candidate - base, ddof=1) / math.sqrt(80)
    assert first == statistics.paired_mean_difference(base, candidate, seed=7)
    assert first.difference == pytest.approx(np.mean(candidate - base))
    assert first.high - first.low == pytest.approx(2 * half, rel=0.15)  # pairing: far below the spread of 5


def test_mean_difference_of_equal_values_is_a_point():
    assert statistics.paired_mean_difference([0.1, 0.2, 0.4], [0.1, 0.2, 0.4], seed=0) == Interval(0, 0, 0)


def test_perplexity_change_weighs_documents_by_length():
    base, candidate, words = (
        np.array([-400.0, -40.0, -80.0]),
        np.array([-420.0, -40.0, -80.0]),
        np.array([100.0, 10, 20]),
    )
    change = statistics.paired_ratio_change(base, candidate, words, seed=0)
    before, after = math.exp(520 / 130), math.exp(540 / 130)
    assert change.difference == pytest.approx(100 * (after / before - 1))
    assert change.low <= change.difference <= change.high


def test_perplexity_interval_agrees_with_the_delta_method():
    rng = np.random.default_rng(3)
    words = rng.integers(50, 400, 200).astype(float)
    base = -words * rng.normal(4, 0.5, 200)
    candidate = base - words * rng.normal(0.02, 0.01, 200)
    interval = statistics.paired_loss_change(base, candidate, words, seed=0)
    residual = (base - candidate) - interval.difference * words
    half = statistics.Z * math.sqrt(np.sum(residual**2)) / words.sum()
    assert interval.low == pytest.approx(interval.difference - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.difference + half, abs=0.1 * half)


def test_equal_models_have_equal_perplexity():
    values = -np.array([400.0, 50.0, 90.0])
    assert statistics.paired_ratio_change(values, values, [100, 10, 20], seed=0) == Interval(0, 0, 0)


def test_mean_of_independent_keeps_asymmetric_bounds():
    mean = statistics.mean_of_independent([Interval(0.0, -3.0, 1.0), Interval(2.0, -2.0, 2.0)])
    assert mean == Interval(1.0, 1.0 - 2.5, 1.5)
    assert statistics.mean_of_independent([Interval(1.0, 0.5, 2.0)]) == Interval(1.0, 0.5, 2.0)


def test_wilson_gives_the_published_interval():
    """81 of 263; Newcombe (1998), two-sided intervals for the single proportion, table I."""
    interval = statistics.wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert statistics.wilson_interval(0, 20).low == 0


PAIRED = [
    statistics.paired_binary_difference,
    lambda a, b: statistics.paired_mean_difference(a, b, seed=0),
    lambda a, b: statistics.paired_ratio_change(a, b, np.ones(len(a)), seed=0),
]


@pytest.mark.parametrize("function", PAIRED)
@pytest.mark.parametrize(
    ("base", "candidate", "reason"),
    [
        ([], [], "0 paired values"),
        ([0, -1, 0], [0, 0], "differ in number: 3 and 2"),
        ([0, math.nan], [0, 0], "NaN or infinite"),
        ([0, 0], [0, -math.inf], "NaN or infinite"),
        ([[0, 0]], [[0, 0]], "vectors"),
    ],
)
def test_impossible_data_is_refused(function, base, candidate, reason):
    with pytest.raises(ValueError, match=reason):
        function(base, candidate)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: statistics.paired_binary_difference([0, 0.5], [0, 1]), "0 or 1"),
        (lambda: statistics.paired_mean_difference([0.5], [0.6], seed=0), "at least 2"),
        (lambda: statistics.paired_ratio_change([-1, -2], [-1, -2], [3, 0], seed=0), "size is not above 0"),
        (lambda: statistics.paired_ratio_change([-1, -2], [-1, -2], [3, math.nan], seed=0), "NaN"),
        (lambda: statistics.paired_ratio_change([-1, 2], [-1, -2], [3, 4], seed=0), "above 0"),
        (lambda: statistics.wilson_interval(5, 4), "5 successes of 4"),
        (lambda: statistics.wilson_interval(0, 0), "0 successes of 0"),
        (lambda: statistics.mean_of_independent([]), "no intervals"),
    ],
)
def test_impossible_values_are_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
