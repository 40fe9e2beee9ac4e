"""Surroundings that users have and that must not matter: a Service named vllm, a proxy,
and no compiler.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# what Kubernetes tells every container beside a Service named vllm, and a level for another server
SERVICE = {
    "VLLM_PORT": "tcp://172.30.12.7:8000",
    "VLLM_PORT_8000_TCP": "tcp://172.30.12.7:8000",
    "VLLM_SERVICE_HOST": "172.30.12.7",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
NOBODY = "http://127.0.0.1:9"  # a proxy that takes no connection: what asks it fails
COMPILER = re.compile(r"(.*-)?(cc|c\+\+|gcc|g\+\+|cpp|clang|clang\+\+|c\d\d)(-[\d.]+)?")


def hostile(folder: Path) -> dict[str, str]:
    """The environment of this process, made hostile;
    `folder` is filled with links to all programs but compilers.
    """
    link_programs(folder, os.environ["PATH"].split(os.pathsep))
    proxies = {name: NOBODY for proxy in PROXIES for name in (proxy, proxy.upper())}
    nothing = {"CC": "/nonexistent", "CXX": "/nonexistent", "PATH": str(folder)}
    helping = ("NO_PROXY", "no_proxy", "TORCH_COMPILE_DISABLE")
    kept = {name: value for name, value in os.environ.items() if name not in helping}
    return {**kept, **SERVICE, **proxies, **nothing}


def link_programs(folder: Path, path: list[str]) -> None:
    for place in map(Path, path):
        for program in place.iterdir() if place.is_dir() else ():
            link = folder / program.name
            if not COMPILER.fullmatch(program.name) and not link.is_symlink():
                link.symlink_to(program)
