"""Runs a child process that does one job after the other, so that it imports only once.

A job is one line of JSON on the child's stdin. The answer is one line of JSON on its stdout. The
child ends when its stdin ends.
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

# Time for processes to end by themselves. The rest is killed, so that Ctrl-C takes at most ten
# seconds.
LEFTOVER_SECONDS = 4


class Ended(Exception):
    """The process ended instead of answering.

    Attributes:
        status: its exit status; if negative, the number of the signal that ended it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


# --- The parent's side ---


class JobProcess:
    """A child process that calls `answer_jobs`; it ends whenever its parent ends.

    Args:
        command: its command line.
        log: the file for its output, except output that a job redirects.
        variables: its environment.
        variable: name of a variable in `variables`, whose value marks the process and its children.
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
        """Sends a job, waits, and returns the answer.

        Args:
            job: JSON-compatible keyword arguments.
            seconds: interval between two calls of `meanwhile`.
            meanwhile: called while the job runs; may raise.

        Raises:
            Ended: the process ended, now or before.
        """
        try:
            self._jobs.write(json.dumps(job).encode() + b"\n")
        except (BrokenPipeError, ValueError):  # the process ended by itself or was stopped
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
        """Lists the living processes with its mark: the process and all that it started.

        Parent and session do not matter.
        """
        return processes.marked(self.variable, self.mark.__eq__)

    def started(self) -> list[psutil.Process]:
        """Lists `marked` without the process."""
        return [process for process in self.marked() if process.pid != self.pid]

    def stop(self, patience: float = 0) -> None:
        """Stops the process and all that it started; may be called again.

        Args:
            patience: seconds to wait for a process that is still working.
        """
        self._jobs.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        processes.end(self.marked, LEFTOVER_SECONDS)
        self._child.wait()
        self._answers.close()


# --- The child's side ---


def take_streams() -> tuple[TextIO, TextIO]:
    """Reserves stdin and stdout for jobs and answers; other prints go to stderr."""
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return jobs, answers


def answer_jobs(jobs: TextIO, answers: TextIO, do: Callable[..., Any]) -> None:
    """Answers every job with the result of `do(**job)`, until there are no more jobs."""
    for line in jobs:
        answers.write(json.dumps(do(**json.loads(line))) + "\n")
        answers.flush()


@contextlib.contextmanager
def written_to(log: Path) -> Iterator[None]:
    """Sends the output of this process and of its new children to a new log during the block."""
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
