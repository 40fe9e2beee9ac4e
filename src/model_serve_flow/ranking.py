"""Which candidate is the best choice: the Pareto front of accuracy against cost, and the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from model_serve_flow.results import BaseComparison, CandidateComparison, Comparison
from model_serve_flow.speed import mean_speedup


class _Place(NamedTuple):
    """Where a model stands; higher is better in both."""

    economy: float
    score: float
    name: str


def dominates(one: tuple[float, float], two: tuple[float, float]) -> bool:
    """Whether the first is at least as good in both respects, where higher is better, and not equal."""
    return one != two and one[0] >= two[0] and one[1] >= two[1]


def ranked(base: BaseComparison, candidates: Sequence[CandidateComparison]) -> tuple[CandidateComparison, ...]:
    """The candidates with `dominated_by` filled, on the suite's score and what a token costs at the objectives.

    A candidate that must not ship, or whose score no task can tell, is not ranked. Of several dominating models the
    most economical is named; it is on the front itself.
    """
    able = [candidate for candidate in candidates if candidate.verdict != "DO NOT SHIP" and candidate.suite is not None]
    if not able:
        return tuple(candidates)
    economies = _economies(base, able)
    places = {c.name: _Place(economies[c.name], c.suite.candidate, c.name) for c in able}
    everyone = [_Place(economies["base"], able[0].suite.base, "base"), *places.values()]
    better = {name: [other for other in everyone if dominates(other[:2], place[:2])] for name, place in places.items()}
    return tuple(
        c.model_copy(update={"dominated_by": max(better[c.name]).name}) if better.get(c.name) else c for c in candidates
    )


def recommended(comparison: Comparison) -> str | None:
    """The SHIP candidate whose tokens cost least at the objectives; None if no candidate is SHIP."""
    ships = [candidate for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    if not ships:
        return None
    economies = _economies(comparison.base, ships)
    return max(ships, key=lambda candidate: economies[candidate.name]).name


def _economies(base: BaseComparison, candidates: Sequence[CandidateComparison]) -> dict[str, float]:
    """How economical each model is, higher is better.

    Output tokens/s at capacity, which orders like the cost per token because the price of the machine is the same.
    Where a capacity is not known: the mean speed-up over the load points that are measured for all candidates. Where
    there is none either: the base's size over the checkpoint's.
    """
    found = {"base": base.capacity, **{candidate.name: candidate.capacity for candidate in candidates}}
    if all(capacity is not None and capacity.measured for capacity in found.values()):
        return {name: capacity.output_tokens_per_s if capacity.streams else 0.0 for name, capacity in found.items()}
    common = set.intersection(*({point.concurrency for point in c.performance} for c in candidates))
    speedups = {c.name: mean_speedup([p for p in c.performance if p.concurrency in common]) for c in candidates}
    if common:
        return {"base": 1.0, **speedups}
    return {"base": 1.0, **{candidate.name: 1 / candidate.size_ratio for candidate in candidates}}
