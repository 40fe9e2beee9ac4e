"""Tells with which kernel the pinned vLLM serves a scheme on a device.

`kernel_table.json` is vLLM's own answer for every scheme, made by tools/kernel_table.py. A contract
test compares it with the installed vLLM. This module adds what only vLLM's compiled code decides,
with the source.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from model_serve_flow.system.processor import INT4_FEATURE, serves_int4

State = Literal["as stored", "weights only", "emulated", "absent"]
KV_CACHE = "KV_FP8"
# Schemes that also quantise activations. For them, a kernel that only unpacks weights is a
# fallback.
WITH_ACTIVATIONS = (
    "W8A8",
    "FP8_DYNAMIC",
    "FP8",
    "FP8_BLOCK",
    "W4A8",
    "W4AFP8",
    "NVFP4",
    "MXFP4",
    "MXFP8",
)
# On Hopper and older, Humming kernels compute these schemes in 16 bits; their names do not say so.
UNPACKED_BY_HUMMING = ("W4A8", "NVFP4", "MXFP4", "MXFP8")
NO_INT8_FROM = 10.0
NO_INT8 = (
    "vLLM has no compiled INT8 kernel for compute capability 10.0 and newer: it starts, and "
    "refuses the first request (csrc, cutlass/c3x/scaled_mm_helper.hpp)"
)
NO_STATIC_FP8_ON_CPU = (
    "vLLM's CPU build stops while it loads the weights: layers that it joins, such as query, key "
    "and value, get one scale, and static_scaled_fp8_quant is empty there (measured)"
)
NO_INT4_ON_CPU = f"vLLM's kernel for 4-bit weights needs {INT4_FEATURE} (AVX-512) on x86-64"


@dataclass(frozen=True)
class Service:
    """How a scheme is served on a device.

    Attributes:
        scheme: such as "FP8_DYNAMIC".
        state: "as stored": the kernel computes in the scheme's own types. "weights only":
            activations stay in 16 bits, which saves memory but is not faster. "emulated": weights
            are unpacked, then computed like the base. "absent": vLLM refuses the checkpoint.
        kernels: vLLM's classes. vLLM takes the second if a CUDA toolkit lets FlashInfer compile.
        why: the reason of "absent"; else empty.
    """

    scheme: str
    state: State
    kernels: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        return (
            f"absent ({self.why})"
            if self.state == "absent"
            else f"{self.state}, {' or '.join(self.kernels)}"
        )


def pinned_version() -> str:
    """Returns the version of vLLM that the table describes."""
    return _table()["vllm"]


def capabilities() -> tuple[str, ...]:
    """Lists the compute capabilities in the table, such as "8.9"."""
    return tuple(_table()["gpu"])


def on_gpu(
    scheme: str, capability: str, dtype: str = "bfloat16", *, experts: bool = False
) -> Service | None:
    """Tells how a GPU serves a scheme.

    Args:
        scheme: such as "FP8_DYNAMIC", or "KV_FP8" for a KV cache in FP8.
        capability: the GPU's compute capability. If the table lacks it, the next lower capability
            of the same generation counts.
        dtype: "bfloat16" or "float16".
        experts: whether the model has fused experts, which need other kernels.

    Returns:
        None if the table does not know the scheme, the dtype or the GPU.
    """
    if (known := _nearest(capability)) is None:
        return None
    row = _table()["gpu"][known].get(dtype, {}).get(scheme)
    if scheme == "W8A8" and float(known) >= NO_INT8_FROM:
        return Service(scheme, "absent", why=NO_INT8)
    return None if row is None else _service(scheme, row, experts)


def on_cpu(
    scheme: str, architecture: str, features: Collection[str], *, experts: bool = False
) -> Service | None:
    """Tells how vLLM's CPU build serves a scheme.

    Args:
        scheme: as for `on_gpu`.
        architecture: such as "x86_64".
        features: names as in /proc/cpuinfo; "avx512f" and "amx_tile" matter.
        experts: as for `on_gpu`.

    Returns:
        None if the table does not know the scheme.
    """
    row = _table()["cpu"]["amx" if "amx_tile" in features else "other"].get(scheme)
    if scheme == "FP8":
        return Service(scheme, "absent", why=NO_STATIC_FP8_ON_CPU)
    if scheme.startswith("W4A16") and not serves_int4(architecture, features):
        return Service(scheme, "absent", why=NO_INT4_ON_CPU)
    return None if row is None else _service(scheme, row, experts)


def _service(scheme: str, row: dict[str, Any], experts: bool) -> Service:
    if "absent" in row:
        return Service(scheme, "absent", why=row["absent"])
    rows = [row, *([row["with_toolkit"]] if "with_toolkit" in row else [])]
    kernels = [found["kernel"] for found in rows]
    if experts and scheme != KV_CACHE:
        kernels = [found["experts"] or "" for found in rows]
        if not any(kernels):
            return Service(
                scheme, "absent", why="vLLM has no kernel for fused experts in this scheme here"
            )
    if not all(kernels):
        return Service(scheme, "absent", why="vLLM has no kernel for it here")
    return Service(
        scheme, _state(scheme, row.get("layer", ""), kernels[0]), tuple(dict.fromkeys(kernels))
    )


def _state(scheme: str, layer: str, kernel: str) -> State:
    if "Emulation" in kernel:
        return "emulated"
    if scheme not in WITH_ACTIVATIONS:
        return "as stored"
    unpacks = "Marlin" in kernel or "A16" in kernel or "A16" in layer or kernel.startswith("CPUFp8")
    return (
        "weights only"
        if unpacks or ("Humming" in kernel and scheme in UNPACKED_BY_HUMMING)
        else "as stored"
    )


def _nearest(capability: str) -> str | None:
    """Returns the capability of the table that is used for a GPU; None if there is none."""
    try:
        major, minor = map(int, capability.split("."))
    except ValueError:
        return None
    fitting = [known for known in capabilities() if known.split(".")[0] == str(major)]
    return max((known for known in fitting if int(known.split(".")[1]) <= minor), default=None)


@functools.cache
def _table() -> dict[str, Any]:
    path = resources.files("model_serve_flow.system").joinpath("kernel_table.json")
    return json.loads(path.read_text(encoding="utf-8"))
