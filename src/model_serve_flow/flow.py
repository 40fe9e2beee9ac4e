"""What a notebook opens first: the profile, its workspace, and the models in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_serve_flow.checkout import checkout
from model_serve_flow.config import Candidate, FlowConfig, load_profile
from model_serve_flow.workspace import Workspace


@dataclass(frozen=True)
class Flow:
    """One profile and the folder its artifacts go to."""

    config: FlowConfig
    workspace: Workspace

    @classmethod
    def open(
        cls,
        profile: str | None = None,
        overrides: dict[str, Any] | None = None,
        artifacts: str | Path | None = None,
    ) -> Flow:
        """Loads the profile; FlowError if it is unknown or not valid.

        Args:
            profile: name of a profile, or the path of its YAML file; none: the default of this
                machine.
            overrides: dotted key -> value.
            artifacts: folder of all artifacts; default: `MODEL_SERVE_FLOW_ARTIFACTS`, or `artifacts/` of the checkout.
        """
        config = load_profile(profile, overrides)
        return cls(config, Workspace.of(artifacts or default_artifacts(), config.name))

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.config.candidates


def default_artifacts() -> Path:
    """`MODEL_SERVE_FLOW_ARTIFACTS`, or the folder `artifacts` of this checkout."""
    return Path(os.environ.get("MODEL_SERVE_FLOW_ARTIFACTS") or checkout() / "artifacts")
