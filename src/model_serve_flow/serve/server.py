"""A running server: its client, whether it is alive, and what its log says."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.serve.engine_log import root_cause
from model_serve_flow.serve.kernels import logged_kernels
from model_serve_flow.system import processes

LOG_TAIL_LINES = 25
LINES_BESIDE_A_CAUSE = 3

_VERSION = re.compile(r"LLM engine \(v([^)]+)\)")
_QUANTIZATION = re.compile(r"[ ,(]quantization=([\w-]+)")
_DTYPE = re.compile(r"[ ,(]dtype=torch\.(\w+)")
_KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
_OUR_LOOK = re.compile(r'"GET /(?:health|metrics) HTTP')


class ServerGone(FlowError):
    """The engine ended, or hung and was ended, while it was needed."""


@dataclass(frozen=True)
class Server:
    """A running vLLM: where it listens, what it serves, and what its log says.

    Attributes:
        api_key: sent by every client; kept out of what is printed of a server.
        exit_status: of the process, as `subprocess.Popen.poll` gives it.
        hung: set when the watchdog ended it.
        arguments: those of `engine_arguments` that it was started with; none: not known.
    """

    url: str
    model_name: str
    api_key: str = field(repr=False)
    folder: Path
    log: Path
    process: psutil.Process
    start_seconds: float
    exit_status: Callable[[], int | None] = field(default=lambda: None, repr=False)
    hung: threading.Event = field(default_factory=threading.Event, repr=False)
    arguments: tuple[str, ...] | None = None

    def client(self, timeout: float | None = 120.0) -> httpx.Client:
        """An HTTP client of this server that carries its key; the caller closes it."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def require_alive(self) -> None:
        """ServerGone, with the cause as its log gives it,
        if the server ended or was ended because it hung.
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
            f"vLLM {problem}. {evidence(self.log, by_itself=status is not None and status >= 0)}",
            f"\nThe whole log: {self.log}. What was finished is kept: run again to go on.",
        )

    def facts(self) -> EngineFacts:
        """What the engine says it did, and its peak memory until now.

        Raises:
            FlowError: the log does not name the engine's version, so it cannot be trusted to name
                its kernels.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace")
        version = _VERSION.search(text)
        if version is None:
            raise FlowError(f"{self.log} does not name the engine's version.", "Is it vLLM's log?")
        quantization = _QUANTIZATION.search(text)
        dtype = _DTYPE.search(text)
        cache = _KV_CACHE.search(text)
        return EngineFacts(
            version=version[1],
            quantization=None
            if quantization is None or quantization[1] == "None"
            else quantization[1],
            dtype=dtype[1] if dtype else None,
            kernels=logged_kernels(text),
            kv_cache_tokens=int(cache[1].replace(",", "")) if cache else None,
            start_seconds=self.start_seconds,
            peak_memory_bytes=processes.peak_memory(processes.family(self.process.pid)),
        )


def evidence(log: Path, *, by_itself: bool = True) -> str:
    """Why vLLM ended, first; its last log lines,
    and more of them where the log does not say why.
    """
    cause = root_cause(log.read_text(encoding="utf-8", errors="replace"), ended_by_itself=by_itself)
    if cause is None:
        return f"Its last log lines:\n{log_tail(log)}"
    return f"The cause:\n{cause}\nIts last log lines:\n{log_tail(log, LINES_BESIDE_A_CAUSE)}"


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, without those that only say that we looked whether the server is
    well.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if not _OUR_LOOK.search(line)][-lines:])
