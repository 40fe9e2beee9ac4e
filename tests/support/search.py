"""GuideLLM's goodput search on a simulated server whose capacity differs from start to start and
load to load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TARGET = 0.9
STEEPNESS = 6.0  # of the share that meets the objectives, per unit of the logarithm of the load


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithm of the capacity."""

    starts: float  # from server to server
    loads: float  # from load to load of one server: what the requests of a load have in common


def attainment(load: int, log_capacity: float) -> float:
    """The share that meets the objectives: TARGET at the capacity."""
    odds = math.log(TARGET / (1 - TARGET)) + STEEPNESS * (log_capacity - math.log(load))
    return 1 / (1 + math.exp(-odds))


def search(
    rng: np.random.Generator,
    log_capacity: float,
    noise: Noise,
    requests: int,
    tolerance: float = 0.1,
    most: int = 4096,
) -> tuple[int, int | None]:
    """(highest load that passed, lowest that failed) of one server: doubles from 4,
    then halves the gap.
    """
    own, best, worst, load = log_capacity + noise.starts * rng.standard_normal(), 0, None, 4
    while load:
        share = attainment(load, own + noise.loads * rng.standard_normal())
        if rng.binomial(requests, share) >= TARGET * requests:
            best = max(best, load)
        else:
            worst = load if worst is None else min(worst, load)
        load = _next(best, worst, tolerance, most)
    return best, worst


def _next(best: int, worst: int | None, tolerance: float, most: int) -> int:
    """As guidellm/benchmark/profiles/goodput.py goes on; 0 to end."""
    if worst is None:
        return min(2 * best, most) if best < most else 0
    if best == 0:
        return worst // 2
    return 0 if worst - best <= max(1, tolerance * best) else (best + worst) // 2
