"""Represents a running server: whether it is alive, and what it proves."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.engine import Engine
from model_serve_flow.system import processes

LOG_TAIL_LINES = 25
LINES_BESIDE_A_CAUSE = 3

_OUR_LOOK = re.compile(r'"GET /(?:health|metrics) HTTP')


class ServerGone(FlowError):
    """The engine ended while it was needed, or was killed because it hung."""


@dataclass(frozen=True)
class Server(Endpoint):
    """A running engine: where it listens, what it serves, and what it proves.

    The name of its model is 'base' or the candidate's, and its folder is the served checkpoint.

    Attributes:
        engine: what is known of the program.
        log: the file of the program's output.
        process: the server's main process.
        start_seconds: seconds from the start of the process to the first answer.
        exit_status: returns the process's exit status, as `subprocess.Popen.poll` does.
        hung: set when the watchdog killed the server.
        arguments: the `Engine.arguments` that the server was started with; None: not known.
    """

    log: Path
    process: psutil.Process
    start_seconds: float
    exit_status: Callable[[], int | None] = field(default=lambda: None, repr=False)
    hung: threading.Event = field(default_factory=threading.Event, repr=False)
    arguments: tuple[str, ...] | None = None
    engine: Engine = field(kw_only=True)

    def require_alive(self) -> None:
        """Checks that the server still runs.

        Raises:
            ServerGone: the server ended, or was killed because it hung; names the cause from its
                log.
        """
        status = self.exit_status()
        if status is None and not self.hung.is_set():
            return
        if self.hung.is_set():
            problem = (
                "hung: it owed a token and made no progress (engine.unresponsive_seconds), and was "
                "ended"
            )
        elif status is not None and status < 0:
            problem = (
                f"was ended by signal {-status} ({signal.Signals(-status).name}) while it was "
                "needed"
            )
        else:
            problem = f"ended with exit code {status} while it was needed"
        raise ServerGone(
            f"{self.engine.name} {problem}. "
            f"{evidence(self.engine, self.log, by_itself=status is not None and status >= 0)}",
            f"\nThe whole log: {self.log}. What was finished is kept: run again to go on.",
        )

    def facts(self) -> EngineFacts:
        """Returns what the server proves about its version, kernels and KV cache.

        Raises:
            FlowError: the server does not say its version.
        """
        return self.engine.facts(self)

    def peak_memory(self) -> int | None:
        """Measures the peak memory of the server's processes until now, in bytes."""
        return processes.peak_memory(processes.family(self.process.pid))


def evidence(engine: Engine, log: Path, *, by_itself: bool = True) -> str:
    """Describes why a server ended: the cause and its last log lines; without a cause, more lines.

    Args:
        engine: what is known of the program.
        log: the file of the program's output.
        by_itself: False for a server that was killed.
    """
    cause = engine.cause(log.read_text(encoding="utf-8", errors="replace"), by_itself=by_itself)
    if cause is None:
        return f"Its last log lines:\n{log_tail(log)}"
    return f"The cause:\n{cause}\nIts last log lines:\n{log_tail(log, LINES_BESIDE_A_CAUSE)}"


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """Returns the last lines of a log, without the lines of our own health checks."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if not _OUR_LOOK.search(line)][-lines:])
