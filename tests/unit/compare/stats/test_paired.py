"""Intervals and tests against published examples, independent implementations, brute force,
and impossible data.
"""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW
from support.paired_calls import (
    loss_noninferiority_p,
    mean_noninferiority_p,
    paired_loss_change,
    paired_mean_difference,
    paired_ratio_change,
)
from support.score_test import assert_interval

from model_serve_flow.compare.stats import bootstrap, paired
from model_serve_flow.compare.stats.bootstrap import RatioBootstrap
from model_serve_flow.compare.stats.paired import Interval


def table(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Base and candidate answers with these counts."""
    pairs = [(1, 1)] * both + [(0, 1)] * gained + [(1, 0)] * lost + [(0, 0)] * neither
    base, candidate = zip(*pairs, strict=True)
    return np.array(base), np.array(candidate)


def test_tango_gives_the_published_interval():
    """Airway hyper-responsiveness before and after transplantation; Fagerland,
    Lydersen and Laake (2014).
    """
    after, before = table(both=1, gained=7, lost=1, neither=12)
    interval = paired.paired_binary_difference(before, after)
    assert interval.difference == pytest.approx(-6 / 21)
    assert (round(interval.low, 3), round(interval.high, 3)) == (-0.517, -0.026)


def test_tango_gives_the_published_interval_of_a_larger_study():
    """Complete response before and after consolidation therapy; Fagerland,
    Lydersen and Laake (2017), chapter 8.
    """
    interval = paired.paired_binary_difference(*table(both=59, gained=6, lost=16, neither=80))
    assert (round(interval.low, 4), round(interval.high, 4)) == (-0.1240, -0.0054)


@pytest.mark.parametrize(
    ("n", "gained", "lost"), [(50, 12, 2), (21, 1, 7), (30, 0, 4), (12, 5, 0), (300, 20, 20)]
)
def test_tango_bounds_are_where_brute_force_stops_rejecting(n, gained, lost):
    found = paired.paired_binary_difference(*table(1, gained, lost, n - gained - lost - 1))
    assert_interval(found.low, found.high, gained, lost, n)


@pytest.mark.parametrize("wrong", [(-0.01, -0.01), (0.01, 0.01), (0.01, -0.01), (-0.01, 0.01)])
def test_brute_force_notices_an_interval_that_is_shifted_too_narrow_or_too_wide(wrong):
    found = paired.paired_binary_difference(*table(1, 12, 2, 35))
    with pytest.raises(AssertionError):
        assert_interval(found.low + wrong[0], found.high + wrong[1], 12, 2, 50)


def test_tango_holds_its_coverage_where_flips_are_rare():
    rng = np.random.default_rng(1)
    draws = rng.multinomial(60, [0.9, 0.03, 0.05, 0.02], size=400)
    found = [paired.paired_binary_difference(*table(*row)) for row in draws]
    assert np.mean([i.low <= -0.02 <= i.high for i in found]) >= 0.93


def test_equal_answers_give_zero_with_a_width_that_shrinks_with_n():
    z2 = paired.Z**2
    for n in (10, 1000):
        interval = paired.paired_binary_difference(np.ones(n), np.ones(n))
        assert interval.difference == 0
        assert interval.high == pytest.approx(z2 / (n + z2))
        assert interval.low == pytest.approx(-interval.high)


def test_extremes_stay_within_minus_one_and_one():
    for n in (1, 2, 400):
        up = paired.paired_binary_difference(np.zeros(n), np.ones(n))
        down = paired.paired_binary_difference(np.ones(n), np.zeros(n))
        z2 = paired.Z**2
        assert up.high == 1 and up.low == pytest.approx((n - z2) / (n + z2))
        assert (down.low, down.high) == (-1, pytest.approx(-up.low))


def test_mean_difference_covers_and_repeats():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 5, 80)
    candidate = base + rng.normal(0.3, 0.2, 80)
    first = paired_mean_difference(base, candidate, seed=7)
    half = 1.99 * np.std(candidate - base, ddof=1) / math.sqrt(80)
    assert first == paired_mean_difference(base, candidate, seed=7)
    assert first.difference == pytest.approx(np.mean(candidate - base))
    # pairing: far below the spread of 5
    assert first.high - first.low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.parametrize("n", [3, 40, 1000])
def test_equal_scores_do_not_prove_that_none_is_ever_lost(n):
    """If a share m of all items is lost, n items show none of it with a probability of (1 -
    m)^n.
    """
    base = np.linspace(0.1, 0.9, n)
    interval = paired_mean_difference(base, base, seed=0)
    assert interval.difference == 0
    assert 0.025 / 2 <= (1 - interval.high) ** n <= 0.025
    assert interval.low == -interval.high
    outside_scores = paired_mean_difference(10 + base, 10 + base, seed=0)
    # no bound on what an item can lose, so none on the mean
    assert outside_scores == Interval(0, 0, 0)


@pytest.mark.parametrize("margin", [0.02, 0.1])
@pytest.mark.parametrize("n", [20, 183, 400])
def test_without_a_fall_the_p_is_at_least_its_probability(n, margin):
    p = paired.betting_p(np.zeros(n), margin)
    assert (1 - margin) ** n <= p <= 2 * (1 - margin) ** n
    base = np.full(n, 0.7)
    rising = base + 1e-4 * (np.arange(n) % 3)
    assert mean_noninferiority_p(base, rising, margin, seed=0) >= 0.9 * (1 - margin) ** n - 1e-5


@pytest.mark.parametrize("losses", [[-1, 1], [0, 0, 0, 1], [-0.3, 0, 0.2, 0.5, 1]])
def test_a_bet_on_a_true_claim_seldom_wins(losses):
    """Over all samples of four, of a claim that is just true."""
    samples = np.array(list(itertools.product(losses, repeat=4)))
    found = np.array([paired.betting_p(row, float(np.mean(losses)) + 1e-9) for row in samples])
    assert all(np.mean(found <= p) <= p for p in (0.01, 0.025, 0.05, 0.2))


def test_the_p_of_scores_that_hardly_fall_and_the_interval_decide_alike():
    rng = np.random.default_rng(12)
    base = rng.uniform(0.1, 0.8, 60)
    lost = np.where(np.arange(60) < 2, -0.1, 0.0)
    for rise in (rng.uniform(0.0, 0.1, 60), rng.uniform(-0.02, 0.02, 60), lost):
        low = paired_mean_difference(base, base + rise, seed=5).low
        inside, outside = (
            mean_noninferiority_p(base, base + rise, margin=-low + step, seed=5)
            for step in (-1e-6, 1e-6)
        )
        assert outside < 0.025 < inside


def test_a_loss_beyond_the_margin_without_spread_is_as_sure_as_its_items_are_many():
    base = np.full(40, 0.9)
    p = mean_noninferiority_p(base, base - 0.5, margin=0.1, seed=0)
    assert (1.1 / 1.5) ** 40 <= 1 - p <= 2 * (1.1 / 1.5) ** 40


@pytest.mark.parametrize("n", [5, 20, 200])
def test_a_spread_that_is_only_rounding_is_none(n):
    """(x + 0.05) - x is not exactly 0.05; with 20 of them the acceleration was 0 / 0,
    and comparing crashed.
    """
    base = np.linspace(0.1, 0.9, n)
    interval = paired_mean_difference(base, base + 0.05, seed=0)
    assert interval.low < interval.difference == pytest.approx(0.05)
    assert interval.difference < interval.high
    p = loss_noninferiority_p(-base * 3.1, -base * 3.3, base, 0.1, seed=0)
    assert p == 1 - 0.5**n


def test_units_of_the_same_pull_have_no_skewness():
    """Two units, each pulling as much as the other, in either direction."""
    resamples = RatioBootstrap.of(np.array([1.0, 3.0]), np.array([1.0, 1.0]), seed=0)
    assert resamples.acceleration == 0
    assert np.isfinite(
        [resamples.bound(0.025), resamples.bound(0.975), resamples.p_at_most(1.5)]
    ).all()


def test_very_many_items_take_about_as_long_as_a_thousand():
    rng = np.random.default_rng(13)
    base = rng.beta(2, 2, 100_000)
    candidate = np.clip(base + rng.normal(-0.002, 0.1, base.size), 0, 1)
    started = time.process_time()
    tested = paired.PairedMean.of(base, candidate, seed=0)
    interval, p = tested.interval(), tested.noninferiority_p(0.01)
    # about 1; a minute and more with an index for every item
    assert time.process_time() - started < 4
    half = paired.Z * np.std(candidate - base) / math.sqrt(base.size)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    assert p == pytest.approx(1e-5)


def test_the_monte_carlo_error_is_the_spread_over_seeds(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 999)
    pairs = scores(40, 0.02)
    margin = -paired_mean_difference(pairs[0], pairs[1] - 1, seed=0).low
    found = [mean_noninferiority_p(pairs[0], pairs[1] - 1, margin, seed) for seed in range(200)]
    assert np.std(found) == pytest.approx(
        bootstrap.monte_carlo_error(float(np.mean(found))), rel=0.5
    )


def test_a_share_that_was_not_seen_is_at_most_about_three_in_n():
    """Hanley and Lippman-Hand (1983), If nothing goes wrong, is everything all right?

    JAMA 249:1743-1745.
    """
    assert paired.share_at_most(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert paired.share_at_most(0, 1000) == pytest.approx(3 / 1000, rel=0.01)
    assert scipy.stats.binom.cdf(2, 50, paired.share_at_most(2, 50)) == pytest.approx(0.05)
    assert paired.share_at_most(7, 7) == 1


def test_perplexity_change_weighs_documents_by_length():
    base, candidate, words = (
        np.array([-400.0, -40.0, -80.0]),
        np.array([-420.0, -40.0, -80.0]),
        np.array([100.0, 10, 20]),
    )
    change = paired_ratio_change(base, candidate, words, seed=0)
    before, after = math.exp(520 / 130), math.exp(540 / 130)
    assert change.difference == pytest.approx(100 * (after / before - 1))
    assert change.low <= change.difference <= change.high


def test_perplexity_interval_agrees_with_the_delta_method():
    rng = np.random.default_rng(3)
    words = rng.integers(50, 400, 200).astype(float)
    base = -words * rng.normal(4, 0.5, 200)
    candidate = base - words * rng.normal(0.02, 0.01, 200)
    interval = paired_loss_change(base, candidate, words, seed=0)
    residual = (base - candidate) - interval.difference * words
    half = paired.Z * math.sqrt(np.sum(residual**2)) / words.sum()
    assert interval.low == pytest.approx(interval.difference - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.difference + half, abs=0.1 * half)


def test_equal_models_have_equal_perplexity():
    values = -np.array([400.0, 50.0, 90.0])
    assert paired_ratio_change(values, values, [100, 10, 20], seed=0) == Interval(0, 0, 0)


def test_mean_of_independent_keeps_asymmetric_bounds():
    mean = paired.mean_of_independent([Interval(0.0, -3.0, 1.0), Interval(2.0, -2.0, 2.0)])
    assert mean == Interval(1.0, 1.0 - 2.5, 1.5)
    assert paired.mean_of_independent([Interval(1.0, 0.5, 2.0)]) == Interval(1.0, 0.5, 2.0)


def test_wilson_gives_the_published_interval():
    """81 of 263; Newcombe (1998), two-sided intervals for the single proportion, table I."""
    interval = paired.wilson_interval(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert paired.wilson_interval(0, 20).low == 0


@pytest.mark.parametrize(
    ("counts", "published"),
    [
        ((20, 2, 12, 16), 0.0129),  # two culture media; Armitage and Berry (1994), p. 127
        # consolidation therapy; Fagerland, Lydersen and Laake (2017), chapter 8
        ((59, 6, 16, 80), 0.0525),
    ],
)
def test_mcnemar_gives_the_published_p(counts, published):
    assert round(paired.mcnemar_p(*table(*counts)), 4) == published


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 1), (3, 3), (5, 17), (86, 150), (40, 41)])
def test_mcnemar_agrees_with_statsmodels(gained, lost):
    pairs = table(10, gained, lost, 10)
    expected = mcnemar([[10, gained], [lost, 10]], exact=True).pvalue
    assert paired.mcnemar_p(*pairs) == pytest.approx(expected, rel=1e-9)


def test_without_a_margin_the_score_test_is_mcnemars():
    """Approval of a president in two surveys; Agresti (1990), Categorical Data Analysis, p. 350."""
    expected = mcnemar([[794, 86], [150, 570]], exact=False, correction=False)
    p = paired.binary_noninferiority_p(*table(794, 86, 150, 570), margin=1e-12)
    assert expected.statistic == pytest.approx(17.36, abs=0.005)
    assert 2 * (1 - p) == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "gained", "lost"), [(50, 12, 2), (360, 0, 0), (360, 3, 14), (1000, 40, 60), (99, 0, 5)]
)
def test_the_binary_p_and_its_interval_decide_alike(n, gained, lost):
    pairs = table(1, gained, lost, n - gained - lost - 1)
    interval = paired.paired_binary_difference(*pairs)
    for bound, level in ((interval.low, 0.025), (interval.high, 0.975)):
        if -1 < bound < 0:
            inside, outside = (
                paired.binary_noninferiority_p(*pairs, margin=-bound + step)
                for step in (-1e-6, 1e-6)
            )
            assert outside < level < inside


def scores(n: int, spread: float, seed: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """F1-like scores of n items, and the candidate's."""
    rng = np.random.default_rng(seed)
    base = rng.beta(2, 2, n)
    return base, base - 0.01 + spread * rng.standard_exponential(n)


@pytest.mark.parametrize("n", [3, 12, 40, 300])
def test_the_mean_p_and_its_interval_decide_alike(n):
    pairs = scores(n, 0.02)
    moved = (pairs[0], pairs[1] - 1.0)  # brings both bounds below 0, where a margin can lie
    interval = paired_mean_difference(*moved, seed=5)
    low, high = interval.low, interval.high
    for bound, level in ((low, 0.025), (high, 0.975)):
        inside, outside = (
            mean_noninferiority_p(*moved, margin=-bound + step, seed=5) for step in (-1e-7, 1e-7)
        )
        assert outside < level < inside


@pytest.mark.parametrize("documents", [5, 40])
def test_the_loss_p_and_its_interval_decide_alike(documents):
    rng = np.random.default_rng(6)
    words = rng.integers(60, 400, documents).astype(float)
    base = -words * rng.normal(3.6, 0.4, documents)
    candidate = base - words * rng.gamma(2, 0.02, documents)
    interval = paired_loss_change(base, candidate, words, seed=8)
    for bound, level in ((interval.low, 0.975), (interval.high, 0.025)):
        below, above = (
            loss_noninferiority_p(base, candidate, words, bound + step, seed=8)
            for step in (-1e-7, 1e-7)
        )
        assert above < level < below


def test_the_mean_p_agrees_with_the_t_test():
    rng = np.random.default_rng(9)
    base = rng.normal(50, 8, 400)
    candidate = base + rng.normal(-0.1, 1, 400)
    for margin in (0.1, 0.15, 0.2, 0.25):
        _, expected, _ = DescrStatsW(candidate - base).ttest_mean(-margin, alternative="larger")
        assert mean_noninferiority_p(base, candidate, margin, seed=1) == pytest.approx(
            expected, abs=0.015
        )


def test_without_spread_the_p_is_not_certain():
    """The betting bound for scores; the sign test where nothing bounds a loss;
    no evidence where n is not known.
    """
    for change, score, sign in ((0.0, 0.55, 0.5**3), (-0.25, 1.0, 0.5), (-0.5, 0.3, 1 - 0.5**3)):
        base = np.array([0.5, 0.75, 1.0])
        assert mean_noninferiority_p(base, base + change, margin=0.25, seed=0) == pytest.approx(
            score, abs=0.05
        )
        words = np.array([64.0, 128.0, 256.0])
        loglik = -3 * words
        assert loss_noninferiority_p(loglik, loglik + change * words, words, 0.25, seed=0) == sign
        assert paired.average_noninferiority_p(Interval(change, change, change), margin=0.25) == 0.5


@pytest.mark.parametrize("n", [4, 25, 200])
def test_the_bootstrap_bounds_are_scipys_at_the_expanded_level(n):
    rng = np.random.default_rng(n)
    top, bottom = rng.gamma(1, 1, n), rng.uniform(1, 5, n)
    z = math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1)
    expected = scipy.stats.bootstrap(
        (top, bottom), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
        method="BCa",
        confidence_level=1 - 2 * scipy.stats.norm.sf(z), n_resamples=bootstrap.RESAMPLES, batch=250,
        rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    found = paired.ratio_of_sums(top, bottom, seed=3)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_bounds_and_p_values_of_the_bootstrap_are_inverse():
    rng = np.random.default_rng(0)
    resamples = RatioBootstrap.of(rng.gamma(1, 1, 30), rng.uniform(1, 5, 30), seed=0)
    for level in (0.001, 0.0125, 0.025, 0.5, 0.9, 0.975):
        assert resamples.p_at_most(resamples.bound(level)) == pytest.approx(level, rel=1e-6)
    assert resamples.p_at_most(-1.0) == pytest.approx(1 / 100_000)
    assert resamples.p_at_most(99.0) == pytest.approx(1 - 1 / 100_000)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (2, 3), (12, 30), (40, 150)])
def test_the_retention_p_is_that_of_the_change_where_the_base_is_known_exactly(gained, lost):
    """With all items right the allowed drop is a constant:
    the test is the score test of the change, a little wider.
    """
    n, retained = 600, 0.9
    pairs = (
        table(n - lost - gained, 0, lost, 0)
        if not gained
        else table(n - lost - gained, gained, lost, 0)
    )
    allowed = (1 - retained) * np.mean(pairs[0])
    plain = paired.binary_noninferiority_p(*pairs, margin=allowed)
    found = paired.binary_retention_p(*pairs, retained, chance=0.0)
    assert abs(found - 0.5) <= abs(plain - 0.5) + 1e-9
    assert (found <= 0.025) == (plain <= 0.02) and (found >= 0.975) == (plain >= 0.98)


def test_retention_counts_what_lies_above_guessing():
    pairs = table(both=60, gained=4, lost=8, neither=28)
    scores = [paired.binary_retention_p(*pairs, 0.8, chance) for chance in (0.0, 0.25, 0.5)]
    assert scores == sorted(scores) and scores[0] < 0.05 < scores[2]
    # half of the base's score above 0 is a loss of 34 points of 100, far from 4
    assert paired.binary_retention_p(*pairs, 0.5, 0.0) < 1e-6
    assert paired.binary_retention_p(*table(0, 0, 40, 60), 0.9, 0.0) > 0.999


def test_the_retention_p_of_a_mean_agrees_with_the_t_test():
    rng = np.random.default_rng(14)
    base = rng.uniform(2, 4, 300)
    candidate = base * rng.normal(0.96, 0.1, 300)
    tested = paired.PairedMean.of(base, candidate, seed=0)
    for retained in (0.94, 0.95, 0.96, 0.97):
        _, expected, _ = DescrStatsW(candidate - retained * base).ttest_mean(
            0, alternative="larger"
        )
        assert tested.retention_p(retained, 0.0) == pytest.approx(expected, abs=0.015)
    assert tested.base_low() == pytest.approx(DescrStatsW(base).tconfint_mean()[0], abs=0.01)


def test_the_p_of_an_average_and_its_interval_decide_alike():
    interval = Interval(-0.5, -1.2, 0.6)
    assert paired.average_noninferiority_p(interval, margin=1.2) == pytest.approx(0.025)
    assert paired.average_noninferiority_p(interval, margin=0.5) == pytest.approx(0.5)
    assert paired.average_noninferiority_p(Interval(-3.0, -4.0, -2.0), margin=2.0) == pytest.approx(
        0.975
    )


def test_the_average_of_one_task_is_the_task():
    pairs = table(200, 10, 14, 136)
    average = paired.mean_of_independent([paired.paired_binary_difference(*pairs)])
    ours, its = (
        paired.average_noninferiority_p(average, 0.05),
        paired.binary_noninferiority_p(*pairs, margin=0.05),
    )
    assert ours == pytest.approx(its, abs=0.005)


@pytest.mark.parametrize(("n", "discordant"), [(1000, 0.1), (5000, 0.2), (14000, 0.05)])
def test_the_smallest_detectable_drop_is_near_the_usual_formula(n, discordant):
    """Miettinen (1968), Biometrics 24:339-352; Connor (1987), Biometrics 43:207-211:
    n for a drop, at 80 % power.
    """
    drop = paired.smallest_detectable_drop(n, discordant)
    z = scipy.stats.norm.ppf(0.8)
    needed = ((paired.Z * math.sqrt(discordant) + z * math.sqrt(discordant - drop**2)) / drop) ** 2
    assert needed == pytest.approx(n, rel=0.03)


def test_no_drop_larger_than_the_changed_items_is_promised():
    found = paired.smallest_detectable_drop(360, 0.01)
    assert found == pytest.approx(paired.smallest_detectable_drop(360, 0.0))
    # 4 losses and no gain are a drop
    assert scipy.stats.binom.sf(3, 360, found) == pytest.approx(0.8, abs=1e-6)
    assert paired.smallest_detectable_drop(3, 0.5) == 1.0


def test_the_smallest_detectable_change_has_the_power_of_a_normal_test():
    change = paired.smallest_detectable_change(Interval(0.3, -0.7, 1.3))
    error = 1.0 / paired.Z
    assert scipy.stats.norm.cdf(change / error - paired.Z) == pytest.approx(0.8)


def assurance(items, n, z, critical=paired.Z):
    """The probability of a decision, by integrating over the true difference."""

    def at(u):
        decided = scipy.stats.norm.cdf(abs(u) * math.sqrt(items / n) - critical)
        return scipy.stats.norm.pdf(u - z) * decided

    return scipy.integrate.quad(at, z - 9, z + 9, points=[0.0, z], limit=200)[0]


def test_items_to_settle_decide_with_the_probability_stated_whatever_the_truth_is():
    interval = Interval(-0.5, -2.5, 1.5)  # 1.5 above the margin of 2
    items = paired.items_to_settle(400, interval, margin=2.0)
    z = 1.5 * paired.Z / 2.0
    assert assurance(items, 400, z) == pytest.approx(0.8, abs=0.002)
    if_the_estimate_were_true = 400 * ((paired.Z + paired.Z_POWER) / z) ** 2
    assert items > 1.5 * if_the_estimate_were_true
    worse = paired.items_to_settle(400, Interval(-3.0, -5.0, -1.0), margin=2.0)
    assert worse > items  # 1.0 beyond the margin is closer to it


@pytest.mark.parametrize(
    ("gained", "lost", "margin"), [(4, 9, 0.04), (0, 3, 0.03), (1, 18, 0.05), (2, 26, 0.08)]
)
def test_items_to_settle_of_answers_come_from_the_score_test(gained, lost, margin):
    n = 200
    items = paired.binary_items_to_settle(gained, lost, n, margin)
    change, changed = (gained - lost) / n, (gained + lost) / n
    spread = math.sqrt(changed - change**2)
    claimed = paired._score_deviation(gained, lost, n, -margin) / math.sqrt(n)
    z = abs(change + margin) * math.sqrt(n) / spread
    assert assurance(items, n, z, paired.Z * claimed / spread) == pytest.approx(0.8, abs=0.003)
    assert items > n and paired.binary_items_to_settle(gained, lost, n, margin, tests=4) > items


def test_items_to_settle_of_what_is_settled_or_would_take_too_many():
    assert paired.items_to_settle(400, Interval(0.0, -1.5, 1.5), margin=2.0) is None
    assert paired.items_to_settle(400, Interval(-4.0, -5.5, -2.5), margin=2.0) is None
    assert paired.items_to_settle(20_000, Interval(-2.0, -3.0, -1.0), margin=2.0) is None
    assert paired.items_to_settle(400, Interval(-1.0, -1.99, 0.01), margin=2.0, tests=5) > 400
    assert paired.binary_items_to_settle(5, 5, 4000, margin=0.02) is None
    assert paired.binary_items_to_settle(0, 8, 400, margin=0.02) > 400  # exactly on the margin
    assert paired.binary_items_to_settle(0, 0, 20, margin=0.04) > 20  # no answer changed


def test_holm_gives_the_textbook_example():
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == []


def test_holm_agrees_with_statsmodels():
    rng = np.random.default_rng(11)
    for size in (1, 2, 7, 57):
        values = rng.uniform(0, 1, size) ** 3
        assert paired.holm(values) == pytest.approx(
            multipletests(values, method="holm")[1].tolist()
        )


def test_the_speedup_agrees_with_welchs_interval():
    base, candidate = [101.0, 98.5, 100.2], [149.0, 155.5, 151.0, 147.2]
    ratio, bounds = paired.geometric_ratio(base, candidate)
    means = CompareMeans(DescrStatsW(np.log(candidate)), DescrStatsW(np.log(base)))
    expected = np.exp(means.tconfint_diff(usevar="unequal"))
    assert ratio == pytest.approx(scipy.stats.gmean(candidate) / scipy.stats.gmean(base))
    assert bounds == pytest.approx(tuple(expected))


def test_the_speedup_of_single_or_equal_repeats():
    assert paired.geometric_ratio([100.0], [150.0, 152.0]) == (
        pytest.approx(math.sqrt(1.5 * 1.52)),
        None,
    )
    ratio, bounds = paired.geometric_ratio([100.0, 100.0], [150.0, 150.0])
    assert bounds == (ratio, ratio) and ratio == pytest.approx(1.5)


PAIRED = [
    paired.paired_binary_difference,
    lambda a, b: paired_mean_difference(a, b, seed=0),
    lambda a, b: paired_ratio_change(a, b, np.ones(len(a)), seed=0),
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
        (lambda: paired.paired_binary_difference([0, 0.5], [0, 1]), "0 or 1"),
        (lambda: paired_mean_difference([0.5], [0.6], seed=0), "at least 2"),
        (
            lambda: paired_ratio_change([-1, -2], [-1, -2], [3, 0], seed=0),
            "size is not above 0",
        ),
        (
            lambda: paired_ratio_change([-1, -2], [-1, -2], [3, math.nan], seed=0),
            "NaN",
        ),
        (lambda: paired_ratio_change([-1, 2], [-1, -2], [3, 4], seed=0), "above 0"),
        (lambda: paired.wilson_interval(5, 4), "5 successes of 4"),
        (lambda: paired.wilson_interval(0, 0), "0 successes of 0"),
        (lambda: paired.share_at_most(3, 2), "3 of 2"),
        (lambda: paired.binary_retention_p([0, 1], [0, 1], 1.0, 0.0), "share to retain"),
        (lambda: paired.mean_of_independent([]), "no intervals"),
        (lambda: paired.mcnemar_p([0, 0.5], [0, 1]), "0 or 1"),
        (lambda: paired.binary_noninferiority_p([0, 1], [0, 1], margin=0), "between 0 and 1"),
        (lambda: paired.binary_noninferiority_p([0, 1], [0, 1], margin=2), "between 0 and 1"),
        (
            lambda: mean_noninferiority_p([0.1, 0.2], [0.1, 0.3], margin=-1, seed=0),
            "margin must be above 0",
        ),
        (
            lambda: loss_noninferiority_p([-1, -2], [-1, -2], [3, 4], 0, seed=0),
            "margin must be above 0",
        ),
        (
            lambda: loss_noninferiority_p([-1, 2], [-1, -2], [3, 4], 0.1, seed=0),
            "log-likelihood is above 0",
        ),
        (
            lambda: paired.average_noninferiority_p(Interval(0, -1, 1), math.nan),
            "margin must be above 0",
        ),
        (lambda: paired.smallest_detectable_drop(0, 0.1), "n = 0"),
        (lambda: paired.smallest_detectable_drop(10, 1.1), "a share of 1.1"),
        (lambda: paired.items_to_settle(0, Interval(0, -1, 1), 1), "n = 0"),
        (lambda: paired.items_to_settle(9, Interval(0, -1, 1), 1, tests=0), "0 tests"),
        (lambda: paired.holm([0.1, 1.2]), r"in \[0, 1\]"),
        (lambda: paired.holm([math.nan]), r"in \[0, 1\]"),
        (lambda: paired.geometric_ratio([], [1.0]), "above 0"),
        (lambda: paired.geometric_ratio([1.0], [0.0]), "above 0"),
        (lambda: paired.ratio_of_sums([1, 2], [0, 1], seed=0), "denominator is not above 0"),
    ],
)
def test_impossible_values_are_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
