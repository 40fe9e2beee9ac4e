"""The bound of a divergence knows what the k-th token caps,
and what the text's own token was given.
"""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from scipy.optimize import minimize

from model_serve_flow.compare.stats.divergence import OwnTokens, kl_lower_bound

VOCABULARY = 6_000


def top(logits, k=20):
    logprobs = scipy.special.log_softmax(logits, axis=1)
    ids = np.argsort(-logprobs, axis=1)[:, :k]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


def whole(base, candidate):
    sides = (scipy.special.softmax(side, axis=1) for side in (base, candidate))
    return scipy.stats.entropy(*sides, axis=1)


def merged(one, two):
    """The bound of former versions: everything that is not known on both sides is one bucket."""
    (ids, base), (others, candidate) = one, two
    same = ids[:, :, None] == others[:, None, :]
    known = same.any(axis=2)
    q = np.sum(same * np.exp(candidate)[:, None, :], axis=2)
    p = np.where(known, np.exp(base), 0.0)
    rest = [1 - side.sum(axis=1) for side in (p, q)]
    shared = np.sum(p * np.log(np.where(known, p / np.where(known, q, 1.0), 1.0)), axis=1)
    return shared + rest[0] * np.log(rest[0] / rest[1])


def drawn(tokens=40, seed=5):
    return 2.5 * np.random.default_rng(seed).standard_normal((tokens, VOCABULARY))


WRECKED = {
    "flat": lambda base: 0.01 * np.random.default_rng(7).standard_normal(base.shape),
    "sure of other tokens": lambda base: 0.9 * base,
}


@pytest.mark.parametrize("how", WRECKED)
def test_a_wrecked_model_does_not_look_close(how):
    """The base is sure of one token, of which the candidate knows nothing.

    The one bucket showed about nothing.
    """
    base = drawn()
    base[np.arange(40), np.arange(40)] = 20
    candidate = WRECKED[how](np.roll(base, VOCABULARY // 2, axis=1))
    true = whole(base, candidate).mean()
    assert true > 8
    assert merged(top(base), top(candidate)).mean() < 0.01 * true
    assert kl_lower_bound(*top(base), *top(candidate)).mean() > 0.6 * true


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_bound_lies_between_the_one_bucket_and_the_truth(noise, k):
    base = drawn()
    candidate = base + noise * np.random.default_rng(8).standard_normal(base.shape)
    sides = top(base, k), top(candidate, k)
    found, own = kl_lower_bound(*sides[0], *sides[1]), with_own(base, candidate, k)
    assert (merged(*sides) <= found + 1e-6).all()
    assert (found <= own + 1e-9).all() and (own <= whole(base, candidate) + 1e-6).all()


def with_own(base, candidate, k, seed=9):
    """The bound with the text's own token, drawn from the base."""
    p = scipy.special.softmax(base, axis=1)
    rng = np.random.default_rng(seed)
    ids = np.array([rng.choice(VOCABULARY, p=row) for row in p])
    logprobs = [
        scipy.special.log_softmax(side, axis=1)[np.arange(len(ids)), ids]
        for side in (base, candidate)
    ]
    return kl_lower_bound(*top(base, k), *top(candidate, k), OwnTokens(ids, *logprobs))


def test_the_texts_own_token_shows_what_the_likeliest_do_not():
    """Equal but for one token beyond the k likeliest, which the candidate forbids."""
    base = drawn(200)
    ids = np.argsort(-base, axis=1)[:, 30]
    candidate = base.copy()
    candidate[np.arange(200), ids] -= 12
    p = [scipy.special.log_softmax(side, axis=1)[np.arange(200), ids] for side in (base, candidate)]
    without = kl_lower_bound(*top(base), *top(candidate))
    found = kl_lower_bound(*top(base), *top(candidate), OwnTokens(ids, *p))
    assert without.max() < 1e-3 * found.mean()
    assert found == pytest.approx(whole(base, candidate), rel=0.05)


def cases():
    """Rows of few tokens: likeliest three of each side,
    by a generator that makes them overlap or not.
    """
    rng = np.random.default_rng(3)
    for _ in range(25):
        base, candidate = (
            scipy.special.log_softmax(2 * rng.standard_normal((1, 9)), axis=1) for _ in range(2)
        )
        yield top(base, 3), top(candidate, 3)


@pytest.mark.parametrize(("one", "two"), list(cases()))
def test_no_pair_of_distributions_with_these_tokens_diverges_less(one, two):
    """The least over all that is unknown, found by a general minimiser."""
    (a, (base,)), (b, (candidate,)) = ([ids[0].tolist(), side] for ids, side in (one, two))
    p, q = dict(zip(a, np.exp(base), strict=True)), dict(zip(b, np.exp(candidate), strict=True))
    only_p, only_q = [i for i in a if i not in q], [i for i in b if i not in p]
    caps, rest = (min(p.values()), min(q.values())), (1 - sum(p.values()), 1 - sum(q.values()))

    def divergence(unknown, tail):
        of_q, of_p = np.split(unknown, [len(only_p)])
        pairs = [(p[i], x) for i, x in zip(only_p, of_q, strict=True)]
        pairs += [(x, q[i]) for i, x in zip(only_q, of_p, strict=True)]
        pairs += [(p[i], q[i]) for i in a if i in q]
        pairs += [(rest[0] - of_p.sum(), rest[1] - of_q.sum())] if tail else []
        return sum(x * math.log(max(x, 1e-12) / max(y, 1e-12)) for x, y in pairs)

    bounds = [(1e-9, caps[1])] * len(only_p) + [(1e-9, caps[0])] * len(only_q)
    count = max(len(only_p), len(only_q), 1)
    start = [min(caps[1], rest[1]) / 2 / count] * len(only_p) + [
        min(caps[0], rest[0]) / 2 / count
    ] * len(only_q)
    spent = [
        (lambda x: rest[1] - x[: len(only_p)].sum()),
        (lambda x: rest[0] - x[len(only_p) :].sum()),
    ]
    searched = [
        minimize(divergence, start, (kind == "ineq",), bounds=bounds, method="SLSQP",
                 options={"ftol": 1e-12},
                 constraints=[{"type": kind, "fun": lambda x, one=one: one(x)} for one in spent])
        # with a tail, and with none, at whose edge the search would get stuck
        for kind in ("ineq", "eq")
    ]  # fmt: skip
    least = max(min(one.fun for one in searched if one.success), 0)
    (found,) = kl_lower_bound(*one, *two)
    assert found == pytest.approx(least, abs=1e-4)


def test_impossible_own_tokens_are_refused():
    row = ([[1, 2]], [[-1.0, -2.0]])
    for bad in (math.nan, -math.inf, 0.5):
        own = OwnTokens(np.array([3]), np.array([bad]), np.array([-3.0]))
        with pytest.raises(ValueError, match="the text's own token is NaN, infinite or above 0"):
            kl_lower_bound(*row, *row, own)
