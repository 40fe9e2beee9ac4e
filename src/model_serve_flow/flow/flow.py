"""Opens a profile with its workspace: the first thing every notebook does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Candidate, FlowConfig
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.settings import require_known, settings


@dataclass(frozen=True)
class Flow:
    """A profile, its workspace, and what the user asked for.

    Attributes:
        config: the profile with all overrides.
        workspace: the profile's folders.
        profile: name or YAML path, as the user gave it; None: the default profile.
        overrides: dotted key -> value, as the user gave them.
        command: the command line; empty if there was none.
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
        """Loads a profile and opens its workspace.

        Args:
            profile: name of a profile, or the path of its YAML file; None: the default of this
                machine.
            overrides: dotted key -> value.
            artifacts: folder of all artifacts; None: `MODEL_SERVE_FLOW_ARTIFACTS`, or `artifacts/`
                of the checkout.
            command: the command line of the run, for the manifest.

        Raises:
            FlowError: the profile is unknown or not valid, or a variable is no setting.
        """
        require_known(os.environ)
        config = load_profile(profile, overrides)
        workspace = Workspace.of(artifacts or default_artifacts(), config.name)
        return cls(config, workspace, profile, overrides or {}, command)

    @property
    def artifacts(self) -> Path:
        """Returns the folder of all artifacts; it contains the workspace of this profile."""
        return self.workspace.root.parent

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.config.candidates


def default_artifacts() -> Path:
    """Returns `MODEL_SERVE_FLOW_ARTIFACTS`, or the folder `artifacts` of this checkout."""
    return settings().artifacts or checkout() / "artifacts"
