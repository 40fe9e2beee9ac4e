"""Compares the soft score: the probability of the right choice.

It shows when the right choice became less probable but is still the model's first choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from model_serve_flow.compare.pairs import Pairs
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.bootstrap import LEAST_UNITS
from model_serve_flow.compare.stats.clusters import ClusteredMean, cluster_key
from model_serve_flow.flow.results.compared import Clusters, SoftScore
from model_serve_flow.flow.results.measured import RIGHT_CHOICE

ITEMS = "paired t interval over items"
CLUSTERED = "cluster-robust standard error, t over the clusters"


def soft_scores(tasks: Iterable[Pairs]) -> dict[str, SoftScore]:
    """Compares the probability of the right choice in every task that has it for all items."""
    found = {pairs.task: soft_score(pairs) for pairs in tasks}
    return {task: score for task, score in found.items() if score is not None}


def soft_score(pairs: Pairs) -> SoftScore | None:
    """Compares the mean probability of the right choice, paired item by item.

    The interval is t over the items. Where the items come in clusters, the cluster-robust t
    interval is used if it is wider, as for the task's score.

    Returns:
        The score in points; None for fewer than 10 items, or if a side lacks the probability of an
        item.
    """
    rows = [[item.values.get(RIGHT_CHOICE) for item in row] for row in pairs.rows]
    values = list(zip(*rows, strict=True))
    if len(pairs.rows) < LEAST_UNITS or any(one is None for side in values for one in side):
        return None
    base, candidate = (np.array(side, dtype=float) for side in values)
    change, key = candidate - base, cluster_key(pairs.base.items)
    single = ClusteredMean.of(change, [str(place) for place in range(change.size)])
    interval, method, clusters = single.interval(), ITEMS, None
    if key is not None:
        whole = ClusteredMean.of(change, [item.groups[key] for item in pairs.base.items])
        wider = _width(whole.interval()) > _width(interval)
        interval, method = (whole.interval(), CLUSTERED) if wider else (interval, method)
        effect = (whole.error / single.error) ** 2 if single.error else None
        clusters = Clusters(
            key=key,
            count=whole.clusters,
            design_effect=effect,
            decide=wider,
            degrees=whole.degrees,
        )
    return SoftScore(
        n=change.size,
        base=100 * base.mean(),
        candidate=100 * candidate.mean(),
        difference=100 * interval.difference,
        ci95=(100 * interval.low, 100 * interval.high),
        method=method,
        clusters=clusters,
    )


def soft_sentence(scores: Mapping[str, SoftScore]) -> str:
    """Names the tasks on which the right choice became less probable; empty if there are none."""
    fell = [
        f"{task} by {s.difference:+.2f} points [{s.ci95[0]:+.2f}, {s.ci95[1]:+.2f}]"
        for task, s in scores.items()
        if s.ci95[1] < 0
    ]
    if not fell:
        return ""
    return f"The right choice became less probable (secondary, decides nothing): {', '.join(fell)}."


def _width(interval: paired.Interval) -> float:
    return interval.high - interval.low
