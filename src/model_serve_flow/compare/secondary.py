"""Compares divergence, top-1 agreement, gross loss and speed with their secondary margins.

These figures do not decide by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from model_serve_flow.compare.distribution_shift import Shift
from model_serve_flow.compare.pairs import Pairs
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.clusters import ClusteredMean, cluster_key
from model_serve_flow.compare.stats.paired import Interval
from model_serve_flow.flow.profile import Secondary
from model_serve_flow.flow.results.compared import GrossLoss, SpeedPoint, SpeedVerdict, Warned


def gross_loss(pairs: Pairs, metric: str) -> GrossLoss | None:
    """Computes the share of the base's right answers that became wrong, for values of 0 and 1.

    The interval is Wilson's. Where the items come in clusters, the cluster-robust interval is used
    if it is wider.

    Returns:
        The share and its interval in percent; None if no answer of the base is right.
    """
    base, candidate = (side == 1 for side in pairs.oriented(metric))
    right, broken = int(base.sum()), int((base & ~candidate).sum())
    if right == 0:
        return None
    found, key = paired.wilson_interval(broken, right), cluster_key(pairs.base.items)
    if key is not None:
        labels = np.array([item.groups[key] for item in pairs.base.items])[base]
        if len(set(labels)) > 1:
            whole = ClusteredMean.of((~candidate[base]).astype(float), labels).interval()
            wider = whole.high - whole.low > found.high - found.low
            found = whole if wider else found
    low, high = (100 * min(max(edge, 0.0), 1.0) for edge in (found.low, found.high))
    return GrossLoss(percent=100 * broken / right, ci95=(low, high), right=right)


def secondary_readings(
    margins: Secondary,
    shift: Shift | None,
    losses: Mapping[str, GrossLoss],
) -> tuple[Warned, ...]:
    """Compares divergence, top-1 agreement and each task's gross loss with their margins."""
    found = []
    if shift is not None:
        kl, changed = shift.kl, [100 * (1 - edge) for edge in reversed(shift.agreement_ci95)]
        found.append(_warned("KL divergence", "nats/token", kl.mean, kl.ci95, margins.kl_nats))
        points = 100 * (1 - shift.agreement)
        top1 = ("Likeliest tokens that changed", "%", points, changed, margins.top1_points)
        found.append(_warned(*top1))
    for task, loss in losses.items():
        subject = f"Right answers of {task} that became wrong"
        found.append(_warned(subject, "%", loss.percent, loss.ci95, margins.gross_loss_percent))
    return tuple(found)


def warnings(margins: Secondary, found: Sequence[Warned]) -> list[str]:
    """Lists a warning for each figure that is surely beyond its margin.

    With `action: withhold`, figures that are not surely within their margin are listed too.
    """
    told = ("beyond", "unsure") if margins.action == "withhold" else ("beyond",)
    return [one.sentence for one in found if one.reading in told]


def speed_verdict(margins: Secondary, points: Sequence[SpeedPoint]) -> SpeedVerdict | None:
    """Judges the geometric mean of the speed-ups: FASTER, NOT FASTER or UNSURE.

    The intervals of the load points are joined on the logarithm (see `paired.mean_of_independent`).

    Returns:
        None without load points.
    """
    if not points:
        return None
    mean = math.exp(math.fsum(math.log(point.speedup) for point in points) / len(points))
    known = [
        (point.speedup, *point.speedup_ci95) for point in points if point.speedup_ci95 is not None
    ]
    if len(known) < len(points):
        return SpeedVerdict(reading="UNSURE", speedup=mean, ci95=None, margin=margins.speedup)
    logs = [Interval(*map(math.log, ends)) for ends in known]
    joined = paired.mean_of_independent(logs)
    low, high = math.exp(joined.low), math.exp(joined.high)
    faster, slower = low > margins.speedup, high <= margins.speedup
    reading = "FASTER" if faster else "NOT FASTER" if slower else "UNSURE"
    return SpeedVerdict(reading=reading, speedup=mean, ci95=(low, high), margin=margins.speedup)


def _warned(subject: str, unit: str, value: float, ci95: Sequence[float], margin: float) -> Warned:
    low, high = ci95
    reading = "beyond" if low > margin else "within" if high < margin else "unsure"
    place = {"beyond": "beyond", "within": "within", "unsure": "not clearly within"}[reading]
    sentence = (
        f"Warning: {subject}: {value:.3g} {unit} (95 % interval {low:.3g} to {high:.3g}), "
        f"{place} the margin of {margin:g}."
    )
    return Warned(subject=subject, reading=reading, sentence=sentence)
