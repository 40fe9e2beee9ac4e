"""Installs the kernels of the environments where a JupyterLab that already runs looks for them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.system.environments import NAMES, environment
from model_serve_flow.system.places import NOBODY, REPLACED_HOME
from model_serve_flow.system.settings import settings
from model_serve_flow.system.variables import variable

DATA_FOLDER = "JUPYTER_DATA_DIR"
# Folders that the user chose for the command line hold for the notebooks too. No key is among them.
FOLDERS = ("artifacts", "cache", "environments", "mirror", "modules", "profiles")


def user_kernels(surrounding: Mapping[str, str]) -> Path:
    """Returns the folder of the user's own kernels, as JupyterLab finds it.

    Raises:
        FlowError: the home cannot be written, so the JupyterLab that runs uses another folder.
    """
    from jupyter_core.paths import jupyter_data_dir

    if not surrounding.get(DATA_FOLDER) and "HOME" in _replaced(surrounding):
        raise FlowError(
            "HOME cannot be written, so it is not known where the JupyterLab that runs looks for "
            "kernels.",
            f"Set {DATA_FOLDER} to a folder that you can write, also for that JupyterLab.",
        )
    return Path(jupyter_data_dir()) / "kernels"


def install(folder: Path) -> list[Path]:
    """Writes a kernel for each environment into `folder`, and returns the kernels' folders.

    A kernel sets the variables that `model-serve-flow lab` sets, and the folders that the user
    chose. It starts the environment's Python, so the environment must be there to run a notebook.

    Raises:
        FlowError: an environment is not built, or the folder cannot be written.
    """
    return [_install(folder / environment(name).kernel, name) for name in NAMES]


def _install(folder: Path, name: str) -> Path:
    source = environment(name).kernel_file
    if not source.is_file():
        raise FlowError(f"The {name} environment is not built.", "Build it: make environments.")
    specification = json.loads(source.read_text(encoding="utf-8"))
    places = {name: getattr(settings(), name) for name in FOLDERS}
    specification["env"] |= {
        variable(name): str(place.resolve()) for name, place in places.items() if place
    }
    specification["env"] |= _replaced(os.environ)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(specification, indent=1)
        (folder / "kernel.json").write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise FlowError(
            f"The kernel cannot be written: {error}",
            f"Set {DATA_FOLDER} to a folder that you can write, also for JupyterLab.",
        ) from error
    return folder


def _replaced(surrounding: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that `home_variables` had to set, because the user has none."""
    names = {key: surrounding.get(key, "") for key in ("HOME", "USER", "LOGNAME")}
    return {
        key: value
        for key, value in names.items()
        if (Path(value).name == REPLACED_HOME if key == "HOME" else value == NOBODY)
    }
