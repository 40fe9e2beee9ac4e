"""Proof that the compressed weights really were computed with: the engine's log must name the kernel of the scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.results import EngineFacts
from model_serve_flow.workspace import read_json


def require_expected_kernel(facts: EngineFacts, name: str, folder: Path) -> None:
    """FlowError unless the base was served unquantised, and a candidate with the kernel of its checkpoint's scheme."""
    if name == "base":
        if facts.quantization or facts.kernels:
            raise FlowError(
                f"The base model was served quantised ({facts.quantization}, {', '.join(facts.kernels)}).",
                "Compare with an unquantised base: fix model.source in the profile.",
            )
        return
    if not facts.quantization or not facts.kernels:
        raise FlowError(
            f"vLLM served {name!r} without a quantised kernel: its log names none.",
            f"Is {folder} a compressed checkpoint? Its measurements would be those of an uncompressed model.",
        )
    layer = expected_layer(read_json(folder / "config.json").get("quantization_config", {}))
    if not any(layer in kernel.rpartition(" for ")[2] for kernel in facts.kernels):
        raise FlowError(
            f"vLLM served {name!r} with {', '.join(facts.kernels)}; its configuration needs a kernel for *{layer}*.",
            "The checkpoint and the engine disagree: check the scheme and the engine's version.",
        )


def expected_layer(quantization_config: dict[str, Any]) -> str:
    """Part of vLLM's name for a checkpoint's quantised layers: 'Int8', 'Fp8', 'WNA16'; any ('') for other formats."""
    if quantization_config.get("quant_method") != "compressed-tensors":
        return ""
    group = next(iter(quantization_config["config_groups"].values()))
    if group.get("input_activations") is None:
        return "WNA16"
    return "Fp8" if group["weights"]["type"] == "float" else "Int8"
