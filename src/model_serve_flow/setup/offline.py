"""Lets the tools work from a mirror, with the network off.

`model-serve-flow mirror` fills the mirror, a folder in the hub's own layout: `<org>/<name>/` holds
a model or dataset, `wheels/` the wheels with data files, and `nltk_data/` NLTK's resources.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from model_serve_flow.system.settings import settings
from model_serve_flow.system.variables import variable

VARIABLE = variable("mirror")
HUB_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def root() -> Path | None:
    """Returns the mirror in use (`MODEL_SERVE_FLOW_MIRROR`) as an absolute path; None without.

    Raises:
        FlowError: it is not a folder.
    """
    return settings().mirror


def local(source: str) -> str:
    """Returns the folder of the mirror that holds this hub id; else `source` unchanged."""
    folder = root()
    if folder is None or not on_hub(source) or not (folder / source).is_dir():
        return source
    return str(folder / source)


def variables() -> dict[str, str]:
    """Returns variables that keep a child process off the network; empty without a mirror."""
    if (folder := root()) is None:
        return {}
    nltk = os.pathsep.join(map(str, nltk_folders(folder)))
    return {VARIABLE: str(folder), **HUB_OFFLINE, "NLTK_DATA": nltk}


@contextlib.contextmanager
def working_folder() -> Iterator[None]:
    """Makes the mirror the working folder of this process; does nothing without a mirror.

    `datasets` looks for a folder `org/name` there before it asks the hub, so lm-eval's stock tasks
    load from the mirror unchanged. Nothing else in the process may use relative paths meanwhile.
    """
    with contextlib.chdir(folder) if (folder := root()) else contextlib.nullcontext():
        yield


def on_hub(source: str) -> bool:
    """Checks whether a source names a hub repository and not a folder of this machine."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).is_dir()


def nltk_folders(folder: Path) -> list[Path]:
    """Lists the folders in which NLTK looks: the mirror first, then those of `NLTK_DATA`."""
    inherited = [
        Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place
    ]
    return list(dict.fromkeys([folder / "nltk_data", *inherited]))
