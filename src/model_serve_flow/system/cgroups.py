"""Reads the limits of version 1 cgroups, in which each controller has its own folder."""

from __future__ import annotations

from pathlib import Path

SELF = Path("/proc/self/cgroup")


def first_version_folders(controller: str, root: Path, membership: Path = SELF) -> list[Path]:
    """Lists this process's folder of a controller and its parents, innermost first.

    A container may see the host's path of its cgroup, which does not exist in the container. Then
    the root counts.

    Args:
        controller: "cpu" or "memory".
        root: folder where the cgroups are mounted.
        membership: file with lines such as "4:cpu,cpuacct:/kubepods/pod1".

    Returns:
        Empty with version 2.
    """
    mounted = [path for path in sorted(root.glob("*")) if controller in path.name.split(",")]
    if not mounted or not mounted[0].is_dir():
        return []
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    inner = next((path for _, names, path in parts if controller in names.split(",")), "/")
    folder = mounted[0] / inner.strip("/")
    return [
        path
        for path in (folder, *folder.parents)
        if path == mounted[0] or mounted[0] in path.parents
    ]


def cpu_quota(folder: Path) -> float | None:
    """Returns the cores that a folder of the controller cpu allows; None without a limit."""
    quota, period = (_number(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
    return quota / period if quota and period and quota > 0 else None


def _number(path: Path) -> int | None:
    return int(path.read_text(encoding="utf-8").strip()) if path.is_file() else None
