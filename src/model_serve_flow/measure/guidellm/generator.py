"""Runs GuideLLM as a child process and detects when GuideLLM hangs."""

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
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.server import log_tail
from model_serve_flow.system import environments, processes
from model_serve_flow.system.variables import variable
from model_serve_flow.system.worker import Ended, JobProcess

DRIVER = (sys.executable, "-m", "model_serve_flow.measure.guidellm.driver")
GENERATOR_VARIABLE = variable("load_generator")  # marks every process of one load generator
SAMPLE_SECONDS = 0.5
STOP_SECONDS = 10
# GuideLLM 0.8.1 logs this, and writes no result, when a load ended before any request completed.
NO_REQUEST_COMPLETED = "No request produced a determined verdict"


@contextlib.contextmanager
def load_generator(flow: Flow) -> Iterator[LoadGenerator]:
    """Starts a GuideLLM that puts load on servers until the block ends.

    GuideLLM imports while a server starts. This starts both side by side:

        with load_generator(flow) as guidellm, serve(flow, "base") as server:
    """
    generator = LoadGenerator(flow)
    try:
        yield generator
    finally:
        generator.stop()


class GeneratorFailed(FlowError):
    """GuideLLM failed; the message shows the end of its log.

    Args:
        what: the failure in one sentence.
        log: path of the log.
    """

    def __init__(self, what: str, log: Path) -> None:
        self.what = what
        super().__init__(f"{what} Its last lines:\n{log_tail(log)}", f"\nThe whole log: {log}")


class NoRequestCompleted(GeneratorFailed):
    """GuideLLM gave up a search, because no request completed."""


class GeneratorHung(GeneratorFailed):
    """GuideLLM took far longer than its loads, or made no progress in a load."""


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
            "LOGURU_DIAGNOSE": "NO",  # else it logs the values of variables, such as the API key
            GENERATOR_VARIABLE: uuid.uuid4().hex,
        }
        self._driver = JobProcess(
            DRIVER, self._logs / "guidellm.log", variables, GENERATOR_VARIABLE
        )

    def run(self, endpoint: Endpoint, command: Sequence[str], output: Path) -> ClientCpu:
        """Runs a GuideLLM command line with the endpoint's key.

        GuideLLM 0.8.1 can hang at the end of a load, when its worker and its main process wait for
        each other (seen twice in some hundreds of loads). GuideLLM is then stopped, and a new
        GuideLLM repeats the whole job once.

        Args:
            endpoint: what GuideLLM puts load on.
            command: from `load_command` or `search_command`.
            output: the JSON file, written only on success. The log's name begins like its name.

        Returns:
            The CPU time of GuideLLM's processes.

        Raises:
            GeneratorHung: GuideLLM took too long, or wrote nothing for too long, twice.
            NoRequestCompleted: GuideLLM gave up a search.
            GeneratorFailed: GuideLLM failed in another way.
            ServerGone: the server ended.
        """
        try:
            return self._run(endpoint, command, output)
        except GeneratorHung as hung:
            print(f"{hung.what} It is started again, and measures this once more.")
            self._start()
            return self._run(endpoint, command, output)

    def _run(self, endpoint: Endpoint, command: Sequence[str], output: Path) -> ClientCpu:
        output.parent.mkdir(parents=True, exist_ok=True)
        # GuideLLM chooses the format by the suffix
        partial = output.with_name(f".{output.stem}.partial.json")
        output.unlink(missing_ok=True)
        log = self._logs / f"{output.stem}-{endpoint.model_name}.log"
        log.unlink(missing_ok=True)
        arguments = with_values(command[command.index("run") :], "--output", path=str(partial))
        try:
            client = ClientCpu.begin(processes.family(self._driver.pid))
            job = {"arguments": arguments, "api_key": endpoint.api_key, "log": str(log)}
            limits = time_limit(command), silence_limit(command)
            if not self._do(job, endpoint, client, *limits) or not partial.is_file():
                raise self._failure("GuideLLM failed.", log)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
        return client

    def _do(
        self,
        job: dict[str, Any],
        endpoint: Endpoint,
        client: ClientCpu,
        seconds: float,
        silent: float,
    ) -> bool:
        """Runs a job and samples the CPU meanwhile; returns whether the job succeeded.

        Any other outcome stops the driver.
        """
        started, log = time.monotonic(), Path(job["log"])
        written, size = started, 0

        def look() -> None:
            nonlocal written, size
            client.sample(processes.family(self._driver.pid))
            endpoint.require_alive()
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

    def _failure(
        self, what: str, log: Path, kind: type[GeneratorFailed] = GeneratorFailed
    ) -> GeneratorFailed:
        """Builds an error with the end of the job's log, or of the driver's log if no job began."""
        log = log if log.is_file() and log.stat().st_size else self._driver.log
        gave_up = kind is GeneratorFailed and NO_REQUEST_COMPLETED in log_tail(log)
        return (NoRequestCompleted if gave_up else kind)(what, log)

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """Stops the driver and all its processes; may be called again.

        Args:
            patience: seconds to wait for a driver that is still working.
        """
        self._driver.stop(patience)
