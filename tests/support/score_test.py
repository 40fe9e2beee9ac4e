"""Tango's score test of a paired difference,
with the likelihood maximised on a grid instead of by his formula.
"""

import math

import numpy as np
from scipy.stats import norm

Z = float(norm.ppf(0.975))


def rejects(difference: float, gained: int, lost: int, n: int, z: float = Z) -> bool:
    """Whether n pairs, of which some became right and some wrong,
    contradict a true difference, at 5 % or at z.
    """
    lowest = max(0.0, -difference)
    losses = np.linspace(lowest, (1 - difference) / 2, 40001)[1:-1]
    gains, rest = losses + difference, 1 - 2 * losses - difference
    likelihood = gained * np.log(gains) + lost * np.log(losses) + (n - gained - lost) * np.log(rest)
    loss = losses[np.argmax(likelihood)]
    deviation = math.sqrt(n * (2 * loss + difference - difference**2))
    return bool(abs(gained - lost - n * difference) > z * deviation)


def assert_interval(
    low: float, high: float, gained: int, lost: int, n: int, within: float = 2e-3, z: float = Z
) -> None:
    """The bounds are where the test stops rejecting, to within `within`."""
    for bound, outward in ((low, -within), (high, within)):
        assert rejects(bound + outward, gained, lost, n, z), (bound, outward)
        assert not rejects(bound - outward, gained, lost, n, z), (bound, outward)
