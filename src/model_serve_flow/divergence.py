"""How far two next-token distributions lie apart, from the likeliest tokens of each. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_serve_flow.statistics import Interval, ratio_of_sums

ROUNDING = 1e-3  # by which the probabilities of float16 or bfloat16 logits may exceed 1 in all
SMALLEST = 1e-12  # a bucket that rounding left empty or below 0


def kl_lower_bound(
    base_ids: ArrayLike, base_logprobs: ArrayLike, candidate_ids: ArrayLike, candidate_logprobs: ArrayLike
) -> NDArray:
    """Kullback-Leibler divergence base -> candidate of each token's distribution, as far as the likeliest tokens tell.

    Tokens known on both sides are buckets of their own, everything else is one bucket. Merging outcomes never increases
    a divergence (by the log-sum inequality; Cover and Thomas, Elements of Information Theory, section 2.7), so the
    divergence of the buckets is a lower bound of that of the whole vocabularies.

    Args:
        base_ids, candidate_ids: [tokens, k] token ids, each once in its row.
        base_logprobs, candidate_logprobs: [tokens, k] their natural log-probabilities.

    Returns:
        [tokens] nats, at least 0.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a token twice in a row, or rows that are no probabilities.
    """
    base_ids, base = _top(base_ids, base_logprobs)
    candidate_ids, candidate = _top(candidate_ids, candidate_logprobs)
    if len(base) != len(candidate):
        raise ValueError(f"base has {len(base)} tokens and candidate {len(candidate)}")
    same = base_ids[:, :, None] == candidate_ids[:, None, :]
    known = same.any(axis=2)
    p = np.where(known, np.exp(base), 0.0)
    q_log = np.sum(same * candidate[:, None, :], axis=2)
    q = np.where(known, np.exp(q_log), 0.0)
    shared = np.sum(p * np.where(known, base - q_log, 0.0), axis=1)
    p_rest, q_rest = (np.maximum(1 - side.sum(axis=1), SMALLEST) for side in (p, q))
    return np.maximum(shared + p_rest * np.log(p_rest / q_rest), 0.0)


def mean_over_documents(values: Sequence[NDArray], seed: int) -> Interval:
    """Mean over all tokens with a 95 % interval by BCa bootstrap over documents, whose tokens are not independent.

    Args:
        values: one vector per document, a value per token.
        seed: of the resampling.

    Raises:
        ValueError: fewer than two documents, one without tokens, NaN or infinity.
    """
    return ratio_of_sums([float(np.sum(v)) for v in values], [np.size(v) for v in values], seed)


def _top(ids: ArrayLike, logprobs: ArrayLike) -> tuple[NDArray, NDArray]:
    ids, logprobs = np.asarray(ids), np.asarray(logprobs, dtype=float)
    if ids.ndim != 2 or ids.shape != logprobs.shape:
        raise ValueError(f"ids and log-probabilities must be [tokens, k] alike, got {ids.shape} and {logprobs.shape}")
    if not np.isfinite(logprobs).all():
        raise ValueError("a log-probability is NaN or infinite")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise ValueError("a token occurs twice among the likeliest of one place")
    if (np.exp(logprobs).sum(axis=1) > 1 + ROUNDING).any():
        raise ValueError("the probabilities of one place add up to more than 1")
    return ids, logprobs
