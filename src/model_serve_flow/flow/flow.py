"""What a notebook opens first: the profile, its workspace, and the models in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Candidate, FlowConfig
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.checkout import checkout


@dataclass(frozen=True)
class Flow:
    """One profile, the folder its artifacts go to, and what the user asked for.

    Attributes:
        config: the profile, with the overrides in force.
        workspace: the profile's folders.
        profile: as the user named it, a name or the path of a YAML file; none: the default.
        overrides: dotted key -> value, as the user gave them.
        command: the command line; empty where there was none.
    """

    config: FlowConfig
    workspace: Workspace
    profile: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    @classmethod
    def open(
        cls,
        profile: str | None = None,
        overrides: dict[str, Any] | None = None,
        artifacts: str | Path | None = None,
        command: str = "",
    ) -> Flow:
        """Loads the profile; FlowError if it is unknown or not valid.

        Args:
            profile: name of a profile, or the path of its YAML file; none: the default of this
                machine.
            overrides: dotted key -> value.
            artifacts: folder of all artifacts; default: `MODEL_SERVE_FLOW_ARTIFACTS`, or
                `artifacts/` of the checkout.
            command: the command line that asked for it, for the manifest.
        """
        config = load_profile(profile, overrides)
        workspace = Workspace.of(artifacts or default_artifacts(), config.name)
        return cls(config, workspace, profile, overrides or {}, command)

    @property
    def artifacts(self) -> Path:
        """The folder of all artifacts, that of this profile among them."""
        return self.workspace.root.parent

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.config.candidates


def default_artifacts() -> Path:
    """`MODEL_SERVE_FLOW_ARTIFACTS`, or the folder `artifacts` of this checkout."""
    return Path(os.environ.get("MODEL_SERVE_FLOW_ARTIFACTS") or checkout() / "artifacts")
