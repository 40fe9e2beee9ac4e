"""Chooses the next token and computes its log probability."""

import numpy as np
import torch
from torch import Tensor

from serving_from_scratch.core.request import SamplingParameters, TokenLogprob


def choose(logits: Tensor, sampling: SamplingParameters, seed: int, position: int) -> int:
    """Chooses the token for a position of a text.

    The random number depends only on the request's seed and the position. So the same seed gives
    the same text in any batch, after a preemption and after a restart.

    Args:
        logits: one number per token of the vocabulary.
        sampling: temperature, top_k, top_p.
        seed: of the request.
        position: of the token in its text.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    cumulated = distribution(logits, sampling).double().cumsum(0)
    number = np.random.default_rng((seed, position)).random()
    place = torch.searchsorted(cumulated, number * cumulated[-1], right=True)
    return int(place)


def distribution(logits: Tensor, sampling: SamplingParameters) -> Tensor:
    """Computes the probabilities from which a token is drawn; excluded tokens have 0."""
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return probabilities
    likeliest, ids = probabilities.sort(descending=True, stable=True)
    if sampling.top_k:
        likeliest[sampling.top_k :] = 0
    before = likeliest.cumsum(0) - likeliest
    likeliest[before >= sampling.top_p * likeliest.sum()] = 0
    kept = torch.zeros_like(probabilities).scatter_(0, ids, likeliest)
    return kept / kept.sum()


def logprob(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """Computes a token's log probability and the likeliest tokens, from the unscaled logits."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    values, ids = logprobs.topk(alternatives)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)
