"""Speed-up over the repeats, the figures beside it, and the cost at capacity."""

import math

import factories
import numpy as np
import pytest

from model_serve_flow.compare.speed import cost, mean_speedup, memory, speed_points


def points(**changes):
    """The sample's points, with changes to the last one the candidate measured:
    repeat 3 of 8 requests.
    """
    candidate = factories.performance("w8a8-int8")
    last = candidate.points[-1].model_copy(update=changes)
    compared, unmeasured = speed_points(
        factories.performance(),
        candidate.model_copy(update={"points": (*candidate.points[:-1], last)}),
    )
    assert unmeasured == ()
    return compared


def test_each_load_is_one_point_over_its_repeats():
    first = points()[0]
    assert [(point.concurrency, point.repeats) for point in points()] == [(1, 3), (4, 3), (8, 3)]
    assert first.base_output_tokens_per_s == pytest.approx(
        factories.throughput("base", 1) * 3.002 / 3
    )
    assert first.ttft_ms_p95 == {
        "base": pytest.approx(85 * 1.25),
        "candidate": pytest.approx(85 * 1.25),
    }
    assert first.itl_ms_p95["candidate"] < first.itl_ms_p95["base"]


def test_speedup_has_welchs_interval_on_the_logarithms():
    from scipy.stats import t

    ours, theirs = (
        np.log(
            [
                p.output_tokens_per_s
                for p in factories.performance(name).points
                if p.concurrency == 4
            ]
        )
        for name in ("base", "w8a8-int8")
    )
    variances = [side.var(ddof=1) / 3 for side in (ours, theirs)]
    freedom = sum(variances) ** 2 / sum(v**2 / 2 for v in variances)
    reach = t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    change = theirs.mean() - ours.mean()
    point = points()[1]
    assert point.speedup == pytest.approx(math.exp(change))
    assert point.speedup_ci95 == (
        pytest.approx(math.exp(change - reach)),
        pytest.approx(math.exp(change + reach)),
    )
    assert 1.28 < point.speedup_ci95[0] < 1.35 * 0.984 < point.speedup_ci95[1] < 1.38


def test_order_of_the_measurements_does_not_matter():
    base, candidate = factories.performance(), factories.performance("w8a8-int8")
    turned = candidate.model_copy(update={"points": candidate.points[::-1]})
    assert speed_points(base, turned) == speed_points(base, candidate)


def test_one_repeat_has_no_interval():
    protocol = {"performance": {"concurrency": [1, 4, 8], "repeats": 1}}
    once = [
        factories.performance(name, protocol, factories.performance(name).points[:3])
        for name in ("base", "w8a8-int8")
    ]
    compared, unmeasured = speed_points(*once)
    assert len(compared) == 3 and unmeasured == ()
    assert all(point.speedup_ci95 is None and point.repeats == 1 for point in compared)


def test_a_point_where_the_client_limits_in_any_repeat_is_marked():
    assert not any(point.client_limited for point in points())
    limited = points(client_cpu_share=0.55, client_limited=True)
    assert [point.client_limited for point in limited] == [False, False, True]
    assert limited[2].client_cpu_share == {"base": 0.12, "candidate": 0.55}


def test_speedups_average_geometrically():
    halves = [
        point.model_copy(update={"speedup": value})
        for point, value in zip(points(), (2.0, 0.5), strict=False)
    ]
    assert mean_speedup(halves) == pytest.approx(1.0)
    assert mean_speedup([]) is None


def test_cost_is_the_price_over_the_tokens_at_capacity():
    found = factories.capacity().model_copy(update={"output_tokens_per_s": 100.0})
    assert cost(0.36, found) == pytest.approx(1.0)
    assert cost(None, found) is None
    assert cost(0.36, None) is None
    assert cost(0.36, found.model_copy(update={"streams": 0, "output_tokens_per_s": 0.0})) is None


def test_memory_is_what_the_engine_reported_under_load():
    found = memory(factories.performance("w8a8-int8"))
    assert (found.peak_bytes, found.kv_cache_tokens) == (1_803_886_264, 46592)
