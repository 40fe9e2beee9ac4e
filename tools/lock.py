"""Writes the locks of the environments from the pyprojects of the steps: `make lock`.

Every release is pinned with the hashes of all its files. PyTorch's CPU build has a file of its own,
`cpu-torch.txt`. No package index has this build, and a folder of wheels gives the hash for one
interpreter only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import get_args

from model_serve_flow.system import lockfiles
from model_serve_flow.system.checkout import MODULES
from model_serve_flow.system.environments import (
    GPU_PYTHON,
    NAMES,
    PREDICTORS,
    Device,
    build_lock,
    cpu_torch,
    lock_path,
    torch_lock,
    uv_program,
)

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / MODULES / "environments"
STOCK_SERVERS = ROOT / "examples" / "serving-from-scratch" / "predictors" / "pyproject.toml"
EVERY_CPU = ["--python-version", "3.11", "--universal"]
CPU = [*EVERY_CPU, "--override", "cpu-overrides.txt"]
GPU = ["--python-version", GPU_PYTHON, "--python-platform", "x86_64-manylinux_2_28"]
STYLE = [
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
    "--no-emit-package",
    "model-serve-flow",
    "--quiet",
]
# packages that build this project, and releases without a wheel
BUILD = ["hatchling", "editables", "setuptools"]


def modules(environment: str) -> list[Path]:
    """Lists the pyprojects of the steps that run in `environment`."""
    found = sorted(HERE.parent.glob("*/pyproject.toml"))
    return [
        path
        for path in found
        if tomllib.loads(path.read_text())["tool"]["model-serve-flow"]["environment"] == environment
    ]


def compile_lock(environment: str, device: Device, upgrade: bool) -> list[Path]:
    """Resolves one environment with uv and returns the paths of its locks.

    Raises:
        CalledProcessError: the pins contradict each other.
    """
    torch, variables = cpu_torch() if device == "cpu" else ([], {})
    # pyproject.toml, because the tests run in each environment
    sources, extras = [*modules(environment), ROOT / "pyproject.toml"], [device, "dev"]
    extras += ["audit"] if environment == "notebook" else []
    arguments = [*(str(path) for path in sources), *(f"--extra={extra}" for extra in extras)]
    arguments += [*(CPU if device == "cpu" else GPU), *torch]
    targets = [
        lock_path(environment, device),
        *([torch_lock(environment)] if device == "cpu" else []),
    ]
    pins = _compile(
        arguments,
        [pin for path in targets if path.is_file() for pin in lockfiles.read(path)],
        upgrade,
        variables,
    )
    apart = [pin for pin in pins if pin.version.local == "cpu"]
    lockfiles.write(targets[0], [pin for pin in pins if pin not in apart])
    # hashes of wheels from a folder are those of one interpreter: others would be refused
    if device == "cpu":
        lockfiles.write(
            targets[1], [replace(pin, hashes=()) if variables else pin for pin in apart]
        )
    return targets


def compile_predictors_lock(upgrade: bool) -> Path:
    """Resolves the stock servers behind the gateway of serving from scratch."""
    target = lock_path(PREDICTORS, "cpu")
    known = lockfiles.read(target) if target.is_file() else []
    lockfiles.write(target, _compile([str(STOCK_SERVERS), *EVERY_CPU], known, upgrade, {}))
    return target


def compile_build_lock(upgrade: bool) -> Path:
    """Resolves the packages with which uv builds packages."""
    target = build_lock()
    known = lockfiles.read(target) if target.is_file() else []
    lockfiles.write(target, _compile(["-", *EVERY_CPU], known, upgrade, {}, "\n".join(BUILD)))
    return target


def _compile(
    arguments: list[str],
    known: list[lockfiles.Pin],
    upgrade: bool,
    variables: dict[str, str],
    source: str = "",
) -> list[lockfiles.Pin]:
    """Resolves requirements with uv.

    Versions in `known` stay where they fit, unless `upgrade`.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        lockfiles.write(output, known)
        command = [uv_program(), "pip", "compile", *arguments, *STYLE, "--output-file", str(output)]
        command += ["--upgrade"] if upgrade else []
        environment = {**os.environ, **variables}
        subprocess.run(
            command,
            cwd=HERE,
            env=environment,
            input=source,
            text=True,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return lockfiles.read(output)


def main() -> None:
    """Writes every lock; with `--upgrade`, versions that no pyproject pins become the newest."""
    upgrade = "--upgrade" in sys.argv[1:]
    written = [compile_build_lock(upgrade), compile_predictors_lock(upgrade)]
    for environment in NAMES:
        for device in get_args(Device):
            written += compile_lock(environment, device, upgrade)
    for path in written:
        pins = lockfiles.read(path)
        hashed = sum(bool(pin.hashes) for pin in pins)
        print(f"{path.relative_to(ROOT)}: {len(pins)} pins, {hashed} with hashes", flush=True)


if __name__ == "__main__":
    main()
