"""Builds GuideLLM's command lines and the time limits of each."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from model_serve_flow.flow.profile import FlowConfig, Objectives

# GuideLLM hangs if it takes longer than this many times the length of its loads, plus the start.
LOAD_TIME_FACTOR = 3
START_SECONDS = 180
# GuideLLM writes to its log when a load starts, every ten seconds, and when the load ends. It hangs
# if it writes nothing for this many seconds plus LOAD_TIME_FACTOR times the length of one load.
SILENT_SECONDS = 90


def load_command(
    config: FlowConfig,
    url: str,
    model_name: str,
    tokenizer: str,
    output: str,
    streams: Sequence[int] | None = None,
) -> list[str]:
    """Builds the `guidellm run` command line of one turn, in which every load point runs once.

    A load lasts until enough requests have completed. This constraint is our own (`constraint`);
    the driver registers it. To repeat the command with stock GuideLLM, use
    `kind=max_duration,seconds=...` instead.

    Args:
        config: the profile.
        url: base URL of the server.
        model_name: the name under which the model is served.
        tokenizer: the checkpoint's folder.
        output: path of the JSON file that GuideLLM writes.
        streams: the concurrencies to measure; None: all of the profile.
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
    """Builds the `guidellm run` command line of the goodput search.

    Requests, warm-up and seed are the same as at the load points.

    Args:
        config: the profile.
        objectives: the latency objectives and the range of concurrency to search.
        url, model_name, tokenizer, output: as for `load_command`.
    """
    profile = {
        "kind": "goodput",
        "target_attainment": objectives.attainment,
        "initial_streams": objectives.initial_streams,
        "max_streams": objectives.max_streams,
        "tolerance": objectives.tolerance,
    }
    # GuideLLM compares its `tpot_ms` with a request's mean ITL, without the first token.
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
    """Builds what both command lines share: the endpoint, the requests and the output."""
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
    """Builds the options that set the warm-up and the end of each load."""
    warmup = {"value": config.performance.warmup_seconds}
    return [
        "--profile",
        json.dumps({**profile, "warmup": warmup}),
        "--constraint",
        json.dumps(constraint),
    ]


def time_limit(command: Sequence[str]) -> float:
    """Computes the seconds after which a GuideLLM command counts as hung.

    The limit is several times the length of its loads, plus the time to start.
    """
    profile = _option(command, "--profile")
    # A search doubles or halves the concurrency first, and then halves the gap.
    loads = (
        len(profile["streams"])
        if "streams" in profile
        else 2 * math.ceil(math.log2(profile["max_streams"])) + 2
    )
    return loads * _lengths(command)[1] * LOAD_TIME_FACTOR + START_SECONDS


def silence_limit(command: Sequence[str]) -> float:
    """Computes the seconds without a log line after which a GuideLLM command counts as hung.

    The limit does not depend on the number of loads.
    """
    return _lengths(command)[0] * LOAD_TIME_FACTOR + SILENT_SECONDS


def _lengths(command: Sequence[str]) -> tuple[float, float]:
    """Returns the least and the most seconds that one load of the command lasts."""
    constraint = _option(command, "--constraint")
    if constraint["kind"] == "max_duration":
        return constraint["seconds"], constraint["seconds"]
    return constraint["least_seconds"], constraint["max_seconds"]


def _option(command: Sequence[str], name: str) -> dict[str, Any]:
    return json.loads(command[command.index(name) + 1])
