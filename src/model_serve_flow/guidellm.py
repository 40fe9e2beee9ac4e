"""GuideLLM as a child process: its command lines, its run, and the CPU time that it took from the machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from model_serve_flow.config import FlowConfig, Objectives
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.machine import usable_cores
from model_serve_flow.serving import Server, log_tail

SAMPLE_SECONDS = 0.5
# A GuideLLM process is one Python event loop: it cannot use more than one core, and close to that its clock runs late.
BUSY_SHARE_OF_A_CORE = 0.8
# Where the server computes on the same CPU, the client's share is what the server may have lost of its throughput.
TAKEN_SHARE_OF_THE_MACHINE = 0.1


def load_command(config: FlowConfig, url: str, model_name: str, tokenizer: str, output: str) -> list[str]:
    """The `guidellm run` command line of the load points: all of them, then all again, `performance.repeats` times.

    In turns, and not each point repeated at once, because a machine that slows down or speeds up during the measurement
    then does so for every load point alike.
    """
    load = config.performance
    profile = {"kind": "concurrent", "streams": list(load.concurrency) * load.repeats}
    return [*_command(config, url, model_name, tokenizer, output), *_phases(config, profile, load.seconds)]


def search_command(
    config: FlowConfig, objectives: Objectives, url: str, model_name: str, tokenizer: str, output: str
) -> list[str]:
    """The `guidellm run` command line of the goodput search: requests, warm-up and seed of the load points."""
    profile = {
        "kind": "goodput",
        "target_attainment": objectives.attainment,
        "initial_streams": objectives.initial_streams,
        "max_streams": objectives.max_streams,
        "tolerance": objectives.tolerance,
    }
    # GuideLLM compares its `tpot_ms` with a request's mean inter-token latency, the first token left out.
    slo = {"ttft_ms": objectives.ttft_ms, "tpot_ms": objectives.itl_ms}
    return [
        *_command(config, url, model_name, tokenizer, output),
        *_phases(config, profile, objectives.seconds),
        "--metrics",
        json.dumps({"kind": "generative", "slo": slo}),
    ]


def _command(config: FlowConfig, url: str, model_name: str, tokenizer: str, output: str) -> list[str]:
    """What both command lines share: the endpoint, the requests and the output."""
    load = config.performance
    trusted = {"load_kwargs": {"trust_remote_code": True}} if config.model.trust_remote_code else {}
    return [
        sys.executable,
        "-m",
        "guidellm",
        "run",
        "--backend",
        json.dumps({"kind": "openai_http", "target": url, "model": model_name, "request_format": "/v1/completions"}),
        "--tokenizer",
        json.dumps({"kind": "huggingface_auto", "model": tokenizer, **trusted}),
        "--data",
        json.dumps(
            {"kind": "synthetic_text", "prompt_tokens": load.prompt_tokens, "output_tokens": load.output_tokens}
        ),
        "--seed",
        json.dumps({"kind": "static", "value": config.seed}),
        "--output",
        json.dumps({"kind": "json", "path": output}),
        "--disable-console",
    ]


def _phases(config: FlowConfig, profile: dict[str, Any], seconds: float) -> list[str]:
    """The profile with its warm-up, and the length of each of its loads: `seconds` after the warm-up."""
    warmup = config.performance.warmup_seconds
    return [
        "--profile",
        json.dumps({**profile, "warmup": {"value": warmup}}),
        "--constraint",
        json.dumps({"kind": "max_duration", "seconds": seconds + warmup}),
    ]


def run_guidellm(flow: Flow, server: Server, command: list[str], output: Path) -> ClientCpu:
    """Runs a GuideLLM command line that writes `output` to its end; its log carries the output's name.

    Returns:
        The CPU time its processes took, sampled while it ran.

    Raises:
        FlowError: it failed or wrote nothing; its last lines are shown.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    log = flow.workspace.logs / f"{output.stem}-{server.model_name}.log"
    environment = {
        **os.environ,
        "GUIDELLM__MAX_WORKER_PROCESSES": str(flow.config.performance.client_processes),
        "HF_HUB_OFFLINE": "1",
    }
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
    """CPU seconds of every process of the load generator over time: it runs beside the server.

    Attributes:
        samples: process id -> (seconds since the epoch, CPU seconds used until then), rising, from its start on.
    """

    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def watch(cls, child: subprocess.Popen[bytes]) -> ClientCpu:
        """Samples the child and its children until it ends; kills it if the watching is interrupted."""
        record, process = cls(), psutil.Process(child.pid)
        try:
            while child.poll() is None:
                record._sample(process)
                time.sleep(SAMPLE_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        return record

    def _sample(self, process: psutil.Process) -> None:
        # A process that ends between two samples keeps its last reading.
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times, started = member.cpu_times(), (member.create_time(), 0.0)
                    samples = self.samples.setdefault(member.pid, [started])
                    samples.append((time.time(), times.user + times.system))

    def seconds(self, start: float, end: float) -> dict[int, float]:
        """Process id -> CPU seconds between two times (seconds since the epoch)."""
        import numpy as np

        used = {}
        for process, samples in self.samples.items():
            times, cpu_seconds = zip(*samples, strict=True)
            used[process] = float(np.diff(np.interp([start, end], times, cpu_seconds))[0])
        return used

    def share(self, start: float, end: float) -> float:
        """CPU seconds between two times (seconds since the epoch) / (wall seconds x cores of this machine)."""
        return sum(self.seconds(start, end).values()) / (end - start) / usable_cores()

    def limited(self, start: float, end: float, device: Literal["cpu", "gpu"]) -> bool:
        """Whether what was measured between two times says something about the load generator and not the server.

        Two measured facts decide:

        - One of its processes used at least 80 % of a core. It sends requests and stamps the times of tokens in one
          event loop, which cannot use more than one core: near that, requests go out and tokens are stamped late.
        - Only with device `cpu`: all its processes together used at least 10 % of the machine. The server could have
          used every core, so it may have lost up to this share of its throughput. (GuideLLM's ten worker processes
          by default took 39 % of a two-core machine and 22 % of the server's tokens/s; one takes about 4 %.)
        """
        busiest = max(self.seconds(start, end).values(), default=0.0) / (end - start)
        if busiest >= BUSY_SHARE_OF_A_CORE:
            return True
        return device == "cpu" and self.share(start, end) >= TAKEN_SHARE_OF_THE_MACHINE
