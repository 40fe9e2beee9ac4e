"""GuideLLM's command lines, and how long each may take."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from model_serve_flow.flow.profile import FlowConfig, Objectives

# A run of GuideLLM hangs when it takes longer than this many times its loads, beside the time to
# start.
LOAD_TIME_FACTOR = 3
START_SECONDS = 180
# It writes to its log when a load starts and when it ends, and every ten seconds between: nothing
# for this many seconds and the same multiple of one load is a hang that need not be waited for any
# longer.
SILENT_SECONDS = 90


def load_command(
    config: FlowConfig,
    url: str,
    model_name: str,
    tokenizer: str,
    output: str,
    streams: Sequence[int] | None = None,
) -> list[str]:
    """The `guidellm run` command line of one turn: every load point of the profile once,
    or those of `streams`.

    A load lasts until enough requests have completed. That constraint is ours (`constraint`); the
    driver registers it. To repeat the line with the stock program, give
    `kind=max_duration,seconds=...` in its place.
    """
    load, warmup = config.performance, config.performance.warmup_seconds
    profile = {
        "kind": "concurrent",
        "streams": list(load.concurrency if streams is None else streams),
    }
    constraint = {
        "kind": "enough_requests",
        "requests": load.min_requests,
        "warmup_seconds": warmup,
        "least_seconds": load.seconds + warmup,
        "max_seconds": load.longest_seconds + warmup,
    }
    return [
        *_command(config, url, model_name, tokenizer, output),
        *_phases(config, profile, constraint),
    ]


def search_command(
    config: FlowConfig,
    objectives: Objectives,
    url: str,
    model_name: str,
    tokenizer: str,
    output: str,
) -> list[str]:
    """The `guidellm run` command line of the goodput search: requests,
    warm-up and seed of the load points.
    """
    profile = {
        "kind": "goodput",
        "target_attainment": objectives.attainment,
        "initial_streams": objectives.initial_streams,
        "max_streams": objectives.max_streams,
        "tolerance": objectives.tolerance,
    }
    # GuideLLM compares its `tpot_ms` with a request's mean inter-token latency, the first token
    # left out.
    slo = {"ttft_ms": objectives.ttft_ms, "tpot_ms": objectives.itl_ms}
    constraint = {
        "kind": "max_duration",
        "seconds": objectives.seconds + config.performance.warmup_seconds,
    }
    return [
        *_command(config, url, model_name, tokenizer, output),
        *_phases(config, profile, constraint),
        "--metrics",
        json.dumps({"kind": "generative", "slo": slo}),
    ]


def _command(
    config: FlowConfig, url: str, model_name: str, tokenizer: str, output: str
) -> list[str]:
    """What both command lines share: the endpoint, the requests and the output."""
    load = config.performance
    trusted = {"load_kwargs": {"trust_remote_code": True}} if config.model.trust_remote_code else {}
    return [
        sys.executable,
        "-m",
        "guidellm",
        "run",
        "--backend",
        json.dumps(
            {
                "kind": "openai_http",
                "target": url,
                "model": model_name,
                "request_format": "/v1/completions",
            }
        ),
        "--tokenizer",
        json.dumps({"kind": "huggingface_auto", "model": tokenizer, **trusted}),
        "--data",
        json.dumps(
            {
                "kind": "synthetic_text",
                "prompt_tokens": load.prompt_tokens,
                "output_tokens": load.output_tokens,
            }
        ),
        "--seed",
        json.dumps({"kind": "static", "value": config.seed}),
        "--output",
        json.dumps({"kind": "json", "path": output}),
        "--disable-console",
    ]


def _phases(config: FlowConfig, profile: dict[str, Any], constraint: dict[str, Any]) -> list[str]:
    """The profile with its warm-up, and what ends each of its loads."""
    warmup = {"value": config.performance.warmup_seconds}
    return [
        "--profile",
        json.dumps({**profile, "warmup": warmup}),
        "--constraint",
        json.dumps(constraint),
    ]


def time_limit(command: Sequence[str]) -> float:
    """Seconds after which a GuideLLM command line hangs: several times what its loads take,
    and time to start.
    """
    profile = _option(command, "--profile")
    # A search doubles or halves the concurrency, and then halves the gap.
    loads = (
        len(profile["streams"])
        if "streams" in profile
        else 2 * math.ceil(math.log2(profile["max_streams"])) + 2
    )
    return loads * _lengths(command)[1] * LOAD_TIME_FACTOR + START_SECONDS


def silence_limit(command: Sequence[str]) -> float:
    """Seconds without a line in its log after which a GuideLLM command line hangs,
    however many loads it has.
    """
    return _lengths(command)[0] * LOAD_TIME_FACTOR + SILENT_SECONDS


def _lengths(command: Sequence[str]) -> tuple[float, float]:
    """Seconds that one load of the command line lasts at least and at most."""
    constraint = _option(command, "--constraint")
    if constraint["kind"] == "max_duration":
        return constraint["seconds"], constraint["seconds"]
    return constraint["least_seconds"], constraint["max_seconds"]


def _option(command: Sequence[str], name: str) -> dict[str, Any]:
    return json.loads(command[command.index(name) + 1])
