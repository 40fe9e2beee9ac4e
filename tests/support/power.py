"""How often a candidate ships whose true flips are known: the verdict on many draws at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from support import many

from model_serve_flow.compare.stats.looks import bounds
from model_serve_flow.flow.profile import Verdict

ALPHA = 0.025
SMALLEST_Z, LARGEST_Z = 0.05, 8.0  # as in statistics.binary_retention_p


@dataclass(frozen=True)
class Planned:
    """A task of 0 and 1: items, the base's expected score, chance,
    and the share of answers that flip.
    """

    n: int
    score: float
    chance: float
    flips: float


@dataclass(frozen=True)
class Draws:
    """Tables of one task: items that became right, that became wrong,
    and that the base has right.
    """

    n: int
    chance: float
    gained: NDArray
    lost: NDArray
    right: NDArray

    @classmethod
    def of(cls, task: Planned, loss: float, draws: int, seed: int) -> Draws:
        """Of a candidate that truly loses `loss`, as a proportion."""
        lost, gained = (task.flips + loss) / 2, (task.flips - loss) / 2
        cells = [gained, lost, task.score - lost, 1 - task.score - gained]
        rows = np.random.default_rng([seed, task.n]).multinomial(task.n, cells, draws)
        return cls(task.n, task.chance, rows[:, 0], rows[:, 1], rows[:, 1] + rows[:, 2])

    def p_values(self, margins: Verdict) -> NDArray:
        """Of "the loss is the margin or more, or too little is kept"."""
        within = many.score_p_values(
            self.gained, self.lost, self.n, margins.task_margin_points / 100
        )
        return np.maximum(within, self.retention_p(margins.retention))

    def retention_p(self, retained: float) -> NDArray:
        """As `statistics.binary_retention_p`, by bisection of its z."""
        share, score = 1 - retained, self.right / self.n
        estimate = (self.gained - self.lost) / self.n + share * (score - self.chance)
        low, high = np.full(estimate.shape, SMALLEST_Z), np.full(estimate.shape, LARGEST_Z)
        for _ in range(30):
            z = (low + high) / 2
            clear = estimate > np.hypot(self._below(z), share * self._wilson_below(z))
            low, high = np.where(clear, z, low), np.where(clear, high, z)
        return np.where(estimate > 0, ndtr(-low), 1.0)

    def _below(self, z: NDArray) -> NDArray:
        """Distance from the difference to the score test's lower bound at z."""
        estimate = (self.gained - self.lost) / self.n
        inside, outside = estimate, np.full(estimate.shape, -1.0)
        for _ in range(30):
            middle = (inside + outside) / 2
            deviation = many.score_deviation(self.gained, self.lost, self.n, middle)
            rejected = self.gained - self.lost - self.n * middle > z * deviation
            inside, outside = (
                np.where(rejected, inside, middle),
                np.where(rejected, middle, outside),
            )
        return estimate - (inside + outside) / 2

    def _wilson_below(self, z: NDArray) -> NDArray:
        share, n = self.right / self.n, self.n
        half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return share - (share + z * z / (2 * n) - half) / (1 + z * z / n)


def shipped(tasks: Mapping[str, Draws], margins: Verdict) -> NDArray:
    """Whether each draw ships: Holm over the tasks, and the suite's own test.

    With planned looks only the last one is counted, by its stricter bound. An early look ships a
    few more.
    """
    allowed = _last_level(margins.looks)
    ps = np.sort([one.p_values(margins) for one in tasks.values()], axis=0)
    levels = [_last_level(margins.looks, ALPHA / tests) for tests in range(len(ps), 0, -1)]
    changes = [(one.gained - one.lost) / one.n for one in tasks.values()]
    lows = [many.score_intervals(one.gained, one.lost, one.n)[0] for one in tasks.values()]
    below = np.sqrt(np.sum([(c - low) ** 2 for c, low in zip(changes, lows, strict=True)], axis=0))
    mean, strict = np.mean(changes, axis=0), ndtri(allowed) / ndtri(ALPHA)
    suite = mean - strict * below / len(ps) > -margins.suite_margin_points / 100
    return (ps <= np.array(levels)[:, None]).all(axis=0) & suite


def _last_level(looks: int, alpha: float = ALPHA) -> float:
    """The level of the test at the last of equally spaced looks that together err in `alpha`."""
    return float(ndtr(-bounds([look / looks for look in range(1, looks + 1)], alpha)[-1]))
