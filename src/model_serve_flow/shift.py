"""How far the candidate's distributions moved from the base's, and how far the engine moves the base's by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_serve_flow import divergence
from model_serve_flow.comparability import REMEASURE, BaseResults
from model_serve_flow.errors import FlowError
from model_serve_flow.pairs import count_flips, pair
from model_serve_flow.results import AccuracyResult, DistributionResult, Divergence, Flips, NoiseFloor, TokenTops


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
    """What changes when the base is measured again in other batches; None if the profile does not ask for it.

    Raises:
        FlowError: the second measurement is not of the same items and tokens.
    """
    if base.accuracy_again is None:
        return None
    kl, agreement = None, None
    if base.distribution is not None and base.distribution_again is not None:
        kl, agreement = measure_shift(base.distribution, base.distribution_again, seed)
    return NoiseFloor(flips=_flips(base.accuracy, base.accuracy_again), kl=kl, top1_agreement=agreement)


def _flips(base: AccuracyResult, other: AccuracyResult) -> dict[str, Flips]:
    """Flips of each task scored with 0 and 1 between two measurements of the base, by its primary metric."""
    name = "second measurement"
    rights = {task: pair(task, base.tasks[task], other.tasks[task], name).right() for task in base.tasks}
    return {task: count_flips(*right) for task, right in rights.items() if right is not None}


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
