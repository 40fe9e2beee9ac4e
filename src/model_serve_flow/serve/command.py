"""Starts any program with an OpenAI-compatible endpoint, as the profile describes it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import FlowConfig, Program
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.serve.engine import SERVE, Inherited

if TYPE_CHECKING:
    from model_serve_flow.serve.server import Server

VERSION_SECONDS = 60  # most time that a program may take to print its version
LONGEST_VERSION = 200  # characters
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Command:
    """The program of `engine.program` as the `Engine` of a profile.

    All that it proves is its version. It names no kernels, so nothing proves that a candidate's
    compressed weights computed, and 06 says so.
    """

    config: FlowConfig
    packages: tuple[str, ...] = ()
    counters: re.Pattern[str] | None = None

    @property
    def program(self) -> Program:
        assert self.config.engine.program is not None  # engine.kind: command needs it
        return self.config.engine.program

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def health(self) -> str:
        return self.program.health

    def require_installed(self) -> None:
        """Checks that the program, and the program that prints its version, can be started.

        Raises:
            FlowError: one is missing; names the key of the profile.
        """
        for key, command in (
            ("command", self.program.command),
            ("version.command", self.program.version.command),
        ):
            if command is not None and shutil.which(program := self._filled(command)[0]) is None:
                raise FlowError(
                    f"There is no program {program!r}, which engine.program.{key} starts.",
                    "Install it, extend PATH, or give its full path.",
                )

    def arguments(self, purpose: str = SERVE) -> tuple[str, ...]:
        """Returns the command line with its placeholders, and the variables; for any purpose."""
        variables = sorted(self.program.variables.items())
        return (*self.program.command, *(f"{name}={value}" for name, value in variables))

    def command(self, folder: Path, name: str, port: int, purpose: str = SERVE) -> list[str]:
        return self._filled(self.program.command, model=folder, served_name=name, port=port)

    def shown_command(self, name: str) -> str:
        words = {"model": ".", "served_name": name, "port": 8000, "python": "python"}
        return shlex.join(self._filled(self.program.command, **words))

    def _filled(self, command: tuple[str, ...], **values: Any) -> list[str]:
        """Fills in the placeholders whose values are known."""
        known = {"host": self.config.engine.host, "python": sys.executable, **values}
        return [
            _PLACEHOLDER.sub(lambda found: str(known.get(found[1], found[0])), argument)
            for argument in command
        ]

    def variables(self) -> dict[str, str]:
        return dict(self.program.variables)

    def keyed(self, key: str) -> dict[str, str]:
        return {self.program.key_variable: key} if self.program.key_variable else {}

    def inherited(self, environment: Mapping[str, str]) -> Inherited:
        """Passes everything on: which variables concern the program is not known."""
        return Inherited(dict(environment), dropped=(), recorded={})

    def facts(self, server: Server) -> EngineFacts:
        """Asks the program for its version, and measures its peak memory until now.

        Raises:
            FlowError: the program does not say its version as `engine.program.version` expects.
        """
        version = self.program.version
        found = self._printed() if version.command is not None else self._answered(server)
        return EngineFacts(
            name=self.name,
            version=found[:LONGEST_VERSION],
            quantization=None,
            kernels=(),
            names_kernels=False,
            kv_cache_tokens=None,
            start_seconds=server.start_seconds,
            peak_memory_bytes=server.peak_memory(),
        )

    def _printed(self) -> str:
        command = self._filled(self.program.version.command or ())
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=VERSION_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FlowError(
                f"{self.name} does not say its version: {error}", self._hint("version.command")
            ) from error
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        first = next((line.strip() for line in lines if line.strip()), "")
        if done.returncode or not first:
            raise FlowError(
                f"{self.name} does not say its version: {shlex.join(command)} ended with exit code "
                f"{done.returncode} and printed {first!r}.",
                self._hint("version.command"),
            )
        return first

    def _answered(self, server: Server) -> str:
        version = self.program.version
        try:
            with server.client(timeout=VERSION_SECONDS) as client:
                found = client.get(version.path or "").raise_for_status().json()
            for part in (version.field or "").split("."):
                found = found[part]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            server.require_alive()
            raise FlowError(
                f"{self.name} does not say its version: {version.path} has no {version.field} "
                f"({type(error).__name__}: {error}).",
                self._hint("version"),
            ) from error
        if not isinstance(found, str | int | float) or not str(found).strip():
            raise FlowError(
                f"{self.name} does not say its version: {version.field} of {version.path} is "
                f"{found!r:.80}.",
                self._hint("version.field"),
            )
        return str(found).strip()

    def _hint(self, key: str) -> str:
        return f"Look at engine.program.{key} in the profile."

    def require_proof(self, facts: EngineFacts, name: str, folder: Path) -> None:
        """Checks nothing: the program proves its version only, and 06 withholds SHIP for that."""

    def cause(self, log: str, *, by_itself: bool) -> str | None:
        """Returns None: the last lines of the log are shown instead."""
        return None

    def cache_block(self, metrics: str) -> int | None:
        """Returns None: a prefix cache of the program is not known."""
        return None
