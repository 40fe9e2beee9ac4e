"""The intervals that are shown: simultaneous, so that table and verdict agree."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import norm, t

from model_serve_flow import statistics
from model_serve_flow.compare.stats.simultaneous import Claim, holm_bounds
from model_serve_flow.results import Difference
from model_serve_flow.statistics import ALPHA, Interval


def simultaneous(family: Sequence[Difference]) -> list[tuple[float, float] | None]:
    """Computes the 95 % intervals of the tasks of a family that hold together.

    The lower bound belongs to "the loss is within the limit", the upper one to "it is beyond", each
    by Holm at 2.5 %. Higher is better in both; the result is turned back to the difference's own
    direction and is in its unit.

    Returns:
        One interval per difference; none where too few items allow no test.
    """
    tested = [d for d in family if d.decision_p is not None]
    absent = len(family) - len(tested)
    claims = [(_within(d), _beyond(d)) for d in tested]
    sides = [holm_bounds([*side, *[_UNKNOWN] * absent]) for side in zip(*claims, strict=True)]
    found = iter(zip(*sides, strict=True))
    return [_turned(d, *next(found)) if d.decision_p is not None else None for d in family]


# A task with too few items: it counts in the family, and its claim is never shown.
_UNKNOWN = Claim(estimate=0.0, limit=0.0, p=1.0, bound=lambda _: -1.0)


def _within(d: Difference) -> Claim:
    estimate = d.difference if d.higher_is_better else -d.difference
    return Claim(estimate, -d.limit, d.decision_p, lambda level: _at(d, level).low)


def _beyond(d: Difference) -> Claim:
    """The opposite claim, mirrored so that it has a lower bound too."""
    estimate = d.difference if d.higher_is_better else -d.difference
    return Claim(-estimate, d.limit, 1 - d.decision_p, lambda level: -_at(d, level).high)


def _at(d: Difference, level: float) -> Interval:
    """The difference's own interval at a one-sided level, turned so that higher is better.

    That of right or wrong is the score test's, that of clusters is t. A bootstrap's interval is
    widened as a t interval of as many units would be.
    """
    clustered = d.clusters is not None and d.clusters.decide
    if d.flips is not None and not clustered:
        counts = (d.flips.wrong_to_right, d.flips.right_to_wrong, d.n)
        return statistics.score_interval(*counts, float(norm.isf(level))).scaled(100)
    low, high = d.ci95 if d.higher_is_better else (-d.ci95[1], -d.ci95[0])
    estimate = d.difference if d.higher_is_better else -d.difference
    units = d.clusters.count if clustered else d.n
    wider = float(t.isf(level, units - 1) / t.isf(ALPHA, units - 1))
    below, above = wider * (estimate - low), wider * (high - estimate)
    return Interval(estimate, estimate - below, estimate + above)


def _turned(d: Difference, low: float, mirrored: float) -> tuple[float, float]:
    return (low, -mirrored) if d.higher_is_better else (mirrored, -low)
