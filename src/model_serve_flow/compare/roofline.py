"""Explains the speed of a candidate: compares measured latencies with the roofline of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from model_serve_flow.flow.results.compared import Diagnosis
from model_serve_flow.flow.results.measured import LoadPoint, PerformanceResult

# The bytes read explain the measured speed-up if measured / expected is in this range.
NEAR_ROOFLINE = (0.85, 1.1)


class _Lowest(NamedTuple):
    """Means over the repeats of the load point with the lowest concurrency."""

    concurrency: int
    itl_ms: float
    decode_share: float


def diagnose(
    base: PerformanceResult,
    candidate: PerformanceResult,
    base_bytes: int,
    candidate_bytes: int,
    kernel: str,
) -> Diagnosis:
    """Compares the measured speed-up of decoding with the speed-up that fewer bytes allow.

    With one request at a time, every weight is read once per generated token, and there is little
    arithmetic per byte. Decoding is then memory-bound: its time is the bytes read over the
    bandwidth of the memory (the roofline model: Williams, Waterman and Patterson, "Roofline: an
    insightful visual performance model for multicore architectures", Communications of the ACM
    52(4), 2009). The bandwidth cancels out:

    - expected speed-up = base bytes / candidate bytes
    - measured speed-up = mean inter-token latency of the base / of the candidate
    - reached = measured / expected
    - decode share = 1 - time to first token / request latency, of the base (means)

    All figures are at the lowest concurrency measured, normally 1.

    Bytes per token are those of `Model.held_bytes`: floats in the engine's dtype, and the quantised
    weights as stored. An embedding table that is not tied to the output layer counts in full,
    though a token reads only one row of it. The KV cache and the activations do not count: at one
    short request they are small beside the weights.

    Args:
        base, candidate: measurements with at least one load point that is measured on both sides.
        base_bytes, candidate_bytes: bytes of weights that the engine holds.
        kernel: name of the linear kernel that served the candidate.

    Raises:
        ValueError: no load point is measured on both sides, or a size is not above 0.
    """
    if min(base_bytes, candidate_bytes) <= 0:
        raise ValueError(f"weights of {base_bytes} and {candidate_bytes} bytes")
    loads = base.measured_loads(), candidate.measured_loads()
    if not (common := loads[0].keys() & loads[1].keys()):
        raise ValueError(
            f"no load point is measured of both: {sorted(loads[0])} of base, {sorted(loads[1])} of "
            "candidate"
        )
    lowest = min(common)
    ours, theirs = (_means(lowest, side[lowest]) for side in loads)
    expected, measured = base_bytes / candidate_bytes, ours.itl_ms / theirs.itl_ms
    bound: Literal["prefill", "decode"] = "decode" if ours.decode_share > 0.5 else "prefill"
    return Diagnosis(
        bound=bound,
        decode_share=ours.decode_share,
        base_bytes_per_token=base_bytes,
        candidate_bytes_per_token=candidate_bytes,
        expected_speedup=expected,
        reached=measured / expected,
        sentence=f"{_where(ours, bound)} {_bytes(base_bytes, candidate_bytes)} "
        f"{_finding(measured, expected, kernel)}",
    )


def _means(concurrency: int, points: Sequence[LoadPoint]) -> _Lowest:
    itl = fmean(point.itl_ms.mean for point in points)
    latency = fmean(point.request_latency_s.mean for point in points)
    ttft = fmean(point.ttft_ms.mean for point in points) / 1000
    return _Lowest(concurrency, itl, min(max(1 - ttft / latency, 0.0), 1.0))


def _where(base: _Lowest, bound: str) -> str:
    load = "one request" if base.concurrency == 1 else f"{base.concurrency} requests"
    if bound == "decode":
        return f"At {load} at a time {base.decode_share:.0%} of the base's time goes into decoding."
    return (
        f"At {load} at a time most of the base's time ({1 - base.decode_share:.0%}) goes into "
        "reading the prompt (prefill); what follows is about the rest."
    )


def _bytes(base_bytes: int, candidate_bytes: int) -> str:
    return (
        f"Each token reads {candidate_bytes / 1e6:,.0f} MB of weights instead of "
        f"{base_bytes / 1e6:,.0f} MB."
    )


def _finding(measured: float, expected: float, kernel: str) -> str:
    """Says what the two speed-ups mean; it names no cause that was not measured."""
    if expected <= 1:
        return (
            f"That saves nothing to read; decoding measured {measured:.2f}x as fast with {kernel}."
        )
    figures = (
        f"If reading them were all that decoding waits for, it would be {expected:.2f}x as fast; "
        f"measured with {kernel}: {measured:.2f}x ({measured / expected:.0%} of that)."
    )
    low, high = NEAR_ROOFLINE
    if measured <= 1:
        return f"{figures} It is not faster, so its decoding is not limited by reading weights."
    if measured / expected < low:
        return (
            f"{figures} It is faster, but by less, so its decoding is not limited by reading "
            "weights alone."
        )
    if measured / expected <= high:
        return f"{figures} So its speed follows the bytes read."
    return (
        f"{figures} Fewer bytes do not explain that much, so the base is not limited by reading "
        "weights alone."
    )
