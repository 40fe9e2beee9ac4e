"""Measures how far two next-token distributions are apart, from their likeliest tokens. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_serve_flow.compare.stats.capped import OneSided
from model_serve_flow.compare.stats.paired import Interval, ratio_of_sums

ROUNDING = 1e-3  # the sum of probabilities of float16 or bfloat16 logits may exceed 1 by this
SMALLEST = 1e-6  # rounded log-probabilities cannot tell this probability from 0


@dataclass(frozen=True)
class OwnTokens:
    """The text's own token at each of T places; its probability is known on both sides.

    Attributes:
        ids: [T] token ids.
        base, candidate: [T] their natural log-probabilities.
    """

    ids: NDArray
    base: NDArray
    candidate: NDArray


def kl_lower_bound(
    base_ids: ArrayLike,
    base_logprobs: ArrayLike,
    candidate_ids: ArrayLike,
    candidate_logprobs: ArrayLike,
    own: OwnTokens | None = None,
) -> NDArray:
    """Bounds the Kullback-Leibler divergence base -> candidate of each token from below.

    The bound is the smallest divergence of all pairs of distributions that have these likeliest
    tokens. Tokens known on both sides count as they are. A token that only one side names has on
    the other side at most the probability of that side's k-th token (the cap). All other tokens are
    one bucket, since merging outcomes never raises a divergence (log-sum inequality; Cover and
    Thomas, Elements of Information Theory, section 2.7). See `OneSided.smallest`.

    Args:
        base_ids, candidate_ids: [tokens, k] token ids, each once in its row.
        base_logprobs, candidate_logprobs: [tokens, k] their natural log-probabilities.
        own: the text's own tokens, which need not be among the likeliest.

    Returns:
        [tokens] nats, at least 0.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a token twice in a row, or rows that
            are no probabilities.
    """
    base_ids, base = _top(base_ids, base_logprobs)
    candidate_ids, candidate = _top(candidate_ids, candidate_logprobs)
    if len(base) != len(candidate):
        raise ValueError(f"base has {len(base)} tokens and candidate {len(candidate)}")
    same = base_ids[:, :, None] == candidate_ids[:, None, :]
    known = [same.any(axis=2), same.any(axis=1)]
    q_log = np.sum(same * candidate[:, None, :], axis=2)
    found = np.sum(np.where(known[0], np.exp(base) * (base - q_log), 0.0), axis=1)
    spent = [np.exp(side).sum(axis=1) for side in (base, candidate)]
    if own is not None:
        found, spent, known = _with_own(own, (base_ids, candidate_ids), found, spent, known)
    rests = [np.maximum(1 - mass, SMALLEST) for mass in spent]
    caps = [np.exp(side.min(axis=1)) for side in (base, candidate)]
    open_ = [
        np.where(both, 0.0, np.exp(side))
        for both, side in zip(known, (base, candidate), strict=True)
    ]
    return np.maximum(found + OneSided(*open_, *rests, *caps).smallest(), 0.0)


def _with_own(
    own: OwnTokens,
    ids: tuple[NDArray, NDArray],
    found: NDArray,
    spent: list[NDArray],
    known: list[NDArray],
) -> tuple[NDArray, list[NDArray], list[NDArray]]:
    """Adds the text's own tokens to the known tokens: their divergence, probability and places."""
    logprobs = (own.base, own.candidate)
    if not all(np.isfinite(side).all() and (side <= ROUNDING).all() for side in logprobs):
        raise ValueError("a log-probability of the text's own token is NaN, infinite or above 0")
    places = [side == own.ids[:, None] for side in ids]
    named = [place.any(axis=1) for place in places]
    new = np.where(named[0] & named[1], 0.0, np.exp(own.base) * (own.base - own.candidate))
    spent = [
        mass + np.where(among, 0.0, np.exp(logprob))
        for mass, among, logprob in zip(spent, named, logprobs, strict=True)
    ]
    return found + new, spent, [one | place for one, place in zip(known, places, strict=True)]


def mean_over_documents(values: Sequence[NDArray], seed: int) -> Interval:
    """Computes the mean over all tokens, with a 95 % interval over documents.

    The interval is a BCa bootstrap over documents, because the tokens of one document are not
    independent.

    Args:
        values: one vector per document, a value per token.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two documents, a document without tokens, NaN or infinity.
    """
    return ratio_of_sums([float(np.sum(v)) for v in values], [np.size(v) for v in values], seed)


def _top(ids: ArrayLike, logprobs: ArrayLike) -> tuple[NDArray, NDArray]:
    ids, logprobs = np.asarray(ids), np.asarray(logprobs, dtype=float)
    if ids.ndim != 2 or ids.shape != logprobs.shape:
        raise ValueError(
            f"ids and log-probabilities must be [tokens, k] alike, got {ids.shape} and "
            f"{logprobs.shape}"
        )
    if not np.isfinite(logprobs).all():
        raise ValueError("a log-probability is NaN or infinite")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise ValueError("a token occurs twice among the likeliest of one place")
    if (np.exp(logprobs).sum(axis=1) > 1 + ROUNDING).any():
        raise ValueError("the probabilities of one place add up to more than 1")
    return ids, logprobs
