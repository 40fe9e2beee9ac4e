"""Writes the locks of the three environments from the modules' pyprojects: `make lock`."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from model_serve_flow.environments import GPU_PYTHON, NAMES, cpu_torch, lock_path, uv_program

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CPU = ["--python-version", "3.11", "--universal", "--override", "cpu-overrides.txt"]
GPU = ["--python-version", GPU_PYTHON, "--python-platform", "x86_64-manylinux_2_28"]
STYLE = ["--no-header", "--no-annotate", "--no-emit-package", "model-serve-flow", "--quiet"]


def modules(environment: str) -> list[Path]:
    """The pyprojects whose module runs in `environment`."""
    found = sorted(HERE.parent.glob("*/pyproject.toml"))
    return [
        path
        for path in found
        if tomllib.loads(path.read_text())["tool"]["model-serve-flow"]["environment"] == environment
    ]


def compile_lock(environment: str, device: str, upgrade: bool) -> Path:
    """Resolves one lock with uv and returns its path; CalledProcessError if the pins do not fit together."""
    torch, variables = cpu_torch() if device == "cpu" else ([], {})
    sources, extras = [*modules(environment), ROOT / "pyproject.toml"], [device, "dev"]  # the tests run in each
    target = lock_path(environment, device)
    target.parent.mkdir(exist_ok=True)
    command = [uv_program(), "pip", "compile", *(str(path) for path in sources), *(f"--extra={e}" for e in extras)]
    command += [*(CPU if device == "cpu" else GPU), *STYLE, *torch, "--output-file", str(target)]
    command += ["--upgrade"] if upgrade else []
    subprocess.run(command, cwd=HERE, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, check=True)
    return target


def main() -> None:
    """Every lock; with `--upgrade`, what is not pinned by a pyproject moves to its newest version."""
    for environment in NAMES:
        for device in ("cpu", "gpu"):
            print(compile_lock(environment, device, "--upgrade" in sys.argv[1:]).relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
