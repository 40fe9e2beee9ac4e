"""Ranks the models by score and economy, and recommends a candidate."""

from __future__ import annotations

from collections.abc import Sequence

from model_serve_flow.compare.gaps import Evidence
from model_serve_flow.compare.reading import must_not_ship
from model_serve_flow.compare.speed import mean_speedup
from model_serve_flow.compare.stats.simultaneous import better, ranks
from model_serve_flow.flow.results.compared import (
    BaseComparison,
    CandidateComparison,
    Comparison,
    Ranks,
)
from model_serve_flow.flow.results.measured import BASE


def rankable(candidates: Sequence[CandidateComparison]) -> list[CandidateComparison]:
    """Returns the candidates that are ranked: those that may ship or are open, and have a score."""
    return [c for c in candidates if not must_not_ship(c) and c.suite is not None]


def ranked(
    base: BaseComparison, candidates: Sequence[CandidateComparison], evidence: Evidence
) -> tuple[BaseComparison, tuple[CandidateComparison, ...]]:
    """Returns the base and the candidates with `ranks` and `dominated_by` filled.

    A model is dominated if another model is surely more accurate and surely more economical. If
    several models dominate it, the most economical of them is named. A candidate that must not
    ship, or has no average score, is not ranked.

    Args:
        evidence: the gaps between the base and the `rankable` candidates.
    """
    able = rankable(candidates)
    if not able:
        return base, tuple(candidates)
    economies = _economies(base, able)
    places = [ranks(gaps, list(economies)) for gaps in (evidence.score, evidence.economy)]

    def filled(name: str) -> dict:
        dominating = better(evidence.score, name) & better(evidence.economy, name)
        return {
            "ranks": Ranks(score=places[0][name], economy=places[1][name]),
            "dominated_by": max(dominating, key=economies.__getitem__, default=None),
        }

    found = tuple(c.model_copy(update=filled(c.name)) if c in able else c for c in candidates)
    return base.model_copy(update=filled(BASE)), found


def recommended(comparison: Comparison) -> str | None:
    """Names the SHIP candidate with the lowest cost per token at the latency objectives.

    Returns:
        None if no candidate is SHIP.
    """
    ships = [candidate for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    if not ships:
        return None
    economies = _economies(comparison.base, ships)
    return max(ships, key=lambda candidate: economies[candidate.name]).name


def _economies(base: BaseComparison, candidates: Sequence[CandidateComparison]) -> dict[str, float]:
    """Computes how economical each model is; higher is better.

    The first figure that is known for all models counts:

    - Output tokens/s at capacity. They order the models as the cost per token does, because the
      price of the machine is the same.
    - The mean speed-up over the load points that are measured for all candidates.
    - The size of the base over the size of the checkpoint.
    """
    found = {
        BASE: base.capacity,
        **{candidate.name: candidate.capacity for candidate in candidates},
    }
    known = {
        name: capacity
        for name, capacity in found.items()
        if capacity is not None and capacity.measured
    }
    if len(known) == len(found):
        return {
            name: capacity.output_tokens_per_s if capacity.streams else 0.0
            for name, capacity in known.items()
        }
    common = set.intersection(*({point.concurrency for point in c.performance} for c in candidates))
    speedups = {
        c.name: mean_speedup([p for p in c.performance if p.concurrency in common])
        for c in candidates
    }
    if common:
        return {
            BASE: 1.0,
            **{name: speedup for name, speedup in speedups.items() if speedup is not None},
        }
    return {BASE: 1.0, **{candidate.name: 1 / candidate.size_ratio for candidate in candidates}}
