"""Measures how far the next-token distributions of a candidate moved from those of the base.

Also measures the noise floor: how much the engine changes the results of the base by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_serve_flow.compare.comparability import REMEASURE, BaseResults
from model_serve_flow.compare.pairs import Pairs, count_flips, only, pair
from model_serve_flow.compare.stats import divergence, paired
from model_serve_flow.compare.stats.shares import quantile_over_documents, share_over_documents
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.compared import Divergence, FlipRate, Flips, NoiseFloor
from model_serve_flow.flow.results.measured import (
    QUESTION,
    AccuracyResult,
    DistributionResult,
    TokenTops,
)


@dataclass(frozen=True)
class Shift:
    """How far the next-token distributions moved from base to other.

    Attributes:
        kl: KL divergence base -> other, in nats per token.
        agreement: share of tokens at which both models expect the same next token, from 0 to 1.
        agreement_ci95: 95 % interval of the agreement.
    """

    kl: Divergence
    agreement: float
    agreement_ci95: tuple[float, float]

    def fields(self) -> dict[str, Any]:
        """Returns the shift under the names that the results use."""
        return {"kl": self.kl, "top1_agreement": self.agreement, "top1_ci95": self.agreement_ci95}


def measure_shift(base: DistributionResult, other: DistributionResult, seed: int) -> Shift:
    """Measures how far the next-token distributions moved, with 95 % intervals over documents.

    Raises:
        FlowError: as `compare_tokens`, or fewer than two documents.
    """
    per_document, agreement = compare_tokens(base, other)
    with _refusing(other):
        mean = divergence.mean_over_documents(per_document, seed)
    p99 = quantile_over_documents(per_document, 0.99)
    found = Divergence(
        mean=mean.difference,
        p99=p99.difference,
        ci95=(mean.low, mean.high),
        p99_ci95=(p99.low, p99.high),
        k=base.k,
        tokens=sum(one.size for one in per_document),
    )
    same = share_over_documents(_same_first(base, other))
    return Shift(found, agreement, (same.low, same.high))


def compare_tokens(
    base: DistributionResult, other: DistributionResult
) -> tuple[list[NDArray], float]:
    """Computes the KL divergence of every token, and how often the likeliest tokens are the same.

    Returns:
        One vector per document, with the divergence base -> other in nats for every token; and the
        share of tokens at which both models have the same likeliest token, from 0 to 1.

    Raises:
        FlowError: the two results differ in documents, tokens or k, or their probabilities are
            impossible.
    """
    pairs = list(_documents(base, other))
    with _refusing(other):
        per_document = [
            divergence.kl_lower_bound(*_tops(one), *_tops(two), _own(one, two))
            for one, two in pairs
        ]
    return per_document, float(np.mean(np.concatenate(_same_first(base, other))))


def _same_first(base: DistributionResult, other: DistributionResult) -> list[NDArray]:
    """Tells for every token whether both models have the same likeliest next token.

    Returns:
        One vector of true and false per document.
    """
    return [
        np.array(
            [ours[0] == theirs[0] for ours, theirs in zip(one.top_ids, two.top_ids, strict=True)]
        )
        for one, two in zip(base.documents, other.documents, strict=True)
    ]


def _own(one: TokenTops, two: TokenTops) -> divergence.OwnTokens | None:
    """Returns the text's own tokens with their log-probabilities on both sides.

    Returns:
        None if a side did not record them.
    """
    if not (one.own_logprobs and two.own_logprobs):
        return None
    return divergence.OwnTokens(
        np.array(one.tokens[1:]), np.array(one.own_logprobs), np.array(two.own_logprobs)
    )


def noise_floor(base: BaseResults, seed: int) -> NoiseFloor | None:
    """Measures what changes when items of the base are measured again in other batches.

    Returns:
        None if the profile asks for no second measurement.

    Raises:
        FlowError: the second measurement has other items or tokens than the first, or fewer items
            than its protocol says.
    """
    if base.accuracy_again is None:
        return None
    shift = None
    if base.distribution is not None and base.distribution_again is not None:
        shift = measure_shift(base.distribution, base.distribution_again, seed)
    flips, items = {}, {}
    for task, pairs in pairs_of_second(base.accuracy, base.accuracy_again).items():
        if (right := pairs.right()) is not None:
            flips[task], items[task] = count_flips(*right), len(pairs.rows)
    rate = _flip_rate(flips, items, base.accuracy)
    return NoiseFloor(
        flips=flips,
        items=items,
        rate=rate,
        kl=None if shift is None else shift.kl,
        top1_agreement=None if shift is None else shift.agreement,
        top1_ci95=None if shift is None else shift.agreement_ci95,
    )


def pairs_of_second(first: AccuracyResult, second: AccuracyResult) -> dict[str, Pairs]:
    """Pairs the items of the base that were measured twice.

    Returns:
        Task -> pairs; tasks that were measured once are left out.

    Raises:
        FlowError: an item of the second measurement is missing in the first, or the second has
            fewer items than its protocol says.
    """
    found = {}
    for task, again in second.tasks.items():
        count = len({item.groups.get(QUESTION, item.id) for item in first.tasks[task].items})
        wanted = min(second.protocol.get("items_per_task", count), count)
        if again.n < wanted:
            raise FlowError(
                f"Task {task}: the second measurement of the base has {again.n} items, not "
                f"{wanted}.",
                REMEASURE,
            )
        found[task] = pair(task, only(first.tasks[task], again), again, "second measurement")
    return found


def _flip_rate(
    flips: dict[str, Flips], items: dict[str, int], first: AccuracyResult
) -> FlipRate | None:
    """Estimates the share of all items that would flip, with its 95 % interval.

    Each task's share of flips is weighted by the number of its items in the first measurement.
    """
    if not flips:
        return None
    counts = {task: one.total for task, one in flips.items()}
    intervals = [paired.wilson_interval(counts[task], items[task]) for task in flips]
    rate = paired.mean_of_independent(intervals, [first.tasks[task].n for task in flips])
    return FlipRate(value=rate.difference, ci95=(max(0.0, rate.low), min(1.0, rate.high)))


def _documents(
    base: DistributionResult, other: DistributionResult
) -> Iterator[tuple[TokenTops, TokenTops]]:
    """Yields each document of the base with the same document of the other model.

    Raises:
        FlowError: a document is missing, or was read as other tokens.
    """
    ours, theirs = ([document.id for document in result.documents] for result in (base, other))
    if ours != theirs or base.k != other.k:
        raise FlowError(
            f"The distributions of {other.model.name} are not of the base's documents: {len(ours)} "
            f"with the {base.k} likeliest tokens for base, {len(theirs)} with {other.k} for "
            f"{other.model.name}.",
            REMEASURE,
        )
    for one, two in zip(base.documents, other.documents, strict=True):
        if one.tokens != two.tokens:
            raise FlowError(
                f"Document {one.id} was read as other tokens by {other.model.name} than by base: "
                "the tokenizers differ.",
                REMEASURE,
            )
        yield one, two


@contextlib.contextmanager
def _refusing(other: DistributionResult) -> Iterator[None]:
    """Turns a ValueError of the arithmetic into a FlowError that names the model."""
    try:
        yield
    except ValueError as error:
        raise FlowError(
            f"The distributions of {other.model.name} cannot be compared: {error}.", REMEASURE
        ) from error


def _tops(document: TokenTops) -> tuple[NDArray, NDArray]:
    return np.array(document.top_ids), np.array(document.top_logprobs, dtype=float)
