"""The `ci` profile, run once by the command line for all end-to-end tests: real notebooks, engine, model, data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_serve_flow.flow import Flow

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "e2e"
PER_TENSOR = ARTIFACTS / "planted" / "w4a16-per-tensor"  # made by tests/e2e/compress, judged by tests/e2e/serve


def run_flow(*arguments: str, profile: str = "ci", artifacts: Path = ARTIFACTS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_serve_flow.cli", "run", "--profile", profile, "--artifacts", str(artifacts)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT, env={**os.environ})


@pytest.fixture(scope="session")
def flow() -> Flow:
    """The finished flow; a step that is already done and unchanged is not run again."""
    outcome = run_flow()
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-6000:]
    return Flow.open("ci", {}, ARTIFACTS)
