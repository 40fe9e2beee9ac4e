"""Computes the intervals that are shown: simultaneous, so that table and verdict agree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scipy.stats import norm, t

from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.holm_bounds import Claim, holm_bounds
from model_serve_flow.compare.stats.looks import repeated_level
from model_serve_flow.compare.stats.paired import ALPHA, Interval
from model_serve_flow.flow.results.compared import Clusters, Difference

Key = tuple[str, str]  # task and metric


def simultaneous(
    family: Mapping[Key, Difference], beyond: Collection[Key], others: Sequence[float] = ()
) -> dict[Key, tuple[float, float] | None]:
    """Computes the 95 % intervals of a family of questions that hold together.

    The lower bound belongs to the claim "the loss is within the limit", the upper bound to the
    claim "the loss is beyond the limit". Each claim is tested by Holm at 2.5 %. Both are computed
    with higher is better; the result is turned back to the direction of the difference and is in
    its unit.

    Where looks were planned, the p-values are those over all looks, and the bounds are repeated
    confidence bounds: they hold whenever the looks end. A question that an earlier look settled
    stays settled: then the limit is the bound, even if the estimate is now on the other side of the
    limit.

    Args:
        family: the questions whose "within" is corrected together.
        beyond: the questions whose "beyond" is corrected together; "beyond" of any other question
            is not corrected.
        others: p-values of "within" of other candidates, which belong to the family too.

    Returns:
        One interval per question; None where the items are too few for a test.
    """
    lows = _bounds({key: _within(d) for key, d in family.items()}, [_claim(p) for p in others])
    highs = _bounds({key: _beyond(family[key]) for key in beyond}, [])
    for key in family.keys() - set(beyond):
        highs |= _bounds({key: _beyond(family[key])}, [])
    tested = {key: d for key, d in family.items() if d.decision_p is not None}
    return dict.fromkeys(family) | {
        key: _turned(d, lows[key], highs[key]) for key, d in tested.items()
    }


def _bounds(claims: Mapping[Key, Claim], others: Sequence[Claim]) -> dict[Key, float]:
    return dict(zip(claims, holm_bounds([*claims.values(), *others]), strict=False))


def _claim(p: float) -> Claim:
    """Builds a claim of which only the p-value is known; its bound is never used."""
    return Claim(estimate=0.0, limit=0.0, p=p, bound=lambda _: -1.0)


def _within(d: Difference) -> Claim:
    if d.decision_p is None:  # too few items: counts in the family, but is never shown
        return _claim(1.0)
    estimate = d.difference if d.higher_is_better else -d.difference
    return Claim(estimate, -d.limit, d.decision_ps[0], lambda level: _at(d, level).low)


def _beyond(d: Difference) -> Claim:
    """Builds the claim that the loss is beyond the limit.

    The claim is mirrored, so that it has a lower bound too.
    """
    if d.decision_p is None:
        return _claim(1.0)
    estimate = d.difference if d.higher_is_better else -d.difference
    return Claim(-estimate, d.limit, d.decision_ps[1], lambda level: -_at(d, level).high)


def _at(d: Difference, level: float) -> Interval:
    """Returns the difference's own interval at a one-sided level, turned so that higher is better.

    Right or wrong: the interval of the score test. Clusters: the t interval. Bootstrap: its
    interval, widened as a t interval over as many units would be. After several looks it is the
    repeated confidence interval of the last look, see `repeated_level`.
    """
    plain, given = (
        repeated_level(error, d.look_shares) if d.look_shares else error for error in (level, ALPHA)
    )
    return own_interval(d, plain, given)


def own_interval(d: Difference, level: float, given: float = ALPHA) -> Interval:
    """Returns the interval of one difference at a one-sided level, turned as in `_at`.

    Args:
        given: one-sided level of the difference's `ci95`.
    """
    clustered = d.clusters is not None and d.clusters.decide
    if d.flips is not None and not clustered:
        counts = (d.flips.wrong_to_right, d.flips.right_to_wrong, d.n)
        return paired.score_interval(*counts, float(norm.isf(level))).scaled(100)
    low, high = d.ci95 if d.higher_is_better else (-d.ci95[1], -d.ci95[0])
    estimate = d.difference if d.higher_is_better else -d.difference
    degrees = _degrees(d.clusters) if d.clusters is not None and clustered else d.n - 1
    wider = float(t.isf(level, degrees) / t.isf(given, degrees))
    below, above = wider * (estimate - low), wider * (high - estimate)
    return Interval(estimate, estimate - below, estimate + above)


def _degrees(clusters: Clusters) -> float:
    return clusters.count - 1 if clusters.degrees is None else clusters.degrees


def one_look_interval(d: Difference) -> Interval:
    """Returns the 95 % interval as if there were one look only, turned as in `_at`."""
    return own_interval(d, ALPHA, repeated_level(ALPHA, d.look_shares) if d.look_shares else ALPHA)


def repeated_interval(d: Difference, shares: tuple[float, ...]) -> tuple[float, float]:
    """Computes the 95 % repeated confidence interval after looks at these shares of the items."""
    found = own_interval(d, repeated_level(ALPHA, shares))
    return (found.low, found.high) if d.higher_is_better else (-found.high, -found.low)


def _turned(d: Difference, low: float, mirrored: float) -> tuple[float, float]:
    # An early look may show one claim and a later look the opposite claim.
    high = max(low, -mirrored)
    return (low, high) if d.higher_is_better else (-high, -low)
