"""A child process that does one job after the other, so that what it imports is imported once.

A job is one line of JSON on its stdin, the answer one line of JSON on its stdout; it ends when its
stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil

from model_serve_flow.system import processes

# to end by itself; what is left is killed, so that Ctrl-C is through within ten seconds
LEFTOVER_SECONDS = 4


class Ended(Exception):
    """The process ended instead of answering.

    Attributes:
        status: its exit status; negative: the signal that ended it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


# --- The parent's side ---


class JobProcess:
    """A started program that calls `answer_jobs`; it ends with its parent, however that ends.

    Args:
        command: its command line.
        log: where its output goes, but for what a job sends elsewhere.
        variables: its environment.
        variable: name of one of them: its value marks the process and all that it starts.
    """

    def __init__(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str], variable: str
    ) -> None:
        self.log, self.variable, self.mark = log, variable, variables[variable]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                bufsize=0,
                env=variables,
                start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )
        jobs, answers = self._child.stdin, self._child.stdout
        assert jobs is not None and answers is not None  # pipes
        self._jobs, self._answers = jobs, answers

    @property
    def pid(self) -> int:
        return self._child.pid

    def do(self, job: Mapping[str, Any], seconds: float, meanwhile: Callable[[], None]) -> Any:
        """Sends a job and returns the answer; calls `meanwhile`, which may raise,
        every `seconds` until it is there.

        Raises:
            Ended: the process ended, now or before.
        """
        try:
            self._jobs.write(json.dumps(job).encode() + b"\n")
        except (BrokenPipeError, ValueError):  # it ended by itself, or was stopped
            raise Ended(self._child.wait()) from None
        while (
            not (answered := select.select([self._answers], [], [], seconds)[0])
            and self._child.poll() is None
        ):
            meanwhile()
        if not answered or not (line := self._answers.readline()):
            raise Ended(self._child.wait())
        return json.loads(line)

    def marked(self) -> list[psutil.Process]:
        """The living processes that carry its mark, whatever their parent or session:
        itself and all it started.
        """
        return processes.marked(self.variable, self.mark.__eq__)

    def started(self) -> list[psutil.Process]:
        """As `marked`, without itself."""
        return [process for process in self.marked() if process.pid != self.pid]

    def stop(self, patience: float = 0) -> None:
        """Ends it and all it started, after `patience` seconds also while it works;
        may be called again.
        """
        self._jobs.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        processes.end(self.marked, LEFTOVER_SECONDS)
        self._child.wait()
        self._answers.close()


# --- Its own side ---


def take_streams() -> tuple[TextIO, TextIO]:
    """Stdin and stdout for jobs and answers alone:
    what anything else in the process prints goes to stderr.
    """
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return jobs, answers


def answer_jobs(jobs: TextIO, answers: TextIO, do: Callable[..., Any]) -> None:
    """Answers every job with what `do(**job)` returns, until there are no more."""
    for line in jobs:
        answers.write(json.dumps(do(**json.loads(line))) + "\n")
        answers.flush()


@contextlib.contextmanager
def written_to(log: Path) -> Iterator[None]:
    """Sends the output of this process, and of those it starts meanwhile, to a new log."""
    before = os.dup(1)
    with log.open("wb") as sink:
        _point_output_to(sink.fileno())
    try:
        yield
    finally:
        _point_output_to(before)
        os.close(before)


def _point_output_to(descriptor: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
