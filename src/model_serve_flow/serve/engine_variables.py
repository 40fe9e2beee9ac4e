"""Which variables of the surrounding environment reach vLLM, and which the flow sets itself."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.system.files import cache_folder

PREFIX = "VLLM_"
# vLLM knows these, but the flow reads its log as it is by default, and decides itself where it
# listens and how it ends.
OWN = re.compile(
    r"VLLM_(LOGGING_\w+|CONFIGURE_LOGGING|PORT|HOST_IP|LOOPBACK_IP|RPC_BASE_PATH|API_KEY|DP_\w+|SERVER_DEV_MODE"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|PROCESS_NAME_PREFIX)"
)
# Kubernetes describes each Service to every container: one named vllm-x gives
# VLLM_X_PORT=tcp://172.30.12.7:8000.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
_NAME = re.compile(r'^    "(VLLM_\w+)":', re.MULTILINE)


@dataclass(frozen=True)
class Inherited:
    """The surrounding environment without what must not reach vLLM.

    Attributes:
        passed: the variables that reach it, by name.
        dropped: names of those that do not.
    """

    passed: dict[str, str]
    dropped: tuple[str, ...]


def inherited(environment: Mapping[str, str]) -> Inherited:
    """What of an environment reaches vLLM.

    A variable `VLLM_*` does if vLLM itself knows the name, the flow does not decide it (see `OWN`),
    and its value is not the address of a Kubernetes Service. All variables of other names do.
    """
    dropped = tuple(
        sorted(name for name, value in environment.items() if not _reaches(name, value))
    )
    return Inherited(
        {name: value for name, value in environment.items() if name not in dropped}, dropped
    )


def _reaches(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return True
    return name in known_names() and not OWN.fullmatch(name) and not SERVICE_LINK.match(value)


@functools.cache
def known_names() -> frozenset[str]:
    """The variables `VLLM_*` that the installed vLLM reads; none where it is not installed.

    They are read from its source: importing it takes more than ten seconds.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    return frozenset(
        _NAME.findall(Path(found.origin).with_name("envs.py").read_text(encoding="utf-8"))
    )


def compile_caches(config: FlowConfig) -> dict[str, str]:
    """Where vLLM keeps what it compiled, for the next server;
    nothing where it compiles nothing (`enforce_eager`).

    They are in the user's cache: a server's own temporary folder goes with it. Where the user set
    one, it stays.
    """
    if config.engine.enforce_eager:
        return {}
    folders = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    root = cache_folder() / "compiled"
    return {name: os.environ.get(name) or str(root / folder) for name, folder in folders.items()}
