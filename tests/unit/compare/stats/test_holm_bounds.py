"""Simultaneous bounds agree with Holm's decisions, and hold together as often as they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from model_serve_flow.compare.stats.holm_bounds import Claim, holm_bounds
from model_serve_flow.compare.stats.paired import ALPHA, holm


def normal(estimate, limit, error=1.0):
    """A claim on a figure whose estimate is normal."""
    p = float(norm.sf((estimate - limit) / error))
    return Claim(estimate, limit, p, lambda level: estimate - norm.isf(level) * error)


figures = st.tuples(st.floats(-8, 8), st.floats(-3, 3), st.floats(0.05, 3))


@settings(deadline=None)  # a busy machine
@given(st.lists(figures, min_size=1, max_size=6))
def test_a_bound_is_clear_of_its_limit_exactly_where_holm_shows_the_claim(family):
    claims = [normal(*one) for one in family]
    shown = [p <= ALPHA for p in holm([claim.p for claim in claims])]
    bounds = holm_bounds(claims)
    assert [bound >= claim.limit for bound, claim in zip(bounds, claims, strict=True)] == shown
    assert all(bound <= claim.estimate for bound, claim in zip(bounds, claims, strict=True))


@given(st.lists(st.tuples(figures, st.floats(0, 1)), min_size=1, max_size=6))
def test_also_where_the_decision_knows_more_than_the_bound(family):
    """A p-value that is larger than the bound's own, as that of retention can be."""
    claims = []
    for one, more in family:
        claim = normal(*one)
        claims.append(Claim(claim.estimate, claim.limit, max(claim.p, more), claim.bound))
    shown = [p <= ALPHA for p in holm([claim.p for claim in claims])]
    bounds = zip(holm_bounds(claims), claims, strict=True)
    assert [bound >= claim.limit for bound, claim in bounds] == shown


def test_one_claim_has_its_own_bound():
    (bound,) = holm_bounds([normal(2.5, 0.0)])
    assert bound == pytest.approx(2.5 - 1.959964)


def test_shown_claims_end_at_their_limits_while_others_are_open():
    """m = 3, two shown: the third has its bound at the whole 2.5 %."""
    bounds = holm_bounds([normal(5.0, 0.0), normal(1.0, 0.0), normal(4.0, 1.0)])
    assert bounds == pytest.approx([0.0, 1.0 - 1.959964, 1.0])
    everything = holm_bounds([normal(5.0, 0.0), normal(6.0, 0.0), normal(4.0, 1.0)])
    z = norm.isf(ALPHA / 3)
    assert everything == pytest.approx([5 - z, 6 - z, 4 - z])


@pytest.mark.parametrize(
    "truth", [(0, 0, 0, 0), (0, 2, 4, 4), (5, 5, 5, 0), (-1, 3, 0.5, 6), (4, 4, 4, 4)]
)
def test_all_bounds_hold_together(truth):
    """Limits of 0, normal estimates of error 1:
    in 2.5 % of 2,000 draws at most is any bound or claim false.
    """
    wrong = [
        any(
            bound > true or bound >= 0 >= true
            for bound, true in zip(bounds_of(row), truth, strict=True)
        )
        for row in np.random.default_rng(7).normal(truth, 1.0, (2000, len(truth)))
    ]
    assert np.mean(wrong) <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 2000)


def bounds_of(estimates):
    return holm_bounds([normal(one, 0.0) for one in estimates])
