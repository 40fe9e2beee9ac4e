"""Starts a server by its command line, without a profile: for lessons and benchmarks."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from model_serve_flow.errors import FlowError
from model_serve_flow.system import processes

if TYPE_CHECKING:
    from openai import OpenAI

START_SECONDS = 240.0
REQUEST_SECONDS = 600.0


class LocalServer:
    """A server on this machine, from its start until `stop`.

    Args:
        command: its command line. Its output names its address: "Serving base at http://…".
        variables: added to its environment.
        api_key: that its clients send.
        announced: the words before the address.
        seconds: it may take so long to start.

    Raises:
        FlowError: it ended, or named no address in time; the message shows its output.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str] | None = None,
        *,
        api_key: str = "none",
        announced: str = " at ",
        seconds: float = START_SECONDS,
    ) -> None:
        self.command, self.api_key = list(command), api_key
        with tempfile.NamedTemporaryFile("wb", delete=False) as log:
            self._log = Path(log.name)
            self.process = psutil.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})},
                preexec_fn=processes.end_with_parent,
            )
        try:
            self.url = self._address(announced, time.monotonic() + seconds)
        except BaseException:
            self.stop()
            raise

    def output(self) -> str:
        """Returns what the server has printed."""
        return self._log.read_text(errors="replace")

    def client_of(self, url: str, api_key: str = "") -> httpx.Client:
        """Makes a client that sends a key and knows no proxy; the caller closes it."""
        headers = {"Authorization": f"Bearer {api_key or self.api_key}"}
        return httpx.Client(base_url=url, headers=headers, timeout=REQUEST_SECONDS, trust_env=False)

    @cached_property
    def client(self) -> httpx.Client:
        """A client of the server."""
        return self.client_of(self.url)

    @cached_property
    def openai(self) -> OpenAI:
        """The stock client, which tries nothing twice."""
        from openai import OpenAI

        options = {"base_url": f"{self.url}/v1", "api_key": self.api_key, "max_retries": 0}
        return OpenAI(**options, http_client=self.client_of(""))

    def stop(self, seconds: float = 120.0) -> int:
        """Ends the server with SIGTERM, after `seconds` with SIGKILL; returns its exit code."""
        for client in ("client", "openai"):
            if client in vars(self):
                getattr(self, client).close()
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(psutil.TimeoutExpired):
            self.process.wait(seconds)
        if self.process.poll() is None:
            self.process.kill()
        self._log.unlink()
        return self.process.wait()

    def _address(self, announced: str, deadline: float) -> str:
        while not (found := re.search(f"{re.escape(announced)}(http\\S+)\\s", self.output())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                problem = f"{shlex.join(self.command)} did not start."
                raise FlowError(problem, f"Its output says why:\n{self.output()}")
            time.sleep(0.1)
        return found[1]
