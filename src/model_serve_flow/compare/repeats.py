"""Tells how several answers to an item vary, and whether more answers or more items would help."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from model_serve_flow.compare.pairs import Pairs
from model_serve_flow.compare.stats.paired import ALPHA, Z_POWER
from model_serve_flow.flow.results.compared import Difference
from model_serve_flow.flow.results.measured import QUESTION, Repeated

MOST_ANSWERS = 64  # per item; more answers are not worth asking for


def repeated(pairs: Pairs, metric: str) -> Repeated | None:
    """Splits the variance of the paired difference: between items and between answers.

    Returns:
        None where no item was asked several times, or the items were not asked equally often.
    """
    questions = [item.groups[QUESTION] for item in pairs.base.items if QUESTION in item.groups]
    if len(questions) < len(pairs.base.items):
        return None
    base, candidate = pairs.oriented(metric)
    order = np.argsort(questions, kind="stable")
    counts = np.unique(questions, return_counts=True)[1]
    if counts.min() != counts.max() or counts.min() < 2 or counts.size < 2:
        return None
    rows = (candidate - base)[order].reshape(counts.size, -1)
    within = float(rows.var(axis=1, ddof=1).mean())
    between = max(0.0, float(rows.mean(axis=1).var(ddof=1)) - within / rows.shape[1])
    return Repeated(count=rows.shape[1], items=counts.size, between=between, within=within)


def advice(difference: Difference, tests: int) -> str:
    """Says whether more answers per item or more items would settle an open question.

    The error of the mean over m items with k answers each is sqrt((between + within / k) / m). It
    must be so small that the distance to the limit is shown with 80 % power at the strictest level
    of Holm's correction. More answers reduce the second part only.

    Args:
        difference: with `repeated` filled.
        tests: number of tests in Holm's correction.
    """
    found = difference.repeated
    assert found is not None
    estimate = difference.difference if difference.higher_is_better else -difference.difference
    distance = abs(estimate + difference.limit) / 100
    wanted = (distance / (float(norm.isf(ALPHA / tests)) + Z_POWER)) ** 2 * found.items
    answers = found.within / (wanted - found.between) if wanted > found.between else math.inf
    if answers <= MOST_ANSWERS:
        count = max(math.ceil(answers), found.count + 1)
        return f"About {count} answers per item instead of {found.count} would settle it."
    if wanted == 0:
        return "It is too close to the margin to tell what would settle it."
    items = math.ceil(found.items * (found.between + found.within / found.count) / wanted)
    return (
        f"More answers per item would not settle it: items differ too much. About {items:,} items "
        f"with {found.count} answers each would."
    )
