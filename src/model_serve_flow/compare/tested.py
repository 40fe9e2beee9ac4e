"""Holds what the tests of one difference found, before it becomes part of a result."""

from __future__ import annotations

from dataclasses import dataclass

from model_serve_flow.compare.stats import bootstrap
from model_serve_flow.compare.stats.paired import Interval
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.compared import Clusters, Flips


@dataclass(frozen=True)
class Drawn:
    """A bootstrap's p-value of a loss of the margin or more.

    Attributes:
        p: None: there are too few units.
        monte_carlo_error: standard error of p, because resamples are drawn.
        too_few: how many units are needed; None: there are as many.
    """

    p: float | None
    monte_carlo_error: float | None = None
    too_few: int | None = None


def drawn(n: int, p: float) -> Drawn:
    """Returns the p-value over n units; fewer than `LEAST_UNITS` give none."""
    if n < bootstrap.LEAST_UNITS:
        return Drawn(None, too_few=bootstrap.LEAST_UNITS)
    return Drawn(p, bootstrap.monte_carlo_error(p))


@dataclass(frozen=True)
class Sensitivity:
    """Whether the base scores high enough for the task to show a loss; in points.

    This is called assay sensitivity: ICH E10 (2000), section 1.5. The attributes are fields of a
    `Difference`; by default the question was not asked.
    """

    base_low: float | None = None
    near_chance: bool = False
    too_weak: bool = False
    retention: float | None = None
    retention_limit: float | None = None
    retention_p: float | None = None


def sensitivity(
    score: float, low: float, chance: float | None, retention_p: float, margins: Verdict
) -> Sensitivity:
    """Tells whether the base scores high enough for the task to show a loss.

    Args:
        score, low: score of the base and its lower bound, from 0 to 1, turned so that higher is
            better.
        chance: expected score of guessing, from 0 to 1. None: the model writes freely, and guessing
            scores 0.
        retention_p: one-sided p-value of keeping the share `margins.retention` or less.
        margins: give the task margin and the share of the score to keep.
    """
    floor = chance or 0.0
    allowed = 100 * (1 - margins.retention) * (score - floor)
    return Sensitivity(
        base_low=100 * low,
        near_chance=chance is not None and low <= chance,
        too_weak=100 * (low - floor) <= margins.task_margin_points,
        retention=margins.retention,
        retention_limit=allowed if allowed > 0 else None,
        retention_p=retention_p,
    )


@dataclass(frozen=True)
class Tested:
    """The interval and the tests of one difference in points.

    Attributes:
        interval: of candidate minus base.
        method: how the interval was computed.
        loss: the test against the margin.
        smallest_detectable_drop: true drop that these items find with 80 % power.
        sensitivity: of the base's score.
        mcnemar_p, flips: for values of 0 and 1 only.
        clusters: None: the items come in none.
    """

    interval: Interval
    method: str
    loss: Drawn
    smallest_detectable_drop: float | None
    sensitivity: Sensitivity = Sensitivity()
    mcnemar_p: float | None = None
    flips: Flips | None = None
    clusters: Clusters | None = None
