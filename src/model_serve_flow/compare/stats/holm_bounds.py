"""Bounds that hold for all tasks at once and agree with Holm's decisions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import norm

from model_serve_flow.compare.stats.paired import ALPHA, holm

NO_EVIDENCE = 1e-6  # a z below it tells nothing of the distance


@dataclass(frozen=True)
class Claim:
    """One claim of a family: a figure lies above `limit`, as far as its data tell.

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

        Where the decision rests on more than the data of `bound` (retention), that bound can lie
        above the limit. Then the distance from estimate to limit, over the z of the p-value, is
        taken for the standard error.
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

    A bound is at or above its limit exactly where Holm's test shows the claim at 2.5 %. If all
    claims are shown, each has its bound at 0.025 / m, or its limit if that is higher. Else those
    that are shown have their limit, and the k others their bound at 0.025 / k.

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
