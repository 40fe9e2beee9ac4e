"""GuideLLM in, `PerformanceResult` out: the same load points for every model."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from model_serve_flow.config import FlowConfig
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.kernels import require_expected_kernel
from model_serve_flow.machine import usable_cores
from model_serve_flow.results import Latency, LoadPoint, PerformanceResult, protocol_hash
from model_serve_flow.serving import Server, engine_arguments, log_tail
from model_serve_flow.workspace import describe_model, read_json, write_json

SAMPLE_SECONDS = 0.5
# Share of completed requests' tokens that may be missing before a load point is not the load that was asked for.
OUTPUT_TOKENS_TOLERANCE = 0.05


def measure_performance(flow: Flow, server: Server) -> PerformanceResult:
    """Puts the profile's load on the server with GuideLLM and writes `performance.json` and GuideLLM's file (`raw/`).

    Raises:
        FlowError: GuideLLM failed (its last lines are shown), wrote something else than the load points asked for, or a
            kernel served that is not the checkpoint's.
    """
    started = time.monotonic()
    path = flow.workspace.raw(server.model_name) / "guidellm.json"
    client = run_guidellm(flow, server, path)
    facts = server.facts()
    require_expected_kernel(facts, server.model_name, server.folder)
    protocol = performance_protocol(flow.config, facts.version)
    points = read_load_points(path, flow.config)
    result = PerformanceResult(
        model=describe_model(server.model_name, server.folder),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        engine=facts,
        seconds=time.monotonic() - started,
        points=points,
        client_cpu_share=max(client.share(*window) for window in _windows(path)),
    )
    write_json(flow.workspace.results(server.model_name) / "performance.json", result)
    return result


def guidellm_command(config: FlowConfig, url: str, model_name: str, tokenizer: str, output: str) -> list[str]:
    """The `guidellm run` command line of the profile's load."""
    load = config.performance
    return [
        sys.executable,
        "-m",
        "guidellm",
        "run",
        "--backend",
        json.dumps({"kind": "openai_http", "target": url, "model": model_name, "request_format": "/v1/completions"}),
        "--tokenizer",
        json.dumps({"kind": "huggingface_auto", "model": tokenizer}),
        "--data",
        json.dumps(
            {"kind": "synthetic_text", "prompt_tokens": load.prompt_tokens, "output_tokens": load.output_tokens}
        ),
        "--profile",
        json.dumps({"kind": "concurrent", "streams": list(load.concurrency), "warmup": {"value": load.warmup_seconds}}),
        "--constraint",
        json.dumps({"kind": "max_duration", "seconds": load.seconds + load.warmup_seconds}),
        "--seed",
        json.dumps({"kind": "static", "value": config.seed}),
        "--output",
        json.dumps({"kind": "json", "path": output}),
        "--disable-console",
    ]


def run_guidellm(flow: Flow, server: Server, output: Path) -> ClientCpu:
    """Runs GuideLLM to its end; returns the CPU time its processes took, sampled while it ran."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    log = flow.workspace.logs / f"guidellm-{server.model_name}.log"
    environment = {
        **os.environ,
        "GUIDELLM__MAX_WORKER_PROCESSES": str(flow.config.performance.client_processes),
        "HF_HUB_OFFLINE": "1",
    }
    command = guidellm_command(flow.config, server.url, server.model_name, str(server.folder), str(output))
    with log.open("wb") as sink:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=environment
        )
    client = ClientCpu.watch(child)
    if child.returncode != 0 or not output.is_file():
        raise FlowError(
            f"GuideLLM ended with exit code {child.returncode}. Its last lines:\n{log_tail(log)}",
            f"\nThe whole log: {log}",
        )
    return client


@dataclass
class ClientCpu:
    """CPU seconds of the load generator over time: it runs beside the server and can take what the server needs."""

    times: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @classmethod
    def watch(cls, child: subprocess.Popen[bytes]) -> ClientCpu:
        """Samples the child and its children until it ends; kills it if the watching is interrupted."""
        record, seen = cls(), {}
        process = psutil.Process(child.pid)
        try:
            while child.poll() is None:
                seen |= _cpu_seconds(process)
                record.times.append(time.time())
                record.cpu_seconds.append(sum(seen.values()))
                time.sleep(SAMPLE_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        return record

    def share(self, start: float, end: float) -> float:
        """CPU seconds between two times (seconds since the epoch) / (wall seconds x cores of this machine)."""
        import numpy as np

        used = np.diff(np.interp([start, end], self.times, self.cpu_seconds))[0]
        return float(used / (end - start) / usable_cores())


def _cpu_seconds(process: psutil.Process) -> dict[int, float]:
    seconds = {}
    try:
        for member in [process, *process.children(recursive=True)]:
            times = member.cpu_times()
            seconds[member.pid] = times.user + times.system
    except psutil.NoSuchProcess:
        pass  # a process that ends between two samples keeps its last reading
    return seconds


def performance_protocol(config: FlowConfig, engine_version: str) -> dict[str, Any]:
    """All that must be equal for two performance results to be comparable."""
    return {
        "engine_arguments": engine_arguments(config),
        "engine_version": engine_version,
        "guidellm_version": importlib.metadata.version("guidellm"),
        "performance": config.performance.model_dump(mode="json"),
        "seed": config.seed,
    }


def read_load_points(path: Path, config: FlowConfig) -> tuple[LoadPoint, ...]:
    """The load points in GuideLLM's JSON output; FlowError if they are not those of the profile."""
    benchmarks = read_json(path).get("benchmarks", [])
    try:
        points = tuple(_point(benchmark, config) for benchmark in benchmarks)
    except (KeyError, TypeError, ValueError) as error:
        raise FlowError(f"{path} is not an output of GuideLLM 0.8: {type(error).__name__}: {error}.") from error
    asked = config.performance.concurrency
    if tuple(point.concurrency for point in points) != asked:
        raise FlowError(
            f"GuideLLM measured the load points {[p.concurrency for p in points]}, the profile asks for {list(asked)}.",
            f"See {path}.",
        )
    return points


def _windows(path: Path) -> list[tuple[float, float]]:
    """Start and end of every load point, in seconds since the epoch."""
    return [(benchmark["start_time"], benchmark["end_time"]) for benchmark in read_json(path)["benchmarks"]]


def _point(benchmark: dict[str, Any], config: FlowConfig) -> LoadPoint:
    metrics, totals = benchmark["metrics"], benchmark["metrics"]["request_totals"]
    output_tokens = metrics["output_token_count"]["successful"]["mean"]
    reason = _invalid_reason(totals, output_tokens, config)
    return LoadPoint(
        concurrency=benchmark["config"]["strategy"]["streams"],
        seconds=benchmark["duration"],
        completed_requests=totals["successful"],
        errored_requests=totals["errored"],
        incomplete_requests=totals["incomplete"],
        prompt_tokens=metrics["prompt_token_count"]["successful"]["mean"],
        output_tokens=output_tokens,
        requests_per_s=metrics["requests_per_second"]["successful"]["mean"],
        output_tokens_per_s=metrics["output_tokens_per_second"]["total"]["mean"],
        ttft_ms=_latency(metrics["time_to_first_token_ms"]["successful"]),
        itl_ms=_latency(metrics["inter_token_latency_ms"]["successful"]),
        request_latency_s=_latency(metrics["request_latency"]["successful"]),
        valid=not reason,
        invalid_reason=reason,
    )


def _latency(distribution: dict[str, Any]) -> Latency:
    percentiles = distribution["percentiles"]
    return Latency(mean=distribution["mean"], p50=percentiles["p50"], p95=percentiles["p95"], p99=percentiles["p99"])


def _invalid_reason(totals: dict[str, int], output_tokens: float, config: FlowConfig) -> str:
    """Why a point must not be compared; empty if it may."""
    load = config.performance
    if totals["errored"]:
        return f"{totals['errored']} of {totals['total']} requests failed"
    if totals["successful"] < load.min_requests:
        return f"{totals['successful']} requests completed, performance.min_requests is {load.min_requests}"
    if abs(output_tokens - load.output_tokens) > OUTPUT_TOKENS_TOLERANCE * load.output_tokens:
        return f"{output_tokens:.1f} output tokens per request, performance.output_tokens is {load.output_tokens}"
    return ""
