"""Computes how probable the right choice is to a model, from lm-eval's log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from model_serve_flow.flow.results.measured import RIGHT_CHOICE


def right_choice_probability(sample: Mapping[str, Any]) -> float | None:
    """Computes the probability of the right choice among all choices.

    The probability is exp(l) of the right choice divided by the sum of exp(l) over all choices. l
    is the log-likelihood of the whole choice.

    Args:
        sample: one of lm-eval's samples.

    Returns:
        From 0 to 1. None if the model wrote the answer, if two choices are equal, or if the sample
        does not say which choice is right.
    """
    responses = sample["filtered_resps"]
    choices = all(
        isinstance(one, list | tuple) and not isinstance(one[0], str) for one in responses
    )
    if len(responses) < 2 or len(responses) != len(sample["arguments"]) or not choices:
        return None
    likelihoods = [float(one[0]) for one in responses]
    right = _right(sample, likelihoods)
    if right is None or not _agrees(sample.get("acc"), likelihoods, right):
        return None
    highest = max(likelihoods)
    weights = [math.exp(one - highest) for one in likelihoods]
    return weights[right] / math.fsum(weights)


def keep_whole(records: Sequence[dict[str, Any]]) -> None:
    """Removes the probability from all items of a task if one item lacks it."""
    if any(RIGHT_CHOICE not in record for record in records):
        for record in records:
            record.pop(RIGHT_CHOICE, None)


def _right(sample: Mapping[str, Any], likelihoods: Sequence[float]) -> int | None:
    """Returns the place of the right choice; None if the sample does not say.

    If the choices are inside the question (winogrande), the target does not name a choice. With two
    choices, lm-eval's own score tells which is right.
    """
    pairs, target = sample["arguments"], sample["target"]
    texts = [str(continuation).strip() for _, continuation in pairs]
    if len(set(texts)) == 1 and len(texts) == 2 and sample.get("acc") in (0, 1):
        best = likelihoods.index(max(likelihoods))
        return best if sample["acc"] == 1 else 1 - best
    if len(set(texts)) < len(texts):
        return None
    if isinstance(target, int) and 0 <= target < len(texts):
        return target
    named = target.strip() if isinstance(target, str) else None
    return texts.index(named) if named in texts else None


def _agrees(score: Any, likelihoods: Sequence[float], right: int) -> bool:
    """Checks that lm-eval counted this choice as right; a tie agrees with both scores."""
    highest = max(likelihoods)
    first = likelihoods[right] == highest
    if score == 1:
        return first
    return score != 0 or not first or likelihoods.count(highest) > 1
