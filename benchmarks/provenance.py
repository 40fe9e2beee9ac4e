"""Says where figures come from: versions, machine and commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import read_json
from model_serve_flow.system.hardware import inspect_machine

ROOT = Path(__file__).resolve().parents[1]


def provenance(flow: Flow, checkout: Path = ROOT) -> dict[str, Any]:
    """Names the versions that the flow's 00 noted, the machine, and the checkout's commit."""
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "versions": read_json(flow.workspace.manifest)["versions"],
        "machine": inspect_machine(ROOT).model_dump(
            mode="json", exclude={"gpus", "gpu_problem", "kernel"}
        ),
        "python": platform.python_version(),
        "commit": subprocess.check_output(commit, cwd=checkout, text=True).strip(),
    }
