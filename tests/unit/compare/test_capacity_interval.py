"""The interval of a capacity holds the truth although the requests of a load are correlated."""

import math

import numpy as np
import pytest
from support.search import Noise, search

from model_serve_flow.compare.stats.capacity import bracket_interval

DRAWS = 500


def coverage(
    noise: Noise, servers: int, requests: int, tolerance: float, draws: int = DRAWS
) -> float:
    """How often the interval of as many searches holds the capacity; capacities from 10 to 100."""
    rng, held = np.random.default_rng([20250, servers, requests, round(100 * noise.loads)]), 0
    for _ in range(draws):
        true = rng.uniform(10, 100)
        found = [search(rng, math.log(true), noise, requests, tolerance) for _ in range(servers)]
        low, high = bracket_interval(*zip(*found, strict=True))
        held += low <= true and (high is None or true <= high)
    return held / draws


NOISES = [Noise(0, 0), Noise(0.02, 0.02), Noise(0.1, 0.02), Noise(0.02, 0.1), Noise(0.2, 0.2)]


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize(("requests", "tolerance"), [(30, 0.1), (120, 0.1), (30, 1.0)])
def test_the_interval_of_a_capacity_covers_the_truth(noise, requests, tolerance):
    assert coverage(noise, 3, requests, tolerance) >= 0.93


def one_search_coverage(noise: Noise, draws: int) -> float:
    """How often the loads between which one search ends hold the capacity."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(draws):
        true = rng.uniform(10, 100)
        best, worst = search(rng, math.log(true), noise, 120)
        held += best <= true and (worst is None or true < worst)
    return held / draws


def test_the_loads_between_which_one_search_ends_do_not():
    assert one_search_coverage(Noise(0.2, 0.2), DRAWS) < 0.6


def test_a_capacity_on_the_edge_of_a_bracket_is_held():
    """Three searches fall on one side of it by chance in a quarter of all cases."""
    low, high = bracket_interval([16, 16, 16], [20, 20, 20])
    assert low < 15.9 and high > 20.1


def test_fewer_than_two_searches_have_no_interval():
    assert bracket_interval([16], [20]) is None
