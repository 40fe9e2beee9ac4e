"""Turns a recipe into llm-compressor's modifiers, and checks it against the model's layers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import GROUPED, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FUSED = ("gate_up_proj", "down_proj")  # tensors with the weights of all experts of a layer
# how transformers renames experts when it saves them
SAVED_AS = {"mixtral": (".mlp.", ".block_sparse_moe.")}
DEFAULT_GROUP_SIZE = 128
SERVED_GROUP_SIZES = (32, 64, 128)  # sizes that all of vLLM's 4-bit kernels support
BLOCK = 128  # rows and columns that share a scale of FP8_BLOCK


def _values(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    """Describes how weights or activations are quantised, in the words of compressed-tensors."""
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | more


_NVFP4 = {"group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
_MXFP4 = {"group_size": 32, "scale_dtype": "torch.uint8"}
# A contract test compares them with compressed-tensors, which has a preset of each name.
SCHEMES: dict[str, dict[str, Any]] = {
    "W8A8": {
        "weights": _values(8, "int", "channel"),
        "input_activations": _values(8, "int", "token", dynamic=True),
    },
    "W4A16": {"weights": _values(4, "int", "group")},
    "W4A16_ASYM": {"weights": _values(4, "int", "group", symmetric=False)},
    "W8A16": {"weights": _values(8, "int", "group")},
    "FP8_DYNAMIC": {
        "weights": _values(8, "float", "channel"),
        "input_activations": _values(8, "float", "token", dynamic=True),
    },
    "FP8": {
        "weights": _values(8, "float", "tensor"),
        "input_activations": _values(8, "float", "tensor", dynamic=False, observer="static_minmax"),
    },
    "FP8_BLOCK": {
        "weights": _values(8, "float", "block", block_structure=[BLOCK, BLOCK]),
        "input_activations": _values(8, "float", "group", dynamic=True, group_size=BLOCK),
    },
    "NVFP4": {
        "weights": _values(4, "float", "tensor_group", **_NVFP4),
        "input_activations": _values(
            4, "float", "tensor_group", dynamic="local", observer="static_minmax", **_NVFP4
        ),
    },
    "NVFP4A16": {"weights": _values(4, "float", "tensor_group", **_NVFP4)},
    "MXFP4": {
        "weights": _values(4, "float", "group", **_MXFP4),
        "input_activations": _values(4, "float", "group", dynamic=True, **_MXFP4),
    },
}
# `kv_cache_scheme` of a recipe -> llm-compressor's: one scale for all keys of a layer, one for all
# values.
KV_CACHE_SCHEMES: dict[str, dict[str, Any]] = {
    "FP8": _values(8, "float", "tensor", dynamic=False),
}


def recipe_modifiers(recipe: Recipe) -> list[Any]:
    """Returns the llm-compressor modifiers of a recipe, in the order in which they act.

    SmoothQuant and AWQ only move difficulty between activations and weights. The last modifier
    quantises.
    """
    import torch
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    modifiers: list[Any] = []
    if recipe.smoothing_strength is not None:
        modifiers.append(SmoothQuantModifier(smoothing_strength=recipe.smoothing_strength))
    if recipe.algorithm == "awq":
        modifiers.append(AWQModifier())
    settings: dict[str, Any] = {"ignore": list(recipe.ignore)}
    if recipe.algorithm == "autoround" and recipe.scheme not in GROUPED:
        # AutoRound converts the scales of MXFP4 and NVFP4 only if it is told the scheme by name.
        settings["scheme"] = recipe.scheme
    else:
        settings["config_groups"] = config_groups(recipe)
    if recipe.kv_cache_scheme is not None:
        settings["kv_cache_scheme"] = KV_CACHE_SCHEMES[recipe.kv_cache_scheme]
    if recipe.algorithm == "autoround":
        # On a CPU compiling takes minutes for every layer and saves less.
        settings["enable_torch_compile"] = torch.accelerator.is_available()
    return [*modifiers, _quantiser(recipe)(**settings)]


def _quantiser(recipe: Recipe) -> Any:
    """Returns llm-compressor's class that quantises the weights."""
    if recipe.algorithm == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return GPTQModifier
    if recipe.algorithm == "autoround":
        from llmcompressor.modifiers.autoround import AutoRoundModifier

        return AutoRoundModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier


def config_groups(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Returns the recipe's scheme as llm-compressor's `config_groups`.

    There is one group, for all linear layers.
    """
    scheme = SCHEMES[recipe.scheme]
    weights = dict(scheme["weights"])
    if recipe.scheme in GROUPED:
        weights["group_size"] = recipe.group_size or DEFAULT_GROUP_SIZE
    if recipe.observer is not None:
        weights["observer"] = recipe.observer
    return {"group_0": {"targets": ["Linear"], **scheme, "weights": weights}}


def check_group_size(recipe: Recipe, model_config: PreTrainedConfig) -> None:
    """Checks that the group size divides the input columns of every layer to be quantised.

    It runs before hours of computing are spent.

    Raises:
        FlowError: names a layer that does not fit, its columns, and the sizes that would fit.
    """
    group = config_groups(recipe)["group_0"]
    parts = (group["weights"], group.get("input_activations", {}))
    group_size = next((part["group_size"] for part in parts if "group_size" in part), None)
    if group_size is None:
        return
    columns = {
        name: shape[1]
        for name, shape in linear_layers(model_config).items()
        if not name_matches(name, recipe.ignore)
    }
    for name, count in columns.items():
        if count % group_size:
            raise FlowError(
                f"group_size {group_size} does not divide the {count} input columns of {name}.",
                _fitting_sizes(recipe, math.gcd(*columns.values())),
            )


def _fitting_sizes(recipe: Recipe, common: int) -> str:
    """Says which group sizes would fit columns with this common divisor, or what else to do."""
    fitting = [str(size) for size in SERVED_GROUP_SIZES if common % size == 0]
    if recipe.scheme in GROUPED and fitting:
        return f"Set group_size to {' or '.join(fitting)}."
    own = "" if recipe.scheme in GROUPED else f", or choose another scheme than {recipe.scheme}"
    return f"Add the layer to the recipe's 'ignore'{own}."


def check_ignore(recipe: Recipe, model_config: PreTrainedConfig) -> None:
    """Checks that every entry of `ignore` names a layer of the model.

    It runs before hours of computing are spent.

    Raises:
        FlowError: names the entry, and layers with similar names.
    """
    names = [name for name, _ in _meta_model(model_config).named_modules() if name]
    for entry in recipe.ignore:
        if not any(name_matches(name, [entry]) for name in names):
            last = {name.rpartition(".")[2]: name for name in names}
            similar = difflib.get_close_matches(
                entry.removeprefix("re:").rpartition(".")[2], last, n=3
            )
            raise FlowError(
                f"The recipe ignores {entry!r}, which names no layer of the model.",
                f"Similar are {', '.join(last[name] for name in similar)}."
                if similar
                else "Correct 'ignore'.",
            )


def linear_layers(model_config: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """Lists the model's linear layers with their shapes; allocates no weights.

    Experts that are fused into one tensor count as separate linear layers.

    Returns:
        Name -> (rows, columns).

    Raises:
        FlowError: transformers does not know the architecture.
    """
    import torch

    layers: dict[str, tuple[int, int]] = {}
    for name, module in _meta_model(model_config).named_modules():
        if isinstance(module, torch.nn.Linear):
            layers[name] = tuple(module.weight.shape)
        elif all(hasattr(module, part) for part in FUSED):
            saved = name.replace(*SAVED_AS.get(model_config.model_type, ("", "")))
            layers |= _expert_layers(saved, *(getattr(module, part).shape for part in FUSED))
    return layers


def _expert_layers(name: str, up: Sequence[int], down: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Splits fused experts into linear layers, named as llm-compressor and the engine name them.

    Args:
        up: shape (experts, 2 x intermediate, hidden).
        down: shape (experts, hidden, intermediate).

    Raises:
        FlowError: the shapes are different.
    """
    experts, doubled, hidden = up
    if tuple(down) != (experts, hidden, doubled // 2):
        raise FlowError(
            f"{name} holds its experts in an order that this flow does not know: {tuple(up)}, "
            f"{tuple(down)}.",
            "Give a ready-made checkpoint of this model as 'source'.",
        )
    shapes = {
        "gate_proj": (doubled // 2, hidden),
        "up_proj": (doubled // 2, hidden),
        "down_proj": (hidden, doubled // 2),
    }
    return {
        f"{name}.{number}.{part}": shape
        for number in range(experts)
        for part, shape in shapes.items()
    }


def _meta_model(model_config: PreTrainedConfig) -> Any:
    """Builds the model without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(model_config)
    except ValueError as error:
        raise FlowError(
            f"transformers cannot build a {model_config.model_type!r} model: "
            f"{str(error).splitlines()[0]}",
            "Only causal language models that transformers knows can be compressed or inspected.",
        ) from error


def name_matches(name: str, patterns: Iterable[str]) -> bool:
    """Checks a layer's name against the patterns of llm-compressor's `ignore`.

    A pattern is a name, or 're:' and a regular expression that matches from the beginning.
    """
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)


def algorithm_text(recipe: Recipe) -> str:
    """Names the algorithm for reports, for instance 'smoothquant+rtn'."""
    return (
        recipe.algorithm if recipe.smoothing_strength is None else f"smoothquant+{recipe.algorithm}"
    )
