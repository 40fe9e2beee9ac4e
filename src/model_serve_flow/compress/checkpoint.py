"""Reads a quantised checkpoint's configuration and the headers of its tensors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_serve_flow.compress.recipes import linear_layers
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.system.files import read_json
from model_serve_flow.system.scheme_names import UNREADABLE, scheme_name
from model_serve_flow.system.weights import weight_files

WEIGHTS = ("weight_packed", "qweight", "weight")
SCALES = ("weight_scale", "weight_scale_inv", "weight_global_scale", "scales")
ACTIVATION_SCALES = ("input_scale", "input_global_scale")
KV_SCALES = ("k_scale", "v_scale")
STORED = (*WEIGHTS, *SCALES, "weight_zero_point", "qzeros")


@dataclass(frozen=True)
class Tensor:
    """The header of one tensor of a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """The facts of a quantised checkpoint, from its configuration and its tensor headers."""

    scheme: str
    quant_method: str
    quantization_config: dict[str, Any]
    quantized_layers: tuple[str, ...]
    ignored_layers: tuple[str, ...]
    bits_per_weight: float
    size_bytes: int


def inspect_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Reads configuration and tensor headers of a checkpoint made by any tool; loads no weights.

    Raises:
        FlowError: the checkpoint is not complete, or has no quantised layer.
    """
    from transformers import AutoConfig

    check_checkpoint(folder, trust_remote_code=trust_remote_code)
    config = _quantization_config(folder)
    if tool := UNREADABLE.get(str(config.get("quant_method"))):
        raise FlowError(
            f"{folder} is a checkpoint of {tool}, whose tensors this flow cannot read and verify.",
            "Give a checkpoint of llm-compressor, GPTQ, AWQ, AutoRound or ModelOpt, or a recipe "
            "for 03.",
        )
    tensors = tensor_headers(folder)
    quantized = _quantized_layers(tensors)
    if not config or not quantized:
        missing = (
            "no quantization_config in its config.json"
            if not config
            else "no quantised layer in its tensors"
        )
        raise FlowError(
            f"{folder} is not a quantised checkpoint: {missing}.",
            "Compress it, or correct 'source'.",
        )
    model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    layers = linear_layers(model_config)
    tied = model_config.get_text_config().tie_word_embeddings
    return Checkpoint(
        scheme=scheme_name(config),
        quant_method=config.get("quant_method", "unknown"),
        quantization_config=config,
        quantized_layers=tuple(quantized),
        ignored_layers=_left_layers(layers, quantized, tensors, tied),
        bits_per_weight=_bits_per_weight(quantized, tensors, layers),
        size_bytes=describe_model(folder.name, folder).size_bytes,
    )


def _quantization_config(folder: Path) -> dict[str, Any]:
    """Reads the quantisation settings from config.json.

    Older versions of ModelOpt write them to hf_quant_config.json.
    """
    config = read_json(folder / "config.json", finite=False).get("quantization_config") or {}
    older = folder / "hf_quant_config.json"
    if config or not older.is_file():
        return config
    written = read_json(older).get("quantization") or {}
    return {"quant_method": "modelopt", **written}


def tensor_headers(folder: Path) -> dict[str, Tensor]:
    """Reads the header of every tensor in the folder's safetensors files, by name."""
    from safetensors import safe_open

    headers = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                bits = int(digits.group()) if (digits := re.search(r"\d+", dtype)) else 8  # BOOL
                headers[name] = Tensor(path, dtype, shape, math.prod(shape) * bits // 8)
    return headers


def _quantized_layers(tensors: dict[str, Tensor]) -> list[str]:
    """Lists the layers that have a scale beside their weight, in natural order."""
    owners = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in SCALES}
    return sorted(owners, key=natural_key)


def _left_layers(
    layers: dict[str, tuple[int, int]], quantized: list[str], tensors: dict[str, Tensor], tied: bool
) -> tuple[str, ...]:
    """Lists the linear layers that are not quantised.

    A tied lm_head counts, although it has no tensor of its own.
    """
    stored = {
        name for name in layers if f"{name}.weight" in tensors or (tied and name == "lm_head")
    }
    return tuple(sorted(stored - set(quantized), key=natural_key))


def natural_key(name: str) -> list[Any]:
    """Returns a sort key that puts layer 10 after layer 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _bits_per_weight(
    quantized: list[str], tensors: dict[str, Tensor], layers: dict[str, tuple[int, int]]
) -> float:
    """Computes the stored bits per weight: weights, scales and zero points.

    It covers the quantised layers whose shape is known.
    """
    known = [name for name in quantized if name in layers]
    if not known:
        raise FlowError(
            f"None of the {len(quantized)} quantised layers, such as {quantized[0]}, is a linear "
            "layer of the model.",
            "Weights and config.json belong to different models.",
        )
    stored = [
        tensors[f"{name}.{part}"].size_bytes
        for name in known
        for part in STORED
        if f"{name}.{part}" in tensors
    ]
    return 8 * sum(stored) / sum(math.prod(layers[name]) for name in known)
