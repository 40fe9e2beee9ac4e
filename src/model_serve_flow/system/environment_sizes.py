"""Tells how much disk the environments take that are still to be built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.system import environments
from model_serve_flow.system.environments import Device
from model_serve_flow.system.hardware import existing

# Measured with du after installing the locks of vLLM 0.32 (GPU: without compiled bytecode, for
# which 0.1 to 0.3 GB are added). uv links the files of one package into every environment, so
# packages of all three, PyTorch above all, take their place once: `shared`. The rest is each
# environment's own.
GB = 1_000_000_000


@dataclass(frozen=True)
class Sizes:
    """Bytes of one device's environments."""

    shared: int
    own: dict[str, int]


SIZES: dict[Device, Sizes] = {
    "cpu": Sizes(
        int(1.4 * GB),
        {"notebook": int(0.2 * GB), "serve": int(1.8 * GB), "compress": int(0.3 * GB)},
    ),
    "gpu": Sizes(
        int(5.4 * GB),
        {"notebook": int(0.3 * GB), "serve": int(4.2 * GB), "compress": int(0.4 * GB)},
    ),
}


def missing(device: Device) -> tuple[str, ...]:
    """Lists the environments that are still to be built.

    One that was built from earlier locks counts as built: uv's cache keeps its files, and a new
    lock changes few of them. The notebook environment needs no accelerator, so it may be of either
    device.
    """
    return tuple(name for name in environments.NAMES if not _was_built(name, device))


def _was_built(name: str, device: Device) -> bool:
    folder = environments.environment(name)
    if not folder.marker.is_file():
        return False
    with_cuda = any(folder.folder.glob("lib/python*/site-packages/nvidia"))
    return name == "notebook" or with_cuda == (device == "gpu")


def missing_bytes(device: Device) -> int:
    """Returns the bytes that the missing environments will take; 0 if none is missing.

    If uv's cache is on another file system, uv copies the files, and nothing is shared.
    """
    sizes, wanted = SIZES[device], missing(device)
    if not wanted:
        return 0
    own = sum(sizes.own[name] for name in wanted)
    if not _linked():
        return own + sizes.shared * len(wanted)
    heavy = set(environments.NAMES) - {"notebook"} - set(wanted)
    return own + (0 if heavy else sizes.shared)


def _linked() -> bool:
    cache = Path(
        os.environ.get("UV_CACHE_DIR")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    )
    return file_system(cache) == file_system(environments.environments_folder())


def file_system(folder: Path) -> int:
    """Returns the number of the file system that holds a folder, which need not exist yet."""
    return existing(folder).stat().st_dev
