"""GuideLLM in, `PerformanceResult` out: the same load points for every model."""

from __future__ import annotations

import importlib.metadata
import time
from collections import Counter
from pathlib import Path
from typing import Any

from model_serve_flow.capacity import measure_capacity
from model_serve_flow.config import FlowConfig
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.guidellm import ClientCpu, LoadGenerator, load_command
from model_serve_flow.guidellm_report import Load, LoadReport, Spread, Totals
from model_serve_flow.measurement import kept, proven_facts, provenance, require_arguments
from model_serve_flow.results import Latency, LoadPoint, PerformanceResult
from model_serve_flow.serving import Server, engine_arguments
from model_serve_flow.workspace import read_document, write_json

# Share of completed requests' tokens that may be missing before a load point is not the load that was asked for.
OUTPUT_TOKENS_TOLERANCE = 0.05


def measure_performance(flow: Flow, server: Server, generator: LoadGenerator) -> PerformanceResult:
    """Puts the profile's load on the server, then searches its capacity, and writes `performance.json`.

    A result of the same model and protocol that lies there is returned as it is. GuideLLM's own files stay in `raw/`.
    The engine's facts, its peak memory among them, are taken between the two: the load points are the same for every
    model, the loads of the search are not.

    Raises:
        FlowError: GuideLLM failed (its last lines are shown), wrote something else than what was asked for, or a kernel
            served that is not the checkpoint's.
        ServerGone: the server ended meanwhile.
    """
    started, before = time.monotonic(), proven_facts(server)
    destination = flow.workspace.results(server.model_name) / "performance.json"
    protocol = performance_protocol(flow.config, before.version)
    require_arguments(server, protocol)
    if (earlier := kept(destination, PerformanceResult, server, before, protocol)) is not None:
        return earlier
    path = flow.workspace.raw(server.model_name) / "guidellm.json"
    command = load_command(flow.config, server.url, server.model_name, str(server.folder), str(path))
    client = generator.run(server, command, path)
    facts = proven_facts(server)
    points = read_load_points(path, flow.config, client)
    capacity = measure_capacity(flow, server, generator)
    result = PerformanceResult(
        **provenance(server, facts, protocol, started),
        points=points,
        capacity=capacity,
    )
    write_json(destination, result)
    return result


def performance_protocol(config: FlowConfig, engine_version: str) -> dict[str, Any]:
    """All that must be equal for two performance results to be comparable."""
    return {
        "engine_arguments": engine_arguments(config),
        "engine_version": engine_version,
        "guidellm_version": importlib.metadata.version("guidellm"),
        "performance": config.performance.model_dump(mode="json"),
        "seed": config.seed,
    }


def read_load_points(path: Path, config: FlowConfig, client: ClientCpu) -> tuple[LoadPoint, ...]:
    """The load points in GuideLLM's JSON output, in the order measured.

    Args:
        path: the file GuideLLM wrote.
        config: what was asked for: `performance.concurrency`, `performance.repeats` times in turns.
        client: the CPU time of the GuideLLM that wrote it.

    Raises:
        FlowError: the file is not GuideLLM's, or its load points are not those of the profile.
    """
    report = read_document(
        path, LoadReport, "an output of GuideLLM 0.8", "It was edited, or written by another version"
    )
    seen: Counter[int] = Counter()
    points = []
    for load in report.benchmarks:
        seen[load.config.strategy.streams] += 1
        points.append(_point(load, config, client, seen[load.config.strategy.streams]))
    asked = list(config.performance.concurrency) * config.performance.repeats
    measured = [point.concurrency for point in points]
    if measured != asked:
        raise FlowError(f"GuideLLM measured the load points {measured}, the profile asks for {asked}.", f"See {path}.")
    return tuple(points)


def _point(load: Load, config: FlowConfig, client: ClientCpu, repeat: int) -> LoadPoint:
    metrics, totals = load.metrics, load.metrics.request_totals
    output_tokens = metrics.output_token_count.successful.mean
    reason = _invalid_reason(totals, output_tokens, config)
    return LoadPoint(
        concurrency=load.config.strategy.streams,
        repeat=repeat,
        seconds=load.duration,
        completed_requests=totals.successful,
        errored_requests=totals.errored,
        incomplete_requests=totals.incomplete,
        prompt_tokens=metrics.prompt_token_count.successful.mean,
        output_tokens=output_tokens,
        requests_per_s=metrics.requests_per_second.successful.mean,
        output_tokens_per_s=metrics.output_tokens_per_second.total.mean,
        ttft_ms=_latency(metrics.time_to_first_token_ms.successful),
        itl_ms=_latency(metrics.inter_token_latency_ms.successful),
        request_latency_s=_latency(metrics.request_latency.successful),
        client_cpu_share=client.share(load.start_time, load.end_time),
        client_limited=client.limited(load.start_time, load.end_time, config.device),
        valid=not reason,
        invalid_reason=reason,
    )


def _latency(spread: Spread) -> Latency:
    percentiles = spread.percentiles
    return Latency(mean=spread.mean, p50=percentiles.p50, p95=percentiles.p95, p99=percentiles.p99)


def _invalid_reason(totals: Totals, output_tokens: float, config: FlowConfig) -> str:
    """Why a point must not be compared; empty if it may."""
    load = config.performance
    if totals.errored:
        return f"{totals.errored} of {totals.total} requests failed"
    if totals.successful < load.min_requests:
        return f"{totals.successful} requests completed, performance.min_requests is {load.min_requests}"
    if abs(output_tokens - load.output_tokens) > OUTPUT_TOKENS_TOLERANCE * load.output_tokens:
        return f"{output_tokens:.1f} output tokens per request, performance.output_tokens is {load.output_tokens}"
    return ""
