"""Intervals and p-values of `compare.stats` in one call, for tests that need one of them."""

from __future__ import annotations

from numpy.typing import ArrayLike

from model_serve_flow.compare.stats.paired import Interval, PairedMean
from model_serve_flow.compare.stats.texts import PairedLoss


def paired_mean_difference(base: ArrayLike, candidate: ArrayLike, seed: int) -> Interval:
    """Computes candidate minus base in the mean of a continuous metric, see `PairedMean`.

    Raises:
        ValueError: fewer than two values, unequal lengths, NaN or infinity.
    """
    return PairedMean.of(base, candidate, seed).interval()


def paired_loss_change(
    base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int
) -> Interval:
    """Computes candidate minus base in nats per unit of text, over the same documents.

    See `PairedLoss`.
    """
    return PairedLoss.of(base_loglik, candidate_loglik, sizes, seed).interval()


def paired_ratio_change(
    base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, seed: int
) -> Interval:
    """Computes the change of corpus perplexity, in percent of the base's perplexity.

    Above 0 the candidate is worse.
    """
    return PairedLoss.of(base_loglik, candidate_loglik, sizes, seed).percent()


def mean_noninferiority_p(base: ArrayLike, candidate: ArrayLike, margin: float, seed: int) -> float:
    """Computes the one-sided p-value of "the mean falls by `margin` or more", see `PairedMean`.

    It is between 1/100000 and 1 - 1/100000, which is as fine as the bootstrap can tell.

    Raises:
        ValueError: as `paired_mean_difference`, or a margin that is not above 0.
    """
    return PairedMean.of(base, candidate, seed).noninferiority_p(margin)


def loss_noninferiority_p(
    base_loglik: ArrayLike, candidate_loglik: ArrayLike, sizes: ArrayLike, margin: float, seed: int
) -> float:
    """Computes the one-sided p-value of "the loss per unit of text rises by `margin` nats or more".

    See `PairedLoss`.
    """
    return PairedLoss.of(base_loglik, candidate_loglik, sizes, seed).noninferiority_p(margin)
