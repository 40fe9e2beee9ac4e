"""Builds the steps' Python environments from committed locks with uv, each with a Jupyter kernel.

Needs only uv, `packaging` and the standard library, so that a bare interpreter can build the first
environment: `python -m model_serve_flow.system.environments notebook --device cpu`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model_serve_flow.errors import FlowError
from model_serve_flow.system.checkout import MODULES, checkout
from model_serve_flow.system.index import has_other_files, hint, indexes
from model_serve_flow.system.streams import show_what_can_be_shown
from model_serve_flow.system.variables import value

Device = Literal["cpu", "gpu"]
NAMES = ("notebook", "serve", "compress")
# Stock servers behind the gateway of serving from scratch: no torch, no GPU, no Jupyter kernel.
PREDICTORS = "predictors"
EVERY_NAME = (*NAMES, PREDICTORS)
# Python of the GPU locks; the CPU locks are for every Python from 3.11 on
GPU_PYTHON = "3.12"
LOG_TAIL_LINES = 15
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",  # huggingface_hub and vLLM obey it too
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets and evaluate report each download
    # else transformers asks a bot to convert a repository without safetensors
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
NO_PROXY = ("NO_PROXY", "no_proxy")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROCESS_VARIABLES = {  # of every process in an environment
    **NO_TELEMETRY,
    # Container images often forbid Python to store compiled bytecode. Each of a run's seven servers
    # would then compile PyTorch and vLLM anew, which is half of its start time. An empty value
    # allows it.
    "PYTHONDONTWRITEBYTECODE": "",
}
USER_MAY_CHANGE = {  # as PROCESS_VARIABLES, but values of the user win
    # Threads of a computation often wait for each other. By default they spin, even while another
    # program uses the core that they wait for. Measured beside ten other processes: 0.8 output
    # tokens/s with spinning, 21 without.
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class Environment:
    """One environment on disk."""

    name: str
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def kernel(self) -> str:
        return f"model-serve-flow-{self.name}"

    @property
    def jupyter_path(self) -> Path:
        return self.folder / "share" / "jupyter"

    @property
    def kernel_file(self) -> Path:
        return self.jupyter_path / "kernels" / self.kernel / "kernel.json"

    @property
    def marker(self) -> Path:
        """Returns the file with the digest of the environment's sources.

        The file is written last, so a half-built environment has none.
        """
        return self.folder / "complete"


def environments_folder() -> Path:
    """Returns `MODEL_SERVE_FLOW_ENVIRONMENTS`, or `.environments` of the checkout."""
    named = value("environments")
    return (Path(named).expanduser() if named else checkout() / ".environments").resolve()


def environment(name: str) -> Environment:
    """Returns the environment called `name`, built or not.

    Raises:
        FlowError: there is no such environment.
    """
    if name not in EVERY_NAME:
        known = ", ".join(EVERY_NAME)
        raise FlowError(f"Unknown environment {name!r}.", f"Environments: {known}.")
    return Environment(name, environments_folder() / name)


def variables_in_force() -> dict[str, str]:
    """Returns the variables of `USER_MAY_CHANGE` with the user's values, else ours."""
    return {name: os.environ.get(name) or ours for name, ours in USER_MAY_CHANGE.items()}


def process_variables() -> dict[str, str]:
    """Returns the variables of every process that runs in an environment."""
    return {**PROCESS_VARIABLES, **variables_in_force()}


def direct(host: str) -> dict[str, str]:
    """Returns `NO_PROXY` and `no_proxy`, so that requests to this machine or `host` use no proxy.

    The requests carry a key. Values that the user set in either variable are put into both, because
    clients differ in which variable they read.
    """
    given = [place.strip() for name in NO_PROXY for place in os.environ.get(name, "").split(",")]
    # "*" means every host, but not every client understands it in a list.
    hosts = ["*"] if "*" in given else [*filter(None, given), *LOOPBACK, host]
    return dict.fromkeys(NO_PROXY, ",".join(dict.fromkeys(hosts)))


def lock_path(name: str, device: Device) -> Path:
    """Returns the committed lock, in requirements format: exact versions with hashes.

    The predictors have one lock for all devices.
    """
    device = "cpu" if name == PREDICTORS else device
    return checkout() / MODULES / "environments" / name / f"{device}.txt"


def torch_lock(name: str) -> Path:
    """Returns the lock of PyTorch's CPU build, which no package index has."""
    return lock_path(name, "cpu").with_name("cpu-torch.txt")


def has_cpu_torch(name: str, device: Device) -> bool:
    """Whether the environment contains PyTorch's CPU build."""
    return device == "cpu" and name != PREDICTORS


def build_lock() -> Path:
    """Returns the lock of the tools with which uv builds packages.

    uv builds this project, and releases that have no wheel.
    """
    return checkout() / MODULES / "environments" / "build.txt"


def lock_paths(name: str, device: Device) -> list[Path]:
    """Lists every lock from which the environment is built.

    Raises:
        FlowError: a lock is missing.
    """
    paths = [
        lock_path(name, device),
        *([torch_lock(name)] if has_cpu_torch(name, device) else []),
        build_lock(),
    ]
    for path in paths:
        if not path.is_file():
            raise FlowError(f"{path} is missing.", "Restore it from git, or make it: make lock.")
    return paths


def jupyter_path() -> str:
    """Returns a value of `JUPYTER_PATH` with the kernels of all environments."""
    inherited = os.environ.get("JUPYTER_PATH")
    return os.pathsep.join(
        [
            *(str(environment(name).jupyter_path) for name in NAMES),
            *([inherited] if inherited else []),
        ]
    )


def is_ready(name: str, device: Device) -> bool:
    """Checks whether the environment is complete and was built from the current locks."""
    built = environment(name)
    return (
        built.python.exists()
        and built.marker.is_file()
        and built.marker.read_text() == _digest(name, device)
    )


def ensure(name: str, device: Device) -> Environment:
    """Returns the environment, and builds it if it is missing, incomplete or out of date.

    Raises:
        FlowError: uv failed (the message shows the end of its output and the log's path), or the
            environment of this very process is out of date.
    """
    built = environment(name)
    if is_ready(name, device):
        return built
    if built.folder == Path(sys.prefix).resolve():
        if name == "notebook" and is_ready(name, "cpu"):  # this environment needs no accelerator
            return built
        raise FlowError(
            f"The {name} environment is out of date.", "Build it again: make bootstrap."
        )
    _build(built, device)
    return built


def uv_program() -> str:
    """Returns the path of uv.

    Raises:
        FlowError: uv is not installed.
    """
    try:
        import uv

        return str(uv.find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        found = shutil.which("uv")
        if found is None:
            raise FlowError(
                "uv is not installed.", "Run through make, which installs it, or: pip install uv."
            ) from error
        return found


def cpu_torch() -> tuple[list[str], dict[str, str]]:
    """Returns (arguments, environment variables) with which uv finds PyTorch's CPU build.

    If pip's find-links contain a torch wheel for this interpreter, they are used; uv does not read
    them without help. Else uv's own `--torch-backend cpu` is used.
    """
    links = _find_links()
    return (
        ([], {"UV_FIND_LINKS": ",".join(links)})
        if any(map(_has_torch, links))
        else (["--torch-backend", "cpu"], {})
    )


def _find_links() -> list[str]:
    if value := os.environ.get("PIP_FIND_LINKS"):
        return value.split()
    pip = [sys.executable, "-m", "pip", "config", "list"]
    # without pip there are no find-links
    listed = subprocess.run(pip, capture_output=True, text=True, check=False).stdout
    return [
        link
        for value in re.findall(r"\.find-links='(.*)'", listed)
        for link in re.split(r"\s|\\n", value)
        if link
    ]


def _has_torch(link: str) -> bool:
    """Checks whether a find-links folder contains a torch wheel for this interpreter."""
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    folder = Path(link.removeprefix("file://"))
    tags = set(sys_tags())
    return any(parse_wheel_filename(wheel.name)[3] & tags for wheel in folder.glob("torch-*.whl"))


def _digest(name: str, device: Device) -> str:
    """Computes the digest of an environment's sources.

    The sources are the device, the locks, the Jupyter kernel, and what the library's pyproject.toml
    says of installing it. The settings of linters there change no environment.
    """
    library = tomllib.loads((checkout() / "pyproject.toml").read_text(encoding="utf-8"))
    tools = library.get("tool", {})
    settings = [library.get("build-system"), library.get("project"), tools.get("hatch")]
    kernel = _kernel_specification(Environment(name, Path(name)))
    locks = [path.read_bytes() for path in lock_paths(name, device)]
    content = [device.encode(), json.dumps([kernel, settings]).encode(), *locks]
    return hashlib.sha256(b"\0".join(content)).hexdigest()


def _build(built: Environment, device: Device) -> None:
    digest = _digest(built.name, device)
    if built.folder.exists():
        shutil.rmtree(built.folder)
    built.folder.parent.mkdir(parents=True, exist_ok=True)
    log = built.folder.with_name(f"{built.name}.log")
    log.unlink(missing_ok=True)
    any_python = device == "cpu" or built.name == PREDICTORS
    python = sys.executable if any_python else GPU_PYTHON
    install = ["pip", "install", "--python", str(built.python), "--no-deps"]
    install += ["--build-constraints", str(build_lock()), "--require-build-hashes"]
    _uv(built, log, {}, "venv", "--python", python, str(built.folder))
    _uv(built, log, {}, *install, "--require-hashes", "-r", str(lock_path(built.name, device)))
    # Only this install looks outside the package index, for this one package.
    if has_cpu_torch(built.name, device):
        arguments, variables = cpu_torch()
        _uv(built, log, variables, *install, *arguments, "-r", str(torch_lock(built.name)))
    _uv(built, log, {}, *install, "-e", str(checkout()))
    if built.name in NAMES:
        _register_kernel(built)
    built.marker.write_text(digest)


def _uv(built: Environment, log: Path, variables: dict[str, str], *arguments: str) -> None:
    command = [uv_program(), *arguments]
    asked = []
    for index in indexes(os.environ):
        asked.append(index)
        surrounding = {**index.environment(os.environ), **variables}
        with log.open("a", encoding="utf-8") as file:
            begin = file.tell()
            print("$", *command, file=file, flush=True)
            done = subprocess.run(command, stdout=file, stderr=file, env=surrounding, check=False)
        if done.returncode == 0:
            return
        said = log.read_bytes()[begin:].decode(errors="replace")
        if not has_other_files(said):
            break
    tail = "\n".join(said.splitlines()[-LOG_TAIL_LINES:])
    raise FlowError(
        f"Building the {built.name} environment failed (uv exit status {done.returncode}):\n{tail}",
        f"{hint(said, asked)} The whole output is in {log}.",
    )


def _register_kernel(built: Environment) -> None:
    built.kernel_file.parent.mkdir(parents=True, exist_ok=True)
    specification = json.dumps(_kernel_specification(built), indent=1)
    built.kernel_file.write_text(f"{specification}\n", encoding="utf-8")


def _kernel_specification(built: Environment) -> dict[str, Any]:
    """Builds the specification of the Jupyter kernel.

    Its `env` replaces the user's values, so a shell sets the variables that the user may change.
    """
    defaults = [f'test "${name}" || export {name}={ours}' for name, ours in USER_MAY_CHANGE.items()]
    shell = ["/bin/sh", "-c", "; ".join([*defaults, 'exec "$@"']), "sh"]
    return {
        "argv": [*shell, str(built.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"model-serve-flow ({built.name})",
        "language": "python",
        "env": PROCESS_VARIABLES,
        "metadata": {"debugger": True},
    }


def main() -> int:
    """Builds the named environments; returns exit status 1, and prints the reason, on failure."""
    parser = argparse.ArgumentParser(description="Build environments from their locks.")
    parser.add_argument("names", nargs="+", choices=EVERY_NAME)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    arguments = parser.parse_args()
    show_what_can_be_shown()
    try:
        for name in arguments.names:
            if not is_ready(name, arguments.device):
                print(
                    f"Building the {name} environment in {environment(name).folder} ...", flush=True
                )
            ensure(name, arguments.device)
    except FlowError as error:
        print(f"{error.problem}\n{error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
