"""Runs GuideLLM as a child process, and says when it hangs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.measure.guidellm.commands import silence_limit, time_limit
from model_serve_flow.measure.guidellm.driver import with_values
from model_serve_flow.serve.server import Server, log_tail
from model_serve_flow.system import environments, processes
from model_serve_flow.system.worker import Ended, JobProcess

DRIVER = (sys.executable, "-m", "model_serve_flow.measure.guidellm.driver")
GENERATOR_VARIABLE = "MODEL_SERVE_FLOW_LOAD_GENERATOR"  # marks every process of one load generator
SAMPLE_SECONDS = 0.5
STOP_SECONDS = 10
LAST_LINES = " Its last lines:\n"


@contextlib.contextmanager
def load_generator(flow: Flow) -> Iterator[LoadGenerator]:
    """A GuideLLM that imports while a server starts, and puts load on servers until the block ends.

    `with load_generator(flow) as guidellm, serve(flow, "base") as server:` starts both side by
    side.
    """
    generator = LoadGenerator(flow)
    try:
        yield generator
    finally:
        generator.stop()


class GeneratorHung(FlowError):
    """GuideLLM took far longer than its loads, or stopped in one of them."""


class LoadGenerator:
    """A running `driver`; `load_generator` starts and stops it."""

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
        self._driver = JobProcess(
            DRIVER, self._logs / "guidellm.log", variables, GENERATOR_VARIABLE
        )

    def run(self, server: Server, command: Sequence[str], output: Path) -> ClientCpu:
        """Runs a GuideLLM command line that writes `output`, with the server's key;
        its log carries the output's name.

        `output` is there only after a success.

        GuideLLM 0.8.1 can wait for ever at the end of a load (its worker and its main process for
        each other; seen twice, in some hundreds of loads). It is then ended, and the whole job done
        once more by a new one.

        Returns:
            The CPU time that GuideLLM's processes took, sampled while it ran.

        Raises:
            FlowError: GuideLLM failed or wrote nothing (its last lines are shown), or twice took
                longer than `time_limit` or was silent for `silence_limit`.
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
        # GuideLLM takes the format from the suffix
        partial = output.with_name(f".{output.stem}.partial.json")
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

    def _do(
        self, job: dict[str, Any], server: Server, client: ClientCpu, seconds: float, silent: float
    ) -> bool:
        """Samples until the driver answers: whether the job succeeded.

        Whatever else happens ends the driver.
        """
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
                raise self._failure(
                    f"GuideLLM took longer than {seconds:.0f} s.", log, GeneratorHung
                )
            if now > written + silent:
                raise self._failure(
                    f"GuideLLM wrote nothing for {silent:.0f} s.", log, GeneratorHung
                )

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
        """Ends the driver and all its processes, after `patience` seconds also while it works;
        may be called again.
        """
        self._driver.stop(patience)
