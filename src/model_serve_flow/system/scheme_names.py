"""Names the scheme that a checkpoint's `quantization_config` describes.

The names are those of llm-compressor and of the kernel table: NVFP4A16 is not W4A16, and FP8_BLOCK
is not FP8_DYNAMIC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KV_CACHE = "KV_FP8"
# Formats whose tensors this flow cannot read: `quant_method` -> name of the format.
UNREADABLE = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "quanto",
    "hqq": "HQQ",
}
MODELOPT = {
    "FP8": "FP8",
    "NVFP4": "NVFP4",
    "W4A8_AWQ": "W4AFP8",
    "MXFP8": "MXFP8",
    "FP8_PB_WO": "FP8_BLOCK",
}


def scheme_name(config: Mapping[str, Any]) -> str:
    """Returns the scheme, such as W8A8 or FP8_DYNAMIC; several groups are joined by "+"."""
    names = list(dict.fromkeys(group_schemes(config).values()))
    if config.get("kv_cache_scheme") or config.get("kv_cache_quant_algo"):
        names.append(KV_CACHE)
    return "+".join(names) or "UNKNOWN"


def group_schemes(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns group -> scheme of every group that quantises weights.

    Groups for attention alone have no scheme.
    """
    method = str(config.get("quant_method", "unknown"))
    if method == "compressed-tensors":
        groups = config.get("config_groups") or {}
        return {name: _group(group) for name, group in groups.items() if group.get("weights")}
    return {method: _of_another_tool(method, config)}


def _group(group: Mapping[str, Any]) -> str:
    weights, inputs = group["weights"], group.get("input_activations")
    if weights["type"] == "float":
        return _floating(weights, inputs)
    bits = (
        "AFP8"
        if inputs and inputs.get("type") == "float"
        else f"A{inputs['num_bits'] if inputs else 16}"
    )
    return f"W{weights['num_bits']}{bits}" + ("" if weights.get("symmetric", True) else "_ASYM")


def _floating(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> str:
    strategy = weights.get("strategy")
    if weights["num_bits"] == 4:
        family = "NVFP4" if strategy == "tensor_group" else "MXFP4"
        return family + ("" if inputs else "A16")
    if strategy == "group" and weights.get("group_size") == 32:
        return "MXFP8" if inputs else "MXFP8A16"
    if not inputs:
        return f"FP{weights['num_bits']}_A16"
    if strategy == "block":
        return "FP8_BLOCK"
    return f"FP{weights['num_bits']}" + ("_DYNAMIC" if inputs.get("dynamic") is True else "")


def _of_another_tool(method: str, config: Mapping[str, Any]) -> str:
    if method == "fp8":
        if config.get("weight_block_size"):
            return "FP8_BLOCK"
        return "FP8" if config.get("activation_scheme") == "static" else "FP8_DYNAMIC"
    if method == "mxfp4":
        return "MXFP4A16"
    if method.startswith("modelopt"):
        algorithm = str(
            config.get("quant_algo") or (config.get("quantization") or {}).get("quant_algo")
        )
        return MODELOPT.get(algorithm, algorithm.upper())
    if method == "bitsandbytes":
        return "BNB_4BIT" if config.get("load_in_4bit") else "BNB_8BIT"
    if (bits := config.get("bits") or config.get("w_bit")) is None:
        return method.upper()
    symmetric = config.get("sym", not config.get("zero_point", False))
    return f"W{bits}A16" + ("" if symmetric else "_ASYM")
