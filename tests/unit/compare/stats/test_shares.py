"""Intervals of shares and quantiles of tokens hold where the tokens of a document are alike."""

import numpy as np
import pytest
from scipy.stats import binomtest

from model_serve_flow.compare.stats.shares import quantile_over_documents, share_over_documents

DRAWS, TOKENS = 250, 100


def test_the_share_counts_every_token_once():
    found = share_over_documents([np.array([True, False]), np.ones(8, bool), np.zeros(10, bool)])
    assert found.difference == pytest.approx(9 / 20)
    assert 0 < found.low < found.difference < found.high < 1


def test_independent_tokens_have_about_wilsons_interval():
    hits = np.random.default_rng(1).random((400, 10)) < 0.9
    found, wilson = (
        share_over_documents(list(hits)),
        binomtest(int(hits.sum()), hits.size).proportion_ci(method="wilson"),
    )
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=0.002)


@pytest.mark.parametrize("hit", [True, False])
def test_no_exception_is_not_certainty(hit):
    found = share_over_documents([np.full(50, hit)] * 30)
    assert found.difference == float(hit)
    assert found.high - found.low == pytest.approx(1 - 0.025 ** (1 / 30))


@pytest.mark.parametrize(("documents", "least"), [(16, 0.91), (64, 0.93)])
def test_the_interval_of_an_agreement_covers_the_truth_where_documents_differ(documents, least):
    """Agreement of 95 % that varies between documents; tokens taken one by one cover much less."""
    rng = np.random.default_rng([2, documents])
    levels = rng.beta(19, 1, (DRAWS, documents, 1))
    hits = rng.random((DRAWS, documents, TOKENS)) < levels
    held, alone = [], []
    for one in hits:
        found = share_over_documents(list(one))
        half = 1.96 * np.sqrt(one.mean() * (1 - one.mean()) / one.size)
        held.append(found.low <= 0.95 <= found.high)
        alone.append(abs(one.mean() - 0.95) <= half)
    assert np.mean(held) >= least > 0.8 > np.mean(alone)


@pytest.mark.parametrize(("documents", "least"), [(16, 0.87), (64, 0.87)])
def test_the_interval_of_the_99th_percentile_covers_the_truth_where_documents_differ(
    documents, least
):
    """Levels that differ by a factor of e^0.5 between documents:
    the interval is somewhat too narrow.
    """
    rng = np.random.default_rng([3, documents])

    def values(count):
        return rng.lognormal(0, 0.5, (count, 1)) * rng.exponential(size=(count, TOKENS))

    true = np.quantile(values(20_000), 0.99)
    found = [quantile_over_documents(list(values(documents)), 0.99) for _ in range(DRAWS)]
    assert np.mean([one.low <= true <= one.high for one in found]) >= least
    assert all(one.low <= one.difference <= one.high for one in found)


def test_equal_values_have_a_quantile_and_no_spread():
    found = quantile_over_documents([np.zeros(40)] * 12, 0.99)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
