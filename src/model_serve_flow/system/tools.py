"""Installs pinned uv and `packaging` for a Python that has neither, even without ensurepip.

Needs only the standard library, and one of: this Python's pip, a venv module with pip, or a uv on
PATH.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.system.index import PUBLIC, VARIABLE, has_other_files
from model_serve_flow.system.variables import value

NAMES = ("uv", "packaging")
OLDEST = (3, 11)
PIP_INDEX = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE")
_PIN = re.compile(r"^([\w.-]+)==\S+(?:.*\\\n)*.*$", re.MULTILINE)


def provide(folder: Path, lock: Path) -> Path:
    """Installs the tools into a folder, unless it has them from the same pins; returns the folder.

    Args:
        folder: the folder of the tools.
        lock: the lock that pins the tools.

    Raises:
        FlowError: this Python is too old, there is no installer, or the install failed.
    """
    if sys.version_info < OLDEST:
        raise FlowError(
            f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.",
            "Name another Python.",
        )
    pins = "\n".join(
        match[0] for match in _PIN.finditer(lock.read_text(encoding="utf-8")) if match[1] in NAMES
    )
    mark, wanted = (
        folder / "complete",
        hashlib.sha256(f"{sys.version_info[:2]}{pins}".encode()).hexdigest(),
    )
    if mark.is_file() and mark.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pinned = folder / "tools.txt"
    pinned.write_text(f"{pins}\n", encoding="utf-8")
    _install(folder, pinned)
    mark.write_text(wanted)
    return folder


def _install(folder: Path, pinned: Path) -> None:
    command = [
        *_installer(folder),
        "--no-deps",
        "--require-hashes",
        "--target",
        str(folder),
        "-r",
        str(pinned),
    ]
    named = value("index")
    public = {name: value for name, value in os.environ.items() if name not in PIP_INDEX}
    public["PIP_CONFIG_FILE"] = os.devnull
    tries = [public] if named else [dict(os.environ), public]
    if named and named != PUBLIC:
        command += ["--index-url", named]
    for variables in tries:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode == 0:
            return
        if not has_other_files(said):
            break
    raise FlowError(
        f"uv cannot be installed with {' '.join(command[:3])}:\n{said.strip()[-1500:]}",
        f"Check the network and pip's index and certificate, or set {VARIABLE} to an index with "
        "the public files.",
    )


def _installer(folder: Path) -> list[str]:
    """Returns the command that installs: this Python's pip, a new venv's pip, or an existing uv."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if (
        importlib.util.find_spec("ensurepip") is not None
        and importlib.util.find_spec("venv") is not None
    ):
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        return [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise FlowError(
        f"{sys.executable} has no pip, no ensurepip that brings one, and there is no uv.",
        "Install one of them (Debian, Ubuntu: the package python3-venv), or use another Python.",
    )
