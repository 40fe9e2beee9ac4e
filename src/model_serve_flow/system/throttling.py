"""How long the machine held its own cores back: too hot,
or a container that had used up its share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

CORES = Path("/sys/devices/system/cpu")
HEAT = "cpu*/thermal_throttle/core_throttle_total_time_ms"
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
UNITS = {"throttled_usec": 1e6, "throttled_time": 1e9}  # of version 2 and 1 of the control groups


def throttled_seconds(cores: Iterable[int]) -> float | None:
    """Core seconds until now in which cores were slowed by heat or stopped by a quota; none:
    no counter is there.

    Heat: Linux counts the milliseconds of each core on processors that tell it. Quota: the counter
    of the control group that this process is in.

    Args:
        cores: that this process may run on.
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
    """Where `cpu.stat` of this process's control group can be, the most likely first."""
    lines = OWN_GROUP.read_text().splitlines() if OWN_GROUP.is_file() else []
    groups = [line.split(":", 2) for line in lines]
    own = [
        path.lstrip("/")
        for _, controllers, path in groups
        if controllers == "" or "cpu" in controllers.split(",")
    ]
    folders = [CONTROL_GROUPS / kind / path for path in own for kind in ("", "cpu")]
    return [folder / "cpu.stat" for folder in (*folders, CONTROL_GROUPS, CONTROL_GROUPS / "cpu")]
