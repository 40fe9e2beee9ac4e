"""Checks that the disk holds what a profile downloads, makes and installs."""

from __future__ import annotations

import shutil
from pathlib import Path

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.setup.checks import Check, fits
from model_serve_flow.system.environment_sizes import file_system, missing, missing_bytes
from model_serve_flow.system.environments import environments_folder
from model_serve_flow.system.hardware import Machine, existing
from model_serve_flow.system.sizes import GIB, gib

# Hub data that lm-eval and datasets keep. An upper bound, not measured: MMLU is the largest.
HUB_DATA_BYTES = GIB


def data_bytes(config: FlowConfig) -> int:
    """Estimates the downloaded tasks and texts; 0 if all of them come from packages."""
    packaged = config.accuracy.packaged
    names = set() if packaged is None else set(type(packaged).model_fields)
    distribution = config.accuracy.distribution
    texts = distribution is not None and distribution.dataset is not None
    return HUB_DATA_BYTES if texts or set(config.accuracy.tasks) - names else 0


def disk_checks(flow: Flow, machine: Machine, models: int) -> list[Check]:
    """Checks the disk of the results, and that of the environments that are still to be built.

    Args:
        models: bytes of all models and results of the profile; those that are there already are
            subtracted.
    """
    root, folder = flow.workspace.root, environments_folder()
    needed = max(models - _bytes_under(root / "models"), 0) + data_bytes(flow.config)
    advice = f"Free space under {root}, or set MODEL_SERVE_FLOW_ARTIFACTS to a larger disk."
    checks = [fits("disk", machine.disk_free_bytes, needed, advice)]
    if not (installed := missing_bytes(flow.config.device)):
        return checks
    together = file_system(root) == file_system(folder)
    free = machine.disk_free_bytes if together else shutil.disk_usage(existing(folder)).free
    beside = needed if together else 0
    return [*checks, _environments(flow.config, folder, free, installed, beside)]


def _environments(
    config: FlowConfig, folder: Path, free: int, installed: int, beside: int
) -> Check:
    """Checks the room for the environments, on a disk that also needs `beside` bytes for models."""
    names = ", ".join(missing(config.device))
    models = f", and {gib(beside)} of models and data" if beside else ""
    return Check(
        name="disk for environments",
        ok=free >= installed + beside,
        value=gib(free),
        needed=f"{gib(installed)} to build {names}{models}",
        advice=f"Free space under {folder}, or set MODEL_SERVE_FLOW_ENVIRONMENTS to a larger disk.",
    )


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
