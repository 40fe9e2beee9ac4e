"""How far the candidate's distributions moved from the base's, and how far the engine moves the base's by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_serve_flow import divergence, statistics
from model_serve_flow.comparability import REMEASURE, BaseResults
from model_serve_flow.errors import FlowError
from model_serve_flow.pairs import Pairs, count_flips, only, pair
from model_serve_flow.results import (
    AccuracyResult,
    DistributionResult,
    Divergence,
    FlipRate,
    Flips,
    NoiseFloor,
    TokenTops,
)


def measure_shift(base: DistributionResult, other: DistributionResult, seed: int) -> tuple[Divergence, float]:
    """KL divergence base -> other with its interval, and the share of tokens at which both expect the same next token.

    Raises:
        FlowError: as `compare_tokens`, or fewer than two documents.
    """
    per_document, agreement = compare_tokens(base, other)
    with _refusing(other):
        mean = divergence.mean_over_documents(per_document, seed)
    tokens = np.concatenate(per_document)
    found = Divergence(
        mean=mean.difference,
        p99=float(np.quantile(tokens, 0.99)),
        ci95=(mean.low, mean.high),
        k=base.k,
        tokens=tokens.size,
    )
    return found, agreement


def compare_tokens(base: DistributionResult, other: DistributionResult) -> tuple[list[NDArray], float]:
    """KL divergence base -> other of every token, and the share of tokens at which both expect the same next token.

    Returns:
        One vector per document, a value in nats per token; and the share, from 0 to 1.

    Raises:
        FlowError: the two are not of the same documents, tokens and k, or their probabilities are none.
    """
    pairs = list(_documents(base, other))
    with _refusing(other):
        per_document = [divergence.kl_lower_bound(*_tops(one), *_tops(two)) for one, two in pairs]
    same = [ours[0] == theirs[0] for one, two in pairs for ours, theirs in zip(one.top_ids, two.top_ids, strict=True)]
    return per_document, float(np.mean(same))


def noise_floor(base: BaseResults, seed: int) -> NoiseFloor | None:
    """What changes when items of the base are measured again in other batches; None if the profile does not ask for it.

    Raises:
        FlowError: the second measurement is not of the same items and tokens, or of fewer than it says.
    """
    if base.accuracy_again is None:
        return None
    kl, agreement = None, None
    if base.distribution is not None and base.distribution_again is not None:
        kl, agreement = measure_shift(base.distribution, base.distribution_again, seed)
    flips, items = {}, {}
    for task, pairs in pairs_of_second(base.accuracy, base.accuracy_again).items():
        if (right := pairs.right()) is not None:
            flips[task], items[task] = count_flips(*right), len(pairs.rows)
    rate = _flip_rate(flips, items, base.accuracy)
    return NoiseFloor(flips=flips, items=items, rate=rate, kl=kl, top1_agreement=agreement)


def pairs_of_second(first: AccuracyResult, second: AccuracyResult) -> dict[str, Pairs]:
    """Task -> the items that were measured twice, paired; tasks that were measured once are left out.

    Raises:
        FlowError: an item of the second measurement is not one of the first, or there are fewer than it says.
    """
    found = {}
    for task, again in second.tasks.items():
        wanted = min(second.protocol.get("items_per_task", first.tasks[task].n), first.tasks[task].n)
        if again.n < wanted:
            raise FlowError(
                f"Task {task}: the second measurement of the base has {again.n} items, not {wanted}.", REMEASURE
            )
        found[task] = pair(task, only(first.tasks[task], again), again, "second measurement")
    return found


def _flip_rate(flips: dict[str, Flips], items: dict[str, int], first: AccuracyResult) -> FlipRate | None:
    """The share of all items that would flip: each task's share, weighted by how many items it has."""
    if not flips:
        return None
    counts = {task: one.total for task, one in flips.items()}
    intervals = [statistics.wilson_interval(counts[task], items[task]) for task in flips]
    rate = statistics.mean_of_independent(intervals, [first.tasks[task].n for task in flips])
    return FlipRate(value=rate.difference, ci95=(max(0.0, rate.low), min(1.0, rate.high)))


def _documents(base: DistributionResult, other: DistributionResult) -> Iterator[tuple[TokenTops, TokenTops]]:
    """The same documents of both; FlowError if one is missing or was read as other tokens."""
    ours, theirs = ([document.id for document in result.documents] for result in (base, other))
    if ours != theirs or base.k != other.k:
        raise FlowError(
            f"The distributions of {other.model.name} are not of the base's documents: {len(ours)} with the {base.k} "
            f"likeliest tokens for base, {len(theirs)} with {other.k} for {other.model.name}.",
            REMEASURE,
        )
    for one, two in zip(base.documents, other.documents, strict=True):
        if one.tokens != two.tokens:
            raise FlowError(
                f"Document {one.id} was read as other tokens by {other.model.name} than by base: the tokenizers "
                "differ.",
                REMEASURE,
            )
        yield one, two


@contextlib.contextmanager
def _refusing(other: DistributionResult) -> Iterator[None]:
    """What the arithmetic cannot take is a fault of the file that is compared."""
    try:
        yield
    except ValueError as error:
        raise FlowError(f"The distributions of {other.model.name} cannot be compared: {error}.", REMEASURE) from error


def _tops(document: TokenTops) -> tuple[NDArray, NDArray]:
    return np.array(document.top_ids), np.array(document.top_logprobs, dtype=float)
