"""Computes the interval of a capacity that was searched several times. No I/O.

Before each search the server was started anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from model_serve_flow.compare.stats.paired import ALPHA

HALF = 0.5  # replaces a load of 0, which has no logarithm


def bracket_interval(
    passed: Sequence[float], failed: Sequence[float | None], level: float = ALPHA
) -> tuple[float, float | None] | None:
    """Computes the interval of the mean capacity from one bracket per server.

    The mean is taken on the logarithmic scale.

    A search finds a bracket that holds the capacity of its server: the highest load that passed and
    the next load that failed. The requests of one load are correlated, because they met the same
    moment of the machine, so their number says little about how sure a bracket is. The brackets of
    servers that were started anew are independent. Their spread includes everything that varies:
    requests, loads, moments and starts. So the interval is t over the servers, as Kalibera and
    Jones (2013), "Rigorous benchmarking in reasonable time", use for times.

    Half a bracket is added on either side, because the true value can be anywhere in the bracket.
    If all brackets are the same, their spread is taken as the spread of a uniform value in the
    bracket.

    Args:
        passed: the highest load that passed on each server, 0 if no load passed.
        failed: the lowest load above it that failed on each server; None: no load failed.
        level: one-sided error.

    Returns:
        Low and high. High is None if a search ended without a failed load. None instead of both for
        fewer than two servers.
    """
    from scipy.stats import t

    if len(passed) < 2:
        return None
    reach = float(t.isf(level, len(passed) - 1)) / math.sqrt(len(passed))
    low = [math.log(max(load, HALF)) for load in passed]
    known = [load for load in failed if load is not None]
    if len(known) < len(failed):
        return math.exp(fmean(low) - reach * stdev(low)), None
    high = [math.log(load) for load in known]
    middle = [(one + other) / 2 for one, other in zip(low, high, strict=True)]
    width, spread = fmean(high) - fmean(low), stdev(middle)
    half = max(width / 2 + reach * spread, reach * math.hypot(spread, width / math.sqrt(12)))
    return math.exp(fmean(middle) - half), math.exp(fmean(middle) + half)
