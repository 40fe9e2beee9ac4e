"""Defines what the flow asks of the program that serves models: the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model_serve_flow.flow.results.measured import EngineFacts

if TYPE_CHECKING:
    from model_serve_flow.serve.server import Server

SERVE = "serve"  # purpose of a server that only answers questions
ACCURACY = "accuracy"  # purpose of servers that answer evaluation requests
PERFORMANCE = "performance"  # purpose of servers under load
DEPLOY = "deploy"  # purpose of servers as users will ask them


@dataclass(frozen=True)
class Inherited:
    """The surrounding environment, split into what reaches the engine and what does not.

    Attributes:
        passed: name -> value of the variables that reach the engine.
        dropped: names of the variables that do not.
        recorded: those of `passed` that change how the engine works; the manifest records them.
    """

    passed: dict[str, str]
    dropped: tuple[str, ...]
    recorded: dict[str, str]


class Engine(Protocol):
    """A program that serves a checkpoint behind an OpenAI-compatible endpoint.

    The flow starts, supervises and stops the program by itself (`serve.launch`). It asks the engine
    for what differs from one program to the next:

    - how the program is started: `command`, `variables`, `keyed`, `inherited`;
    - what of that belongs to the protocol of a measurement: `arguments`;
    - what the running server proves: `facts`, and whether that suffices: `require_proof`;
    - how to read what the program tells: `cause`, `counters`, `cache_block`.
    """

    @property
    def name(self) -> str:
        """Returns the program's name: in messages and, in lower case, in the names of logs."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Returns the Python packages whose versions a report shows; empty for other programs."""
        ...

    @property
    def health(self) -> str:
        """Returns the path that answers 200 as soon as the server serves, such as `/health`."""
        ...

    @property
    def counters(self) -> re.Pattern[str] | None:
        """Returns what to find in `/metrics`: counters of done work. None: there are none."""
        ...

    def require_installed(self) -> None:
        """Checks that the program is there.

        Raises:
            FlowError: the program is missing; says what to install or to change.
        """
        ...

    def arguments(self, purpose: str = SERVE) -> tuple[str, ...]:
        """Returns the settings that decide how any model is served for this purpose.

        They are part of the protocol of a measurement, so they name no model, port, or key.
        """
        ...

    def command(self, folder: Path, name: str, port: int, purpose: str = SERVE) -> list[str]:
        """Builds the command line that serves the checkpoint in `folder` under `name`.

        The API key is not on the command line.
        """
        ...

    def shown_command(self, name: str) -> str:
        """Returns a shell line with which a reader serves the checkpoint in the current folder."""
        ...

    def variables(self) -> dict[str, str]:
        """Builds the environment variables of every server; none of them is a secret."""
        ...

    def keyed(self, key: str) -> dict[str, str]:
        """Builds the environment variables that tell the server which key clients must send."""
        ...

    def inherited(self, environment: Mapping[str, str]) -> Inherited:
        """Chooses the variables of the surrounding environment that reach the program."""
        ...

    def facts(self, server: Server) -> EngineFacts:
        """Reads what a running server proves about its version, kernels and KV cache.

        Raises:
            FlowError: the server does not say its version.
        """
        ...

    def require_proof(self, facts: EngineFacts, name: str, folder: Path) -> None:
        """Checks that the facts prove that the checkpoint itself was served.

        Args:
            facts: what the server proves.
            name: 'base' or the candidate's name.
            folder: the checkpoint.

        Raises:
            FlowError: the facts contradict the checkpoint, or prove too little.
        """
        ...

    def cause(self, log: str, *, by_itself: bool) -> str | None:
        """Finds in the log why the server ended; None if the log does not say.

        Args:
            log: the text of the server's log.
            by_itself: False for a server that was killed.
        """
        ...

    def cache_block(self, metrics: str) -> int | None:
        """Reads the tokens in a block of the prefix cache; None if there is no such cache.

        Args:
            metrics: what the server answered at `/metrics`.
        """
        ...
