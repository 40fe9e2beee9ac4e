"""Runs steps: `Executor` is the interface, `InProcess` and `WorkerProcess` implement it."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Protocol

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelFacts, ModelOptions
from serving_from_scratch.core.step import Outcome, Step, StepResult

KEY_VARIABLE = "SERVING_FROM_SCRATCH_API_KEY"
START_SECONDS = 300.0  # in which a worker must load the model
MODULE = "serving_from_scratch.engine.worker"


class WorkerDied(ServingError):
    """The process that computes the steps has ended; its cache is lost."""


class Runner(Protocol):
    """Computes steps; see `serving_from_scratch.model.runner.ModelRunner`."""

    facts: ModelFacts

    def run(self, step: Step) -> tuple[Outcome, ...]: ...


class Executor(Protocol):
    """Computes one step after the other.

    `step` and `ready` raise WorkerDied; after it, only `restart` and `close` are allowed.
    """

    facts: ModelFacts

    def step(self, step: Step) -> StepResult: ...

    def ready(self, seconds: float) -> bool:
        """Waits at most `seconds` for the model; returns whether it can compute."""

    def restart(self) -> None:
        """Starts again with an empty cache; does not wait for the model."""

    def close(self) -> None: ...


class InProcess:
    """Computes steps in the caller's process, for notebooks and tests."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.facts = runner.facts

    def step(self, step: Step) -> StepResult:
        started = time.perf_counter()
        outcomes = self._runner.run(step)
        return StepResult(outcomes, time.perf_counter() - started)

    def ready(self, seconds: float) -> bool:
        return True

    def restart(self) -> None:
        """Has nothing to restart."""

    def close(self) -> None:
        """Has nothing to close."""


class WorkerProcess:
    """Computes steps in a process of its own, and watches it.

    Args:
        options: of the model.
        step_seconds: a worker that is silent for longer during a step is killed.
    """

    facts: ModelFacts

    def __init__(self, options: ModelOptions, step_seconds: float = 30.0) -> None:
        self.options, self.step_seconds = options, step_seconds
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def step(self, step: Step) -> StepResult:
        self.send(step)
        return self.receive()

    def ready(self, seconds: float) -> bool:
        if self._loaded:
            # The worker says nothing between steps: anything to read means that it has ended.
            if self.pipe.poll(seconds):
                self.receive()
            return True
        if self.pipe.poll(seconds):
            self.facts = self.receive()
            self._loaded = True
        elif time.monotonic() - self._started > START_SECONDS:
            raise self._died(f"The model was not loaded after {START_SECONDS:g} seconds.")
        return self._loaded

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """Kills the process and waits until it has ended."""
        self.pipe.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        variables = {"OMP_WAIT_POLICY": "passive", **os.environ}
        variables.pop(KEY_VARIABLE, None)
        with theirs:
            command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=variables, pass_fds=[theirs.fileno()]
            )
        # Reads and writes time out after step_seconds, even in the middle of a message.
        limit = struct.pack("ll", int(self.step_seconds), int(self.step_seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, limit)
        self.pipe = Connection(ours.detach())
        self._loaded, self._started = False, time.monotonic()
        self.send(self.options)

    def send(self, message: Any) -> None:
        """Sends the worker a message; raises WorkerDied."""
        with self._watched():
            try:
                self.pipe.send(message)
            except ConnectionError:
                self.receive()  # what the worker said before it stopped taking messages

    def receive(self) -> Any:
        """Waits for the worker's next message; raises WorkerDied."""
        with self._watched():
            message = self.pipe.recv()
        if isinstance(message, ServingError):
            raise self._died(message.problem, message.hint)
        return message

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Raises WorkerDied if the worker is silent for too long, or has closed its pipe."""
        try:
            yield
        except BlockingIOError as error:
            problem = f"A step was not computed within {self.step_seconds:g} seconds."
            raise self._died(problem) from error
        except (EOFError, OSError) as error:
            raise self._died("") from error

    def _died(self, problem: str, hint: str = "") -> WorkerDied:
        """Kills what remains of the worker, and says how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0 if problem else 1)
        self._process.kill()
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return WorkerDied(problem or f"The worker process ended ({how}).", hint)
