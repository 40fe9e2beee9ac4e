"""Measures how long the cores were held back by heat or by a container's CPU quota."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

CORES = Path("/sys/devices/system/cpu")
HEAT = "cpu*/thermal_throttle/core_throttle_total_time_ms"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
UNITS = {"throttled_usec": 1e6, "throttled_time": 1e9}  # of cgroups version 2 and version 1


def throttled_seconds(cores: Iterable[int]) -> float | None:
    """Returns the core seconds until now in which heat or a quota held the cores back.

    Heat: on processors that report it, Linux counts the milliseconds of each core. Quota: the
    counter of this process's control group.

    Args:
        cores: the cores that this process may run on.

    Returns:
        None if there is no counter.
    """
    found = [seconds for seconds in (_heat(set(cores)), _quota()) if seconds is not None]
    return sum(found) if found else None


def _heat(cores: set[int]) -> float | None:
    counters = [
        path for path in CORES.glob(HEAT) if int(path.parts[-3].removeprefix("cpu")) in cores
    ]
    readings = [int(path.read_text()) for path in counters]
    return sum(readings) / 1000 if readings else None


def _quota() -> float | None:
    for path in _group_files():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            values = dict(line.split() for line in path.read_text().splitlines())
            for name, unit in UNITS.items():
                if name in values:
                    return int(values[name]) / unit
    return None


def _group_files() -> list[Path]:
    """Lists where `cpu.stat` of this process's control group can be, likeliest first."""
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.is_file() else []
    groups = [line.split(":", 2) for line in lines]
    own = [
        path.lstrip("/")
        for _, controllers, path in groups
        if controllers == "" or "cpu" in controllers.split(",")
    ]
    folders = [CONTROL_GROUPS / kind / path for path in own for kind in ("", "cpu")]
    return [folder / "cpu.stat" for folder in (*folders, CONTROL_GROUPS, CONTROL_GROUPS / "cpu")]
