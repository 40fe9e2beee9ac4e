"""Compares base and candidate under the same load: speed-up, memory and cost.

The speed-up has an interval over the repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal

from model_serve_flow.compare.stats import paired
from model_serve_flow.flow.results.compared import Memory, SpeedPoint, UnmeasuredLoad
from model_serve_flow.flow.results.measured import Capacity, LoadPoint, PerformanceResult

# Two load points are different work if their tokens per request differ relatively by more.
TOKEN_TOLERANCE = 0.05

OneOfBoth = Literal["base", "candidate"]


def speed_points(
    base: PerformanceResult, candidate: PerformanceResult
) -> tuple[tuple[SpeedPoint, ...], tuple[UnmeasuredLoad, ...]]:
    """Compares the two results at every load point.

    Returns:
        One point per concurrency, over its repeats; and the load points that cannot be compared.
    """
    ours, theirs = base.measured_loads(), candidate.measured_loads()
    reasons = _unmeasured(base, candidate)
    compared = tuple(
        _speed_point(points, theirs[load]) for load, points in ours.items() if load not in reasons
    )
    return compared, tuple(
        UnmeasuredLoad(concurrency=load, reason=reasons[load]) for load in sorted(reasons)
    )


def _unmeasured(base: PerformanceResult, candidate: PerformanceResult) -> dict[int, str]:
    """Returns concurrency -> why the load point is not compared."""
    reasons: dict[int, list[str]] = {}
    for result in (base, candidate):
        for load, why in result.unmeasured_loads().items():
            reasons.setdefault(load, []).append(f"{result.model.name}: {why}")
    ours, theirs = base.measured_loads(), candidate.measured_loads()
    for load in (ours.keys() | theirs.keys()) - reasons.keys():
        if why := _other_work(ours.get(load, []), theirs.get(load, [])):
            reasons[load] = [why]
    return {load: "; ".join(parts) for load, parts in reasons.items()}


def _other_work(base: list[LoadPoint], candidate: list[LoadPoint]) -> str:
    """Says what differs between the requests of both sides; empty if they are the same work."""
    if len(base) != len(candidate):
        return f"measured {len(base)} times for base and {len(candidate)} times for the candidate"
    for one, other in zip(base, candidate, strict=True):
        for field in ("prompt_tokens", "output_tokens"):
            left, right = getattr(one, field), getattr(other, field)
            if not math.isclose(left, right, rel_tol=TOKEN_TOLERANCE):
                name = field.replace("_", " ")
                return (
                    f"not the same work: {name} per request are {left:.1f} for base and "
                    f"{right:.1f} for the candidate"
                )
    return ""


def mean_speedup(points: Sequence[SpeedPoint]) -> float | None:
    """Computes the geometric mean of the speed-ups over the load points: 2x and 0.5x average to 1x.

    Returns:
        None without load points.
    """
    if not points:
        return None
    return math.exp(math.fsum(math.log(point.speedup) for point in points) / len(points))


def memory(performance: PerformanceResult) -> Memory:
    """Returns the memory that the engine used while it served the load."""
    return Memory(
        peak_bytes=performance.engine.peak_memory_bytes,
        kv_cache_tokens=performance.engine.kv_cache_tokens,
    )


def cost(hourly_price_usd: float | None, found: Capacity | None) -> float | None:
    """Computes US dollars per million output tokens at capacity.

    Returns:
        None without a price or a capacity, or if no load meets the latency objectives.
    """
    if (
        hourly_price_usd is None
        or found is None
        or not found.streams
        or found.output_tokens_per_s == 0
    ):
        return None
    return cost_per_million_output_tokens(hourly_price_usd, found.output_tokens_per_s)


def cost_interval(
    hourly_price_usd: float | None, found: Capacity | None
) -> tuple[float, float] | None:
    """Computes the 95 % interval of `cost` from the interval of the tokens/s at capacity.

    If a search ended without a load that failed, the true cost may be arbitrarily low: the lower
    end is 0.

    Returns:
        US dollars; None without a cost, or after a single search.
    """
    if cost(hourly_price_usd, found) is None:
        return None
    assert hourly_price_usd is not None and found is not None
    if found.output_ci95 is None:
        return None
    slow, fast = found.output_ci95
    cheap = 0.0 if fast is None else cost_per_million_output_tokens(hourly_price_usd, fast)
    return cheap, cost_per_million_output_tokens(hourly_price_usd, slow)


def _speed_point(base: list[LoadPoint], candidate: list[LoadPoint]) -> SpeedPoint:
    sides: dict[OneOfBoth, list[LoadPoint]] = {"base": base, "candidate": candidate}

    def of_both(
        figure: Callable[[LoadPoint], float], combine: Callable[[list[float]], float] = fmean
    ) -> dict:
        return {
            side: combine([figure(point) for point in points]) for side, points in sides.items()
        }

    ours, theirs = ([point.output_tokens_per_s for point in points] for points in sides.values())
    blocks = min(len({point.block for point in points}) for points in sides.values())
    if blocks == 1:
        speedup, interval = paired.geometric_ratio(ours, theirs)
    else:
        speedup, interval = paired.paired_ratio(*map(block_means, sides.values()))
    return SpeedPoint(
        blocks=blocks,
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
        others_share=_others_share(sides),
    )


def block_means(points: list[LoadPoint]) -> list[float]:
    """Returns output tokens/s of each block: the geometric mean over its repeats."""
    blocks: dict[int, list[float]] = {}
    for point in points:
        blocks.setdefault(point.block, []).append(math.log(point.output_tokens_per_s))
    return [math.exp(fmean(blocks[block])) for block in sorted(blocks)]


def _others_share(sides: dict[OneOfBoth, list[LoadPoint]]) -> dict[OneOfBoth, float] | None:
    """Averages over the repeats the CPU share that other programs and the hypervisor took.

    Returns:
        Side -> share from 0 to 1; None if the share of a repeat is not known.
    """
    shares = {
        side: [taken for point in points if point.busy and (taken := point.busy.taken) is not None]
        for side, points in sides.items()
    }
    if any(len(found) < len(sides[side]) for side, found in shares.items()):
        return None
    return {side: fmean(found) for side, found in shares.items()}


def output_bracket(search: Capacity) -> tuple[float, float | None]:
    """Returns the range of output tokens/s that holds the value at capacity.

    One end is the value at the load that passed, the other end the value at the load that failed.
    The upper end is None if no load failed.
    """
    if search.failed is None:
        return search.output_tokens_per_s, None
    other = next(
        probe.output_tokens_per_s for probe in search.probes if probe.streams == search.failed
    )
    return min(search.output_tokens_per_s, other), max(search.output_tokens_per_s, other)


def cost_per_million_output_tokens(hourly_price_usd: float, output_tokens_per_s: float) -> float:
    """Computes US dollars per million output tokens on a machine that always serves at this rate.

    Raises:
        ValueError: the price or the rate is not above 0.
    """
    if hourly_price_usd <= 0 or output_tokens_per_s <= 0:
        raise ValueError(
            f"not above 0: {hourly_price_usd} USD per hour, {output_tokens_per_s} tokens/s"
        )
    return hourly_price_usd / 3600 / output_tokens_per_s * 1e6
