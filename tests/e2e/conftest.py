"""The profile `ci`, or `ci-avx2`, run once by the command line for all end-to-end tests.

Real notebooks, engine, model and data.

A mirror is filled first, from the package index; the flow then runs from it where no network is, if
the machine allows that, in surroundings that must not matter (`support/surroundings.py`). Secrets
are set, and every command line that runs meanwhile is looked at.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.canary import ProcessWatch
from support.isolation import isolated, namespaces_allowed
from support.profiles import CI
from support.surroundings import hostile

from model_serve_flow.flow.flow import Flow

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "e2e"
MIRROR = ROOT / "artifacts" / "mirror"
PROGRAM = (sys.executable, "-m", "model_serve_flow.cli")
# made by tests/e2e/compress, judged by tests/e2e/serve
PER_TENSOR = ARTIFACTS / "planted" / "w4a16-per-tensor"
CANARY = "canary-0b6f4e1d9a7c4c55"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}-hub",
    "MODEL_SERVE_FLOW_API_KEY": f"{CANARY}-key",
    "OPENAI_API_KEY": f"{CANARY}-other",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-cloud",
}


def flow_command(*arguments: str, profile: str = CI, artifacts: Path = ARTIFACTS) -> list[str]:
    return [*PROGRAM, "run", "--profile", profile, "--artifacts", str(artifacts), *arguments]


def call(
    command: Sequence[str], environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**environment, **SECRETS}
    )


def run_flow(*arguments: str, **where: object) -> subprocess.CompletedProcess[str]:
    return call(flow_command(*arguments, **where))


def copy_linked(source: Path, destination: Path) -> None:
    """Copies a workspace; weights are linked, as they are only read.

    The rest is not: a log is written in place.
    """

    def copy(file: str, to: str) -> None:
        (os.link if file.endswith(".safetensors") else shutil.copy2)(file, to)

    shutil.copytree(source, destination, copy_function=copy)


class Watched:
    """What was seen of the processes while the flow of these tests ran, and what it said."""

    def __init__(self) -> None:
        self.found: dict[int, list[str]] = {}
        self.before = set(psutil.pids())
        self.seen: set[int] = set()
        self.output = ""
        self.offline = namespaces_allowed()

    @contextmanager
    def processes(self) -> Iterator[None]:
        with ProcessWatch(CANARY) as watch:
            yield
        self.found |= watch.found
        self.seen |= watch.seen

    def call(self, command: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
        outcome = call(command, environment)
        self.output += outcome.stdout + outcome.stderr
        assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-6000:]


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The flow, run to its end; a step that is already done and unchanged is not run again."""
    watched, environment = Watched(), hostile(tmp_path_factory.mktemp("programs"))
    run = flow_command("--mirror", str(MIRROR))
    with watched.processes():
        watched.call([*PROGRAM, "mirror", "--profile", CI, "--to", str(MIRROR)])
        watched.call(isolated(run) if watched.offline else run, environment)
    return watched


@pytest.fixture(scope="session")
def flow(watched: Watched) -> Flow:
    """The finished flow."""
    return Flow.open(CI, {}, ARTIFACTS)
