"""Chooses which environment variables reach vLLM, and where vLLM keeps compiled code."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.serve.engine import Inherited
from model_serve_flow.system.files import cache_folder

PREFIX = "VLLM_"
# vLLM knows these variables, but they are not passed on: the flow needs vLLM's default log format,
# and decides where vLLM listens and how vLLM ends.
OWN = re.compile(
    r"VLLM_(LOGGING_\w+|CONFIGURE_LOGGING|PORT|HOST_IP|LOOPBACK_IP|RPC_BASE_PATH|API_KEY|DP_\w+|SERVER_DEV_MODE"
    r"|KEEP_ALIVE_ON_ENGINE_DEATH|PROCESS_NAME_PREFIX)"
)
# Kubernetes sets variables for each Service in every container: the Service vllm-x gives
# VLLM_X_PORT=tcp://172.30.12.7:8000.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
_NAME = re.compile(r'^    "(VLLM_\w+)":', re.MULTILINE)


def inherited(environment: Mapping[str, str]) -> Inherited:
    """Chooses the variables of an environment that reach vLLM.

    A variable `VLLM_*` reaches vLLM if vLLM knows the name, the flow does not set it (see `OWN`),
    and its value is not the address of a Kubernetes Service. Variables with other names always
    reach vLLM.
    """
    dropped = tuple(
        sorted(name for name, value in environment.items() if not _reaches(name, value))
    )
    passed = {name: value for name, value in environment.items() if name not in dropped}
    engine = {name: value for name, value in passed.items() if name.startswith(PREFIX)}
    return Inherited(passed, dropped, recorded=engine)


def _reaches(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return True
    return name in known_names() and not OWN.fullmatch(name) and not SERVICE_LINK.match(value)


@functools.cache
def known_names() -> frozenset[str]:
    """Reads the names of the variables `VLLM_*` that the installed vLLM knows.

    The names come from vLLM's source text, because importing vLLM takes more than ten seconds.

    Returns:
        Empty if vLLM is not installed.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    return frozenset(
        _NAME.findall(Path(found.origin).with_name("envs.py").read_text(encoding="utf-8"))
    )


def compile_caches(config: FlowConfig) -> dict[str, str]:
    """Returns the variables that keep vLLM's compiled code for the next server.

    The code is stored in the user's cache, because a server's own temporary folder is deleted with
    the server. A folder that the user set is kept. With `enforce_eager` vLLM compiles nothing, and
    the result is empty.
    """
    if config.engine.enforce_eager:
        return {}
    folders = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    root = cache_folder() / "compiled"
    return {name: os.environ.get(name) or str(root / folder) for name, folder in folders.items()}
