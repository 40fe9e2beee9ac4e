"""Computes bounds that hold for all tasks at once and agree with Holm's decisions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import norm

from model_serve_flow.compare.stats.paired import ALPHA, holm

NO_EVIDENCE = 1e-6  # a smaller z says nothing about the distance


@dataclass(frozen=True)
class Claim:
    """One claim of a family: a figure is above `limit`.

    Attributes:
        estimate: of the figure.
        limit: the value that the figure must surely exceed.
        p: one-sided p-value of "the figure is the limit or less".
        bound: one-sided level -> lower confidence bound of the figure by itself.
    """

    estimate: float
    limit: float
    p: float
    bound: Callable[[float], float]

    def below(self, level: float) -> float:
        """Returns the bound at a level at which the claim is not shown: always below the limit.

        A decision can rest on more than the data of `bound` (retention). Then this bound can be
        above the limit. In this case the standard error is taken as the distance from estimate to
        limit, divided by the z of the p-value.
        """
        bound = self.bound(level)
        if bound < self.limit:
            return bound
        distance, z = abs(self.estimate - self.limit), float(norm.isf(min(self.p, 0.5)))
        if z <= NO_EVIDENCE:
            return self.limit - distance
        return self.estimate - float(norm.isf(level)) * distance / z


def holm_bounds(claims: Sequence[Claim]) -> list[float]:
    """Computes lower bounds of all figures that hold together with 97.5 % confidence.

    A bound is at or above its limit exactly where Holm's test shows the claim at 2.5 %. If all m
    claims are shown, each claim has its bound at 0.025 / m, or its limit if the limit is higher.
    Otherwise each shown claim has its limit, and the k other claims have their bound at 0.025 / k.

    Strassburger and Bretz (2008), "Compatible simultaneous lower confidence bounds for the Holm
    procedure and other Bonferroni-based closed tests", Statistics in Medicine 27:4914-4927.
    """
    if not claims:
        return []
    shown = [p <= ALPHA for p in holm([claim.p for claim in claims])]
    open_ = shown.count(False)
    if not open_:
        level = ALPHA / len(claims)
        return [max(claim.limit, claim.bound(level)) for claim in claims]
    return [
        claim.limit if done else claim.below(ALPHA / open_)
        for claim, done in zip(claims, shown, strict=True)
    ]
