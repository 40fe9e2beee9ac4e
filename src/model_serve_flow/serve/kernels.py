"""Checks that the engine computed with the compressed weights: its log must name the kernels."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.system.files import read_json
from model_serve_flow.system.gpus import find_gpus
from model_serve_flow.system.scheme_names import group_schemes

# The layer begins with a capital, because another line says "for mixed-precision linear".
_LINEAR = re.compile(r"(?:Selected|Using) (\w*(?:Kernel|Experts)\w*) for ([A-Z]\w*)")
# "Using 'MARLIN' WNA16 MoE backend.", "Using TRITON Fp8 MoE backend out of potential backends:
# [...]"
_EXPERTS = re.compile(r"Using '?(\w+)'? ((?:W4A8 )?\w+) MoE backend")
_UNQUANTISED = "Unquantized"
_WEIGHTS_ONLY = re.compile(r"Weight-only FP8 compression will be used leveraging the Marlin kernel")
WEIGHTS_ONLY = "Marlin for CompressedTensorsW8A16Fp8"

# Scheme -> the names that vLLM 0.32 logs for its linear layers and experts. A contract test checks
# that each name is in vLLM's source.
LAYERS: dict[str, tuple[str, ...]] = {
    "W8A8": ("CompressedTensorsW8A8Int8", "Int8 MoE"),
    "W4A16": ("CompressedTensorsWNA16", "WNA16 MoE"),
    "W8A16": ("CompressedTensorsWNA16", "WNA16 MoE"),
    "FP8": ("CompressedTensorsW8A8Fp8", "Fp8 MoE"),
    "W4A8": ("CompressedTensorsW4A8Int", "CompressedTensorsWNA8Int", "W4A8 Int8 MoE"),
    "W4AFP8": ("CompressedTensorsW4A8Fp8", "W4A8 MoE"),
    "NVFP4": ("NVFP4", "NvFp4 MoE"),
    "MXFP4": ("MXFP4", "Mxfp4 MoE"),
    "MXFP8": ("MXFP8", "MxFp8 MoE"),
}
FIRST_WITH_FP8 = 8.9  # compute capability; below it vLLM serves FP8 as W8A16 and logs no kernel
CPU_INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"
INT8_SATURATES = (
    "The processor has no VNNI: sums in vLLM's INT8 kernel saturate there, so INT8 loses more "
    "accuracy than on a processor that has it."
)
# with any of them, the CPU multiplies INT8 and sums in 32 bits
INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8")


def logged_kernels(log: str) -> tuple[str, ...]:
    """Lists the quantised kernels that vLLM's log names, as 'kernel for layer', sorted."""
    linear = {f"{kernel} for {layer}" for kernel, layer in _LINEAR.findall(log)}
    experts = {
        f"{name} for {kind} MoE" for name, kind in _EXPERTS.findall(log) if kind != _UNQUANTISED
    }
    fallback = {WEIGHTS_ONLY} if _WEIGHTS_ONLY.search(log) else set()
    return tuple(sorted(linear | experts | fallback))


def require_expected_kernel(facts: EngineFacts, name: str, folder: Path) -> None:
    """Checks that vLLM used the quantised kernels of a candidate, and none for the base.

    A candidate needs a kernel for each of its groups. An FP8 group passes without a kernel where
    vLLM logs none: on a GPU that does not compute in FP8, and for weights alone. This is printed. A
    checkpoint that stores only its KV cache in FP8 passes too.

    Args:
        facts: what the engine's log says.
        name: 'base' or the candidate's name.
        folder: the checkpoint.

    Raises:
        FlowError: a kernel is missing, or the base was served quantised. Names the group, its
            scheme and the kernels in the log.
    """
    if name == "base":
        if facts.quantization or facts.kernels:
            raise FlowError(
                f"The base model was served quantised ({facts.quantization}, "
                f"{', '.join(facts.kernels)}).",
                "Compare with an unquantised base: fix model.source in the profile.",
            )
        return
    config = read_json(folder / "config.json", finite=False).get("quantization_config") or {}
    # checkpoints of other tools name their layers differently
    ours = config.get("quant_method") == "compressed-tensors"
    groups = group_schemes(config) if ours else {}
    unlogged = ours and (
        all(map(_may_be_silent, groups.values())) if groups else bool(config.get("kv_cache_scheme"))
    )
    if not facts.quantization or not (facts.kernels or unlogged):
        raise FlowError(
            f"vLLM served {name!r} without a quantised kernel: its log names none.",
            f"Is {folder} a compressed checkpoint? Its measurements would be those of an "
            "uncompressed model.",
        )
    for group, scheme in groups.items():
        _require_group(facts, name, group, scheme)


def _require_group(facts: EngineFacts, name: str, group: str, scheme: str) -> None:
    layers = expected_layers(scheme)
    served = [kernel.rpartition(" for ")[2] for kernel in facts.kernels]
    if not layers or any(layer in layers for layer in served):
        return
    if _may_be_silent(scheme):
        print(
            f"{name}, {group} ({scheme}): served as weights in FP8, activations in 16 bits; vLLM "
            "logs no kernel."
        )
        return
    raise FlowError(
        f"vLLM served {name!r} with {', '.join(facts.kernels)}; "
        f"its {group} ({scheme}) needs a kernel for {' or '.join(layers)}.",
        "The checkpoint and the engine disagree: check the scheme and the engine's version.",
    )


def expected_layers(scheme: str) -> tuple[str, ...]:
    """Returns vLLM's names of the layers that may serve a scheme; empty if any kernel will do."""
    family = scheme.removesuffix("_ASYM")
    if family in LAYERS:
        return LAYERS[family]
    if family == "FP8_A16":
        return (WEIGHTS_ONLY.rpartition(" for ")[2],)
    return next((layers for known, layers in LAYERS.items() if family.startswith(known)), ())


def _may_be_silent(scheme: str) -> bool:
    """Checks whether vLLM serves this scheme here as W8A16, which logs no kernel."""
    if scheme == "FP8_A16":
        return True
    if not scheme.startswith("FP8"):
        return False
    gpus, _ = find_gpus()
    return any(0 < _number(gpu.compute_capability) < FIRST_WITH_FP8 for gpu in gpus)


def _number(capability: str) -> float:
    return float(capability) if capability.replace(".", "", 1).isdigit() else 0.0


def int8_saturates(architecture: str, cpu_features: Collection[str]) -> bool:
    """Checks whether vLLM's INT8 kernel adds pairs of products in 16 bits, which saturate.

    It does so on x86-64 without VNNI, where INT8 loses more accuracy than elsewhere. Sources:
    oneDNN's developer guide, "Nuances of int8 computations"; measured by benchmarks/int8_sums.py.
    """
    return architecture == "x86_64" and not set(INT8_FEATURES) & set(cpu_features)


def kernel_caveat(kernels: str, architecture: str, cpu_features: Collection[str]) -> str:
    """Says what a reader must know of the kernels on this processor; empty if nothing."""
    known = CPU_INT8_KERNEL in kernels and int8_saturates(architecture, cpu_features)
    return INT8_SATURATES if known else ""
