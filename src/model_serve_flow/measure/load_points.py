"""Puts load on an OpenAI-compatible endpoint with GuideLLM and reads the load points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.busy import watch_machine
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import Latency, LoadPoint
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.generator import LoadGenerator
from model_serve_flow.measure.guidellm.report import Load, LoadMetrics, LoadReport, Spread
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.files import read_document

# Largest relative difference between measured and requested output tokens of a valid load point.
OUTPUT_TOKENS_TOLERANCE = 0.05

Place = tuple[int, int]  # (concurrency, turn of the measurement)


def measure_load(
    config: FlowConfig,
    endpoint: Endpoint,
    generator: LoadGenerator,
    path: Path,
    places: Sequence[Place] | None = None,
) -> tuple[LoadPoint, ...]:
    """Measures load points on any OpenAI-compatible endpoint, one after the other.

    Args:
        config: the profile. Its section `performance` is the load.
        endpoint: the served model. It is checked to be alive while GuideLLM works.
        generator: a running GuideLLM.
        path: the JSON file that GuideLLM writes.
        places: (concurrency, repeat) of the load points, in order; None: every concurrency of the
            profile once.

    Returns:
        One load point for each place, in the same order. A load point that is not valid says why.

    Raises:
        FlowError: GuideLLM failed (the message shows its last lines), or its output is not what was
            asked for.
        ServerGone: the server of the endpoint ended.
    """
    if places is None:
        places = [(concurrency, 1) for concurrency in config.performance.concurrency]
    where = (endpoint.url, endpoint.model_name, str(endpoint.folder), str(path))
    command = load_command(config, *where, [concurrency for concurrency, _ in places])
    with watch_machine() as watch:
        client = generator.run(endpoint, command, path)
    busy = watch.result()
    points = read_load_points(path, config, client, places)
    return tuple(point.model_copy(update={"busy": busy}) for point in points)


def read_load_points(
    path: Path, config: FlowConfig, client: ClientCpu, places: Sequence[Place]
) -> tuple[LoadPoint, ...]:
    """Reads the load points from GuideLLM's JSON output, in the order measured.

    Args:
        path: the file that GuideLLM wrote.
        config: the profile, which says when a load point is valid.
        client: the CPU time of the GuideLLM that wrote the file.
        places: (concurrency, repeat) of the requested load points, in order.

    Raises:
        FlowError: the file is not GuideLLM's, or its load points are not the requested ones.
    """
    report = read_document(
        path,
        LoadReport,
        "an output of GuideLLM 0.8",
        "It was edited, or written by another version",
    )
    measured = [load.config.strategy.streams for load in report.benchmarks]
    asked = [concurrency for concurrency, _ in places]
    if measured != asked:
        raise FlowError(
            f"GuideLLM measured the load points {measured}, it was asked for {asked}.",
            f"See {path}.",
        )
    pairs = zip(report.benchmarks, places, strict=True)
    return tuple(_point(load, config, client, repeat) for load, (_, repeat) in pairs)


def _point(load: Load, config: FlowConfig, client: ClientCpu, repeat: int) -> LoadPoint:
    metrics, totals = load.metrics, load.metrics.request_totals
    output_tokens = metrics.output_token_count.successful.mean
    reason = _invalid_reason(metrics, config)
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


def _invalid_reason(metrics: LoadMetrics, config: FlowConfig) -> str:
    """Explains why a load point is not valid; empty if it is valid."""
    load, totals = config.performance, metrics.request_totals
    output_tokens = metrics.output_token_count.successful.mean
    if totals.errored:
        return f"{totals.errored} of {totals.total} requests failed"
    if totals.successful < load.min_requests:
        return (
            f"{totals.successful} requests completed, performance.min_requests is "
            f"{load.min_requests}"
        )
    if abs(output_tokens - load.output_tokens) > OUTPUT_TOKENS_TOLERANCE * load.output_tokens:
        return (
            f"{output_tokens:.1f} output tokens per request, performance.output_tokens is "
            f"{load.output_tokens}"
        )
    if metrics.time_to_first_token_ms.successful.percentiles.p95 == 0:
        return "GuideLLM noted no time to first token; the load may be too short"
    return ""
