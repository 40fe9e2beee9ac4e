"""Reads the features of this machine's processor; needs only the standard library."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CPU_FEATURES = (
    *("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
# Needed on x86-64: without it, vLLM's CPU build 0.32 loads a W4A16 checkpoint but fails at a
# request.
INT4_FEATURE = "avx512f"


def serves_int4(architecture: str, features: Collection[str]) -> bool:
    """Checks whether vLLM's CPU build has its kernel for 4-bit weights on such a processor."""
    return architecture != "x86_64" or INT4_FEATURE in features


def describe_cpu(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """Returns the model name and the relevant features from the text of /proc/cpuinfo."""
    lines = [line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line]
    # reversed, so that the first processor counts
    fields = {key.strip(): value.strip() for key, value in reversed(lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    features = tuple(name for name in CPU_FEATURES if name in flags)
    return fields.get("model name", platform.machine()), features
