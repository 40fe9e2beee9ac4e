"""The divergence against whole distributions, published values, and rows that cannot be right."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from model_serve_flow.compare.stats.divergence import SMALLEST, kl_lower_bound, mean_over_documents


def top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of the k likeliest tokens of each row."""
    logprobs = scipy.special.log_softmax(logits, axis=1)
    ids = np.argsort(-logprobs, axis=1)[:, :k]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


def models(
    vocabulary: int = 500, tokens: int = 60, noise: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a base, and of a candidate that is slightly off."""
    rng = np.random.default_rng(12)
    base = 3 * rng.normal(size=(tokens, vocabulary))
    return base, base + noise * rng.normal(size=base.shape)


def whole(base: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    return scipy.stats.entropy(
        scipy.special.softmax(base, axis=1), scipy.special.softmax(candidate, axis=1), axis=1
    )


def test_two_tokens_give_the_published_divergence():
    """Cover and Thomas, Elements of Information Theory, example 2.3.1: r = 1/2, s = 1/4,
    in bits.
    """
    fair, loaded = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
    ids = [[0, 1]]
    assert kl_lower_bound(ids, fair, ids, loaded) / math.log(2) == pytest.approx([0.2075], abs=5e-5)
    assert kl_lower_bound(ids, loaded, ids, fair) / math.log(2) == pytest.approx([0.1887], abs=5e-5)


def test_with_the_whole_vocabulary_it_is_the_divergence():
    base, candidate = models(vocabulary=20)
    assert kl_lower_bound(*top(base, 20), *top(candidate, 20)) == pytest.approx(
        whole(base, candidate), abs=1e-9
    )


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0])
def test_fewer_tokens_never_give_more(noise):
    base, candidate = models(noise=noise)
    exact = whole(base, candidate)
    found = {k: kl_lower_bound(*top(base, k), *top(candidate, k)) for k in (1, 5, 20, 499)}
    for bound in found.values():
        assert (bound >= 0).all() and (bound <= exact + SMALLEST).all()
    assert found[20].mean() > 0.3 * exact.mean()
    assert found[1].mean() < found[5].mean() < found[20].mean()


def test_tokens_known_on_one_side_only_are_capped_by_the_last_of_the_other():
    """Known on both sides: 7.

    The candidate gives 3 at most 0.2, the base gives 4 at most what is left, 0.2.
    """
    found = kl_lower_bound([[7, 3]], np.log([[0.5, 0.3]]), [[4, 7]], np.log([[0.6, 0.2]]))
    assert found == pytest.approx(
        [0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)]
    )


def test_nothing_in_common_tells_much():
    """The candidate has 0.1 left for 1 and 2, the base 0.1 for 3 and 4."""
    found = kl_lower_bound([[1, 2]], np.log([[0.6, 0.3]]), [[3, 4]], np.log([[0.6, 0.3]]))
    assert found == pytest.approx([0.9 * math.log(0.9 / 0.1) + 0.1 * math.log(0.1 / 0.9)])


def test_the_order_within_a_row_does_not_matter():
    base, candidate = models()
    ids, logprobs = top(candidate, 20)
    turned = kl_lower_bound(*top(base, 20), ids[:, ::-1], logprobs[:, ::-1])
    assert turned == pytest.approx(kl_lower_bound(*top(base, 20), ids, logprobs))


def test_equal_models_do_not_diverge():
    base, _ = models()
    assert kl_lower_bound(*top(base, 20), *top(base, 20)).max() == 0


def test_rounded_probabilities_of_one_stay_finite():
    """A server sends float32: a certain token's probability may be exactly 1,
    and its neighbour's not.
    """
    sure, almost = np.float32([[0.0, -20.0]]), np.float32([[-1e-7, -16.0]])
    found = kl_lower_bound([[1, 2]], sure, [[1, 2]], almost)
    assert np.isfinite(found).all() and 0 <= found[0] < 1e-5


@pytest.mark.parametrize(
    ("ids", "logprobs", "reason"),
    [
        ([[1, 2]], [[-1.0]], "alike"),
        ([1, 2], [-1.0, -2.0], "alike"),
        ([[1, 1]], [[-1.0, -2.0]], "twice"),
        ([[1, 2]], [[-1.0, math.nan]], "NaN or infinite"),
        ([[1, 2]], [[-0.1, -0.2]], "more than 1"),
        ([[1, 2], [1, 2]], [[-1.0, -2.0], [-1.0, -2.0]], "base has 2 tokens and candidate 1"),
    ],
)
def test_impossible_rows_are_refused(ids, logprobs, reason):
    with pytest.raises(ValueError, match=reason):
        kl_lower_bound(ids, logprobs, [[1, 2]], [[-1.0, -2.0]])


def test_the_mean_counts_every_token_once():
    found = mean_over_documents([np.array([0.1, 0.3]), np.full(8, 0.5)], seed=0)
    assert found.difference == pytest.approx(0.44)
    assert 0 <= found.low <= found.difference <= found.high


def test_tokens_of_a_document_are_not_taken_as_independent():
    """The level differs between documents, not within:
    300 tokens each are no more than one value each.
    """
    levels = np.random.default_rng(13).gamma(4, 0.01, 20)
    few = mean_over_documents([np.full(3, level) for level in levels], seed=0)
    many = mean_over_documents([np.full(300, level) for level in levels], seed=0)
    assert (many.low, many.high) == (pytest.approx(few.low), pytest.approx(few.high))
    half = scipy.stats.t.ppf(0.975, 19) * levels.std(ddof=1) / math.sqrt(20)
    assert few.high - few.low == pytest.approx(2 * half, rel=0.2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([np.ones(5)], "at least 2"),
        ([np.ones(5), np.array([])], "denominator is not above 0"),
        ([np.ones(5), np.array([math.nan])], "NaN"),
    ],
)
def test_documents_that_cannot_be_averaged_are_refused(values, reason):
    with pytest.raises(ValueError, match=reason):
        mean_over_documents(values, seed=0)
