"""Computes the smallest divergence that the likeliest tokens of two distributions allow. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FURTHEST = 28.0  # largest |log ratio| searched; rounded probabilities cannot show e^28
HALVINGS = 44  # of the searched range, so that log ratios are found to 3e-12


@dataclass(frozen=True)
class OneSided:
    """The tokens that are known on one side only, for T pairs of distributions p and q.

    Attributes:
        p: [T, k] probabilities of tokens whose q is not known; 0 where a column is not used.
        q: [T, k] probabilities of tokens whose p is not known; 0 where a column is not used.
        p_rest, q_rest: [T] 1 minus the probability of the tokens known on this side, above 0.
        p_cap, q_cap: [T] the highest probability of a token that is not among the k likeliest.
    """

    p: NDArray
    q: NDArray
    p_rest: NDArray
    q_rest: NDArray
    p_cap: NDArray
    q_cap: NDArray

    def smallest(self) -> NDArray:
        """Finds the least sum of p log(p/q) over all tokens that are not known on both sides.

        Not known are q of the tokens in `p`, p of the tokens in `q`, and all other tokens (the
        tail). The sum is convex in these values. At its least, p/q is one ratio r for the tail and
        for every token that is not at its cap: q = min(p/r, q_cap) and p = min(r q, p_cap). The
        tail gets what is left over. Its own ratio must be r, which is a monotone equation in r. If
        nothing is left for the tail, each side has its own ratio, at which its tokens use up the
        rest.

        Returns:
            [T] nats. A value can be below 0, because it is only a part of a divergence.
        """
        up = _rising(lambda r: self.q_rest - self._q(r).sum(axis=1) < 0, len(self.p))
        down = _rising(lambda r: self.p_rest - self._p(r).sum(axis=1) > 0, len(self.p))
        ratio = _rising(lambda r: self._p_tail(r) > r * self._q_tail(r), len(self.p))
        own_q, own_p = np.maximum(ratio, up), np.minimum(ratio, down)
        unknown_q, unknown_p = self._q(own_q), self._p(own_p)
        tail = np.maximum(self.p_rest - unknown_p.sum(axis=1), 0.0) * np.log(ratio)
        return _cross(self.p, unknown_q) + _cross(unknown_p, self.q) + tail

    def _q(self, ratio: NDArray) -> NDArray:
        return np.minimum(self.p / ratio[:, None], self.q_cap[:, None])

    def _p(self, ratio: NDArray) -> NDArray:
        return np.minimum(self.q * ratio[:, None], self.p_cap[:, None])

    def _p_tail(self, ratio: NDArray) -> NDArray:
        return self.p_rest - self._p(ratio).sum(axis=1)

    def _q_tail(self, ratio: NDArray) -> NDArray:
        return self.q_rest - self._q(ratio).sum(axis=1)


def _rising(too_small: Callable[[NDArray], NDArray], count: int) -> NDArray:
    """Finds by bisection of the logarithm the ratio up to which `too_small` is true."""
    low, high = np.full(count, -FURTHEST), np.full(count, FURTHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        small = too_small(np.exp(middle))
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return np.exp(high)


def _cross(p: NDArray, q: NDArray) -> NDArray:
    """Sums p log(p/q) over the columns in which both are above 0."""
    used = (p > 0) & (q > 0)
    one = np.where(used, p, 1.0)
    return np.sum(one * np.log(one / np.where(used, q, 1.0)) * used, axis=1)
