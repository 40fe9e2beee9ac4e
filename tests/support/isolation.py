"""Runs a command where no network is: in a user and network namespace of its own,
which has a loopback only.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SET_FLAGS = 0x8914  # SIOCSIFFLAGS, see netdevice(7)
UP_AND_RUNNING = 0x1 | 0x40  # IFF_UP | IFF_RUNNING


def isolated(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` with 127.0.0.1 and ::1 as the only addresses there are.

    The loopback is the namespace's own: servers outside it, on 127.0.0.1 too, are out of reach.
    Nothing forks on the way, so the process started is the command itself. Process ids, files and
    the user are those of the outside, where it can be seen and killed as ever; inside, the user
    looks like root.
    """
    return [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        sys.executable,
        str(Path(__file__).resolve()),
        *command,
    ]


@functools.cache
def namespaces_allowed() -> bool:
    """Whether this machine lets its user make such namespaces; containers often do not."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(isolated(["true"]), capture_output=True, check=False).returncode == 0


def raise_loopback() -> None:
    """Switches the interface `lo` on; OSError where that is not allowed.

    `ip link set lo up` without the tool.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sh14x", b"lo", UP_AND_RUNNING))


if __name__ == "__main__":
    raise_loopback()
    os.execvp(sys.argv[1], sys.argv[1:])
