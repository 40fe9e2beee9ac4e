"""Reads the cores, memory, disk and GPUs that this process may use."""

from __future__ import annotations

import math
import os
import platform
import shutil
import socket
import sys
from collections.abc import Container
from pathlib import Path

import psutil
from pydantic import Field

from model_serve_flow.errors import FlowError
from model_serve_flow.system.cgroups import cpu_quota, first_version_folders
from model_serve_flow.system.gpus import Gpu, find_gpus
from model_serve_flow.system.processor import CPUINFO, describe_cpu
from model_serve_flow.system.records import Record

CGROUPS = Path("/sys/fs/cgroup")


class Machine(Record):
    """Hardware and system as this process may use them, within affinity and cgroup limits."""

    os: str
    kernel: str
    python: str
    architecture: str
    cpu: str
    cores: int = Field(description="cores this process may use")
    cpu_features: tuple[str, ...]
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int = Field(description="at the artifacts folder")
    gpus: tuple[Gpu, ...]
    gpu_problem: str | None = Field(default=None, description="why there is no GPU to use")


def inspect_machine(folder: Path = Path()) -> Machine:
    """Inspects the machine.

    Args:
        folder: folder of the artifacts; the free space of its file system counts.

    Raises:
        FlowError: the system is not Linux.
    """
    if sys.platform != "linux":
        raise FlowError(
            f"This is {platform.system()}; the flow needs Linux, as vLLM does.",
            "Use Linux, WSL 2 or a container.",
        )
    cpu, features = describe_cpu(CPUINFO.read_text(encoding="utf-8", errors="replace"))
    total, available = _memory()
    gpus, problem = find_gpus()
    return Machine(
        os=platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        kernel=platform.release(),
        python=platform.python_version(),
        architecture=platform.machine(),
        cpu=cpu,
        cores=usable_cores(),
        cpu_features=features,
        memory_bytes=total,
        memory_available_bytes=available,
        disk_free_bytes=shutil.disk_usage(existing(folder)).free,
        gpus=gpus,
        gpu_problem=problem,
    )


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Counts the cores that affinity and cgroup quotas let this process use."""
    cores = len(os.sched_getaffinity(0))
    for text in _cgroup_values("cpu.max", cgroups):
        quota, _, period = text.partition(" ")
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    for allowed in filter(None, map(cpu_quota, first_version_folders("cpu", cgroups))):
        cores = min(cores, math.ceil(allowed))
    return max(cores, 1)


def _memory(cgroups: Path = CGROUPS) -> tuple[int, int]:
    """Returns total and available bytes of the machine, or of the tightest surrounding cgroup."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for folder in [*_cgroup_folders(cgroups), *first_version_folders("memory", cgroups)]:
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if limit and limit != "max" and int(limit) < memory.total:
            total = min(total, int(limit))
            available = min(available, int(limit) - _cgroup_used(folder))
    return total, max(available, 0)


def _cgroup_used(folder: Path) -> int:
    """Returns the used bytes without the page cache that the kernel gives back on request."""
    used = int(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or 0)
    pairs = dict(line.split() for line in (_text(folder / "memory.stat") or "").splitlines())
    # In version 1, the key that includes inner cgroups has another name.
    return used - int(pairs.get("total_inactive_file") or pairs.get("inactive_file", 0))


def _cgroup_values(name: str, cgroups: Path) -> list[str]:
    return [text for folder in _cgroup_folders(cgroups) if (text := _text(folder / name))]


def _cgroup_folders(cgroups: Path) -> list[Path]:
    """Lists this process's cgroup and its parents, innermost first; all their limits apply."""
    lines = (_text(Path("/proc/self/cgroup")) or "").splitlines()
    inner = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = cgroups / inner.strip("/")
    return [
        path for path in (folder, *folder.parents) if path == cgroups or cgroups in path.parents
    ]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def existing(folder: Path) -> Path:
    """Returns the folder, or the nearest folder above it that exists."""
    return next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())


def available_memory() -> int:
    """Returns the bytes that this process could still use, by machine and cgroup limits."""
    return _memory()[1]


def free_port(taken: Container[int] = ()) -> int:
    """Returns a TCP port of 127.0.0.1 that was free a moment ago and is not in `taken`.

    Args:
        taken: ports that are reserved, even if nothing listens on them yet.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return free_port(taken) if port in taken else port
