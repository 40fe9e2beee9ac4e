"""Base and candidate under the same load: speed-up with its interval over the repeats, memory, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from model_serve_flow import capacity, statistics
from model_serve_flow.results import Capacity, LoadPoint, Memory, PerformanceResult, SpeedPoint


def speed_points(base: PerformanceResult, candidate: PerformanceResult) -> tuple[SpeedPoint, ...]:
    """One point per concurrency, over its repeats; the results must have been found comparable."""
    theirs = candidate.by_concurrency()
    return tuple(_speed_point(points, theirs[concurrency]) for concurrency, points in base.by_concurrency().items())


def mean_speedup(points: Sequence[SpeedPoint]) -> float:
    """Geometric mean of the speed-ups over the load points: 2x and 0.5x average to 1x."""
    return math.exp(math.fsum(math.log(point.speedup) for point in points) / len(points))


def memory(performance: PerformanceResult) -> Memory:
    """What the engine took while it served the load."""
    return Memory(peak_bytes=performance.engine.peak_memory_bytes, kv_cache_tokens=performance.engine.kv_cache_tokens)


def cost(hourly_price_usd: float | None, found: Capacity | None) -> float | None:
    """US dollars per million output tokens at capacity; None without a price, or where no load meets the objectives."""
    if hourly_price_usd is None or found is None or found.streams == 0 or found.output_tokens_per_s == 0:
        return None
    return capacity.cost_per_million_output_tokens(hourly_price_usd, found.output_tokens_per_s)


def _speed_point(base: list[LoadPoint], candidate: list[LoadPoint]) -> SpeedPoint:
    sides = {"base": base, "candidate": candidate}

    def of_both(figure: Callable[[LoadPoint], float], combine: Callable[[list[float]], float] = fmean) -> dict:
        return {side: combine([figure(point) for point in points]) for side, points in sides.items()}

    ours, theirs = ([point.output_tokens_per_s for point in points] for points in sides.values())
    speedup, interval = statistics.geometric_ratio(ours, theirs)
    return SpeedPoint(
        concurrency=base[0].concurrency,
        repeats=len(base),
        base_output_tokens_per_s=fmean(ours),
        candidate_output_tokens_per_s=fmean(theirs),
        speedup=speedup,
        speedup_ci95=interval,
        ttft_ms_p95=of_both(lambda point: point.ttft_ms.p95),
        itl_ms_p95=of_both(lambda point: point.itl_ms.p95),
        request_latency_s_p50=of_both(lambda point: point.request_latency_s.p50),
        client_cpu_share=of_both(lambda point: point.client_cpu_share, max),
        client_limited=any(point.client_limited for point in (*base, *candidate)),
    )
