"""The interval of a capacity that was searched several times, each time on a server started anew.

No I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from model_serve_flow.compare.stats.paired import ALPHA

HALF = 0.5  # stands for a load of 0, which has no logarithm


def bracket_interval(
    passed: Sequence[float], failed: Sequence[float | None], level: float = ALPHA
) -> tuple[float, float | None] | None:
    """The mean capacity of servers, on the logarithmic scale, from one bracket per server.

    A search tells between which loads the capacity of its server is: the highest that passed and
    the next that failed. The requests of one load are correlated (they met the same moment of the
    machine), so their number says little of how sure a bracket is. The brackets of servers that
    were started anew are independent, and their spread holds all of it: requests, loads, moments
    and starts. Hence t over the servers, as Kalibera and Jones (2013), "Rigorous benchmarking in
    reasonable time", do for times; half a bracket is added on either side, because the true value
    can be anywhere in it. Brackets that are all the same have the spread of a uniform value in
    them.

    Args:
        passed: the highest load that passed on each server, 0 if none did.
        failed: the lowest above it that failed; none: no load failed.
        level: one-sided error.

    Returns:
        Low and high, the high none where a search ended without a failed load; none for fewer than
        two servers.
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
