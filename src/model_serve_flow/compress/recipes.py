"""Turns a recipe into llm-compressor's modifiers, and checks it against the model's layers."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FUSED = ("gate_up_proj", "down_proj")  # tensors with the weights of all experts of a layer
# how transformers renames experts when it saves them
SAVED_AS = {"mixtral": (".mlp.", ".block_sparse_moe.")}
DEFAULT_GROUP_SIZE = 128
SERVED_GROUP_SIZES = (32, 64, 128)  # sizes that all of vLLM's 4-bit kernels support

_TOKEN_ACTIVATIONS = {"strategy": "token", "symmetric": True, "dynamic": True}
SCHEMES: dict[str, dict[str, Any]] = {
    "W8A8": {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "int", **_TOKEN_ACTIVATIONS},
    },
    "W4A16": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}},
    "W4A16_ASYM": {
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": False}
    },
    "FP8_DYNAMIC": {
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", **_TOKEN_ACTIVATIONS},
    },
}


def recipe_modifiers(recipe: Recipe) -> list[Any]:
    """Returns the llm-compressor modifiers of a recipe, in the order in which they act.

    SmoothQuant and AWQ only move difficulty between activations and weights. The last modifier
    quantises.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    modifiers: list[Any] = []
    if recipe.smoothing_strength is not None:
        modifiers.append(SmoothQuantModifier(smoothing_strength=recipe.smoothing_strength))
    if recipe.algorithm == "awq":
        modifiers.append(AWQModifier())
    quantiser = GPTQModifier if recipe.algorithm == "gptq" else QuantizationModifier
    modifiers.append(quantiser(config_groups=config_groups(recipe), ignore=list(recipe.ignore)))
    return modifiers


def config_groups(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Returns the recipe's scheme as llm-compressor's `config_groups`.

    There is one group, for all linear layers.
    """
    scheme = SCHEMES[recipe.scheme]
    weights = dict(scheme["weights"])
    if weights["strategy"] == "group":
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
    group_size = config_groups(recipe)["group_0"]["weights"].get("group_size")
    if group_size is None:
        return
    columns = {
        name: shape[1]
        for name, shape in linear_layers(model_config).items()
        if not name_matches(name, recipe.ignore)
    }
    for name, count in columns.items():
        if count % group_size:
            common = math.gcd(*columns.values())
            fitting = [str(size) for size in SERVED_GROUP_SIZES if common % size == 0]
            raise FlowError(
                f"group_size {group_size} does not divide the {count} input columns of {name}.",
                f"Set group_size to {' or '.join(fitting)}."
                if fitting
                else "Add the layer to the recipe's 'ignore'.",
            )


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
