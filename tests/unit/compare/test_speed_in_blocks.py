"""The interval of a speed-up holds the truth although two starts of a server differ by more than
its repeats do.
"""

import math

import numpy as np
import pytest
from scipy.stats import t

from model_serve_flow.compare.stats.paired import geometric_ratio, paired_ratio

DRAWS, WITHIN, CHECKED = 2000, 0.02, 20


def drawn(between: float, blocks: int, repeats: int, drift: float = 0.0) -> np.ndarray:
    """[draws, side, blocks] mean logarithms:
    starts differ by `between` times the spread within one server.

    The machine slows by `drift` from the first measurement to the last; the order is ABBA.
    """
    rng = np.random.default_rng([20250, blocks, repeats, round(10 * between)])
    starts = between * WITHIN * rng.standard_normal((DRAWS, 2, blocks))
    loads = WITHIN / math.sqrt(repeats) * rng.standard_normal((DRAWS, 2, blocks))
    place = np.array(
        [[2 * b + (b % 2) for b in range(blocks)], [2 * b + 1 - (b % 2) for b in range(blocks)]]
    )
    return starts + loads - drift * place / (2 * blocks)


def coverage(between: float, blocks: int, repeats: int = 1, drift: float = 0.0) -> float:
    """How often the paired interval holds a speed-up of 1."""
    values = drawn(between, blocks, repeats, drift)
    change = values[:, 1] - values[:, 0]
    half = t.ppf(0.975, blocks - 1) * change.std(axis=1, ddof=1) / math.sqrt(blocks)
    for row in range(CHECKED):
        _, (low, high) = paired_ratio(*np.exp(values[row]))
        middle = change[row].mean()
        assert [math.log(low), math.log(high)] == pytest.approx(
            [middle - half[row], middle + half[row]]
        )
    return float(np.mean(np.abs(change.mean(axis=1)) <= half))


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("blocks", "repeats"), [(3, 1), (3, 3), (5, 1)])
def test_the_interval_of_a_speed_up_covers_the_truth(between, blocks, repeats):
    assert coverage(between, blocks, repeats) >= 0.93


def test_a_steady_slowdown_of_the_machine_is_held():
    assert coverage(1.0, 4, drift=0.1) >= 0.93


def one_start_coverage(draws: int) -> float:
    """Of Welch's interval over three repeats of one start each,
    where starts differ by twice the spread of repeats.
    """
    rng, held = np.random.default_rng(20250), 0
    for _ in range(draws):
        starts = 2 * WITHIN * rng.standard_normal((2, 1))
        low, high = geometric_ratio(*np.exp(starts + WITHIN * rng.standard_normal((2, 3))))[1]
        held += low <= 1 <= high
    return held / draws


def test_repeats_on_one_server_each_do_not():
    assert one_start_coverage(400) < 0.75


def test_the_paired_interval_is_statsmodels():
    import statsmodels.stats.weightstats as sm

    base, candidate = [100.0, 90.0, 104.0], [131.0, 122.0, 133.0]
    ratio, interval = paired_ratio(base, candidate)
    expected = sm.DescrStatsW(np.log(candidate) - np.log(base)).tconfint_mean()
    assert np.log(interval) == pytest.approx(expected)
    assert ratio == pytest.approx(math.exp(np.mean(np.log(candidate) - np.log(base))))
    assert paired_ratio([2, 4], [3, 6]) == (
        pytest.approx(1.5),
        (pytest.approx(1.5), pytest.approx(1.5)),
    )
    with pytest.raises(ValueError, match="differ in number"):
        paired_ratio([1, 2], [1, 2, 3])
