"""GuideLLM as a child process: its command lines, its runs, and the CPU time that they took from the machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from model_serve_flow import environments, processes
from model_serve_flow.config import FlowConfig, Objectives
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.guidellm_driver import with_values
from model_serve_flow.job_process import Ended, JobProcess
from model_serve_flow.machine import usable_cores
from model_serve_flow.serving import Server, log_tail

DRIVER = (sys.executable, "-m", "model_serve_flow.guidellm_driver")
GENERATOR_VARIABLE = "MODEL_SERVE_FLOW_LOAD_GENERATOR"  # marks every process of one load generator
SAMPLE_SECONDS = 0.5
STOP_SECONDS = 10
LAST_LINES = " Its last lines:\n"
# A run of GuideLLM hangs when it takes longer than this many times its loads, beside the time to start.
LOAD_TIME_FACTOR = 3
START_SECONDS = 180
# It writes to its log when a load starts and when it ends, and every ten seconds between: nothing for this many seconds
# and the same multiple of one load is a hang that need not be waited for any longer.
SILENT_SECONDS = 90
# A GuideLLM process is one Python event loop: it cannot use more than one core, and close to that its clock runs late.
BUSY_SHARE_OF_A_CORE = 0.8
# Where the server computes on the same CPU, the client's share is what the server may have lost of its throughput.
TAKEN_SHARE_OF_THE_MACHINE = 0.1


def load_command(
    config: FlowConfig, url: str, model_name: str, tokenizer: str, output: str, streams: Sequence[int] | None = None
) -> list[str]:
    """The `guidellm run` command line of one turn: every load point of the profile once, or those of `streams`.

    A load lasts until enough requests have completed. That constraint is ours (`guidellm_constraint`); the driver
    registers it. To repeat the line with the stock program, give `kind=max_duration,seconds=...` in its place.
    """
    load, warmup = config.performance, config.performance.warmup_seconds
    profile = {"kind": "concurrent", "streams": list(load.concurrency if streams is None else streams)}
    constraint = {
        "kind": "enough_requests",
        "requests": load.min_requests,
        "warmup_seconds": warmup,
        "least_seconds": load.seconds + warmup,
        "max_seconds": load.longest_seconds + warmup,
    }
    return [*_command(config, url, model_name, tokenizer, output), *_phases(config, profile, constraint)]


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
    constraint = {"kind": "max_duration", "seconds": objectives.seconds + config.performance.warmup_seconds}
    return [
        *_command(config, url, model_name, tokenizer, output),
        *_phases(config, profile, constraint),
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


def _phases(config: FlowConfig, profile: dict[str, Any], constraint: dict[str, Any]) -> list[str]:
    """The profile with its warm-up, and what ends each of its loads."""
    warmup = {"value": config.performance.warmup_seconds}
    return ["--profile", json.dumps({**profile, "warmup": warmup}), "--constraint", json.dumps(constraint)]


@contextlib.contextmanager
def load_generator(flow: Flow) -> Iterator[LoadGenerator]:
    """A GuideLLM that imports while a server starts, and puts load on servers until the block ends.

    `with load_generator(flow) as guidellm, serve(flow, "base") as server:` starts both side by side.
    """
    generator = LoadGenerator(flow)
    try:
        yield generator
    finally:
        generator.stop()


class GeneratorHung(FlowError):
    """GuideLLM took far longer than its loads, or stopped in one of them."""


class LoadGenerator:
    """A running `guidellm_driver`; `load_generator` starts and stops it."""

    def __init__(self, flow: Flow) -> None:
        self._logs = flow.workspace.logs
        self._workers = flow.config.performance.client_processes
        self._direct = environments.direct(flow.config.engine.host)
        self._start()

    def _start(self) -> None:
        variables = {
            **os.environ,
            **self._direct,
            "GUIDELLM__MAX_WORKER_PROCESSES": str(self._workers),
            "GUIDELLM__MP_CONTEXT_TYPE": "forkserver",
            "HF_HUB_OFFLINE": "1",
            "LOGURU_DIAGNOSE": "NO",  # it would log the values of variables, the API key among them
            GENERATOR_VARIABLE: uuid.uuid4().hex,
        }
        self._driver = JobProcess(DRIVER, self._logs / "guidellm.log", variables, GENERATOR_VARIABLE)

    def run(self, server: Server, command: Sequence[str], output: Path) -> ClientCpu:
        """Runs a GuideLLM command line that writes `output`, with the server's key; its log carries the output's name.

        `output` is there only after a success.

        GuideLLM 0.8.1 can wait for ever at the end of a load (its worker and its main process for each other; seen
        twice, in some hundreds of loads). It is then ended, and the whole job done once more by a new one.

        Returns:
            The CPU time that GuideLLM's processes took, sampled while it ran.

        Raises:
            FlowError: GuideLLM failed or wrote nothing (its last lines are shown), or twice took longer than
                `time_limit` or was silent for `silence_limit`.
            ServerGone: the server ended meanwhile.
        """
        try:
            return self._run(server, command, output)
        except GeneratorHung as hung:
            problem = hung.problem.partition(LAST_LINES)[0]
            print(f"{problem} It is started again, and measures this once more.")
            self._start()
            return self._run(server, command, output)

    def _run(self, server: Server, command: Sequence[str], output: Path) -> ClientCpu:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.stem}.partial.json")  # GuideLLM takes the format from the suffix
        output.unlink(missing_ok=True)
        log = self._logs / f"{output.stem}-{server.model_name}.log"
        log.unlink(missing_ok=True)
        arguments = with_values(command[command.index("run") :], "--output", path=str(partial))
        try:
            client = ClientCpu.begin(processes.family(self._driver.pid))
            job = {"arguments": arguments, "api_key": server.api_key, "log": str(log)}
            limits = time_limit(command), silence_limit(command)
            if not self._do(job, server, client, *limits) or not partial.is_file():
                raise self._failure("GuideLLM failed.", log)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        return client

    def _do(self, job: dict[str, Any], server: Server, client: ClientCpu, seconds: float, silent: float) -> bool:
        """Samples until the driver answers: whether the job succeeded. Whatever else happens ends the driver."""
        started, log = time.monotonic(), Path(job["log"])
        written, size = started, 0

        def look() -> None:
            nonlocal written, size
            client.sample(processes.family(self._driver.pid))
            server.require_alive()
            now, grown = time.monotonic(), log.stat().st_size if log.is_file() else 0
            if grown != size:
                size, written = grown, now
            if now > started + seconds:
                raise self._failure(f"GuideLLM took longer than {seconds:.0f} s.", log, GeneratorHung)
            if now > written + silent:
                raise self._failure(f"GuideLLM wrote nothing for {silent:.0f} s.", log, GeneratorHung)

        try:
            return self._driver.do(job, SAMPLE_SECONDS, look)
        except Ended as ended:
            self.stop(patience=0)
            raise self._failure(f"GuideLLM ended with exit code {ended.status}.", log) from None
        except BaseException:
            self.stop(patience=0)
            raise

    def _failure(self, problem: str, log: Path, kind: type[FlowError] = FlowError) -> FlowError:
        """With the end of the job's log, or of the process's own if there was no job yet."""
        log = log if log.is_file() and log.stat().st_size else self._driver.log
        return kind(f"{problem}{LAST_LINES}{log_tail(log)}", f"\nThe whole log: {log}")

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """Ends the driver and all its processes, after `patience` seconds also while it works; may be called again."""
        self._driver.stop(patience)


def time_limit(command: Sequence[str]) -> float:
    """Seconds after which a GuideLLM command line hangs: several times what its loads take, and time to start."""
    profile = _option(command, "--profile")
    # A search doubles or halves the concurrency, and then halves the gap.
    loads = len(profile["streams"]) if "streams" in profile else 2 * math.ceil(math.log2(profile["max_streams"])) + 2
    return loads * _lengths(command)[1] * LOAD_TIME_FACTOR + START_SECONDS


def silence_limit(command: Sequence[str]) -> float:
    """Seconds without a line in its log after which a GuideLLM command line hangs, however many loads it has."""
    return _lengths(command)[0] * LOAD_TIME_FACTOR + SILENT_SECONDS


def _lengths(command: Sequence[str]) -> tuple[float, float]:
    """Seconds that one load of the command line lasts at least and at most."""
    constraint = _option(command, "--constraint")
    if constraint["kind"] == "max_duration":
        return constraint["seconds"], constraint["seconds"]
    return constraint["least_seconds"], constraint["max_seconds"]


def _option(command: Sequence[str], name: str) -> dict[str, Any]:
    return json.loads(command[command.index(name) + 1])


@dataclass
class ClientCpu:
    """CPU seconds of every process of the load generator over time: it runs beside the server.

    Attributes:
        samples: process id -> (seconds since the epoch, CPU seconds used until then), rising, from its start or that
            of the record on.
        sampled: seconds since the epoch of the last sample.
    """

    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    sampled: float = 0.0

    @classmethod
    def begin(cls, members: Iterable[psutil.Process]) -> ClientCpu:
        """A record that starts now, with what the processes have used before."""
        now = time.time()
        return cls({member.pid: [(now, processes.cpu_seconds([member]))] for member in members}, now)

    def sample(self, members: Iterable[psutil.Process]) -> None:
        """Adds what each process has used until now; one that is new started after the last sample."""
        before, self.sampled = self.sampled, time.time()
        for member in members:
            # A process that ends between two samples keeps its last reading.
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                started = min(max(member.create_time(), before), self.sampled)  # is known to about a second
                samples = self.samples.setdefault(member.pid, [(started, 0.0)])
                samples.append((self.sampled, times.user + times.system))

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
