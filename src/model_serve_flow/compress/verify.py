"""Checks that a quantised checkpoint matches its configuration and its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_serve_flow.compress.checkpoint import (
    SCALES,
    Checkpoint,
    inspect_checkpoint,
    natural_key,
    tensor_headers,
)
from model_serve_flow.compress.recipes import config_groups, linear_layers, name_matches
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.setup.integrity import REMAKE
from model_serve_flow.system.weights import weight_files

SAVED_DTYPES = {("int", 8): "I8", ("float", 8): "F8_E4M3"}


def verify_checkpoint(
    folder: Path, recipe: Recipe | None = None, *, trust_remote_code: bool = False
) -> Checkpoint:
    """Checks that a saved checkpoint matches its configuration, and its recipe if it has one.

    Raises:
        FlowError: names the wrong layer, tensor or field of `quantization_config`.
    """
    from transformers import AutoConfig

    checkpoint = inspect_checkpoint(folder, trust_remote_code=trust_remote_code)
    layers = linear_layers(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
    if recipe is None:
        _require_every_layer(folder, checkpoint, layers)
    else:
        _check_config(folder, checkpoint, recipe)
        _check_layers(folder, checkpoint, recipe, layers)
        _check_shapes(folder, recipe, {name: layers[name] for name in checkpoint.quantized_layers})
    _check_ignore_list(folder, checkpoint)
    _check_scales(folder)
    return checkpoint


def _require_every_layer(
    folder: Path, checkpoint: Checkpoint, layers: dict[str, tuple[int, int]]
) -> None:
    """Refuses a checkpoint that lacks the weights of a layer.

    Without a shard index, only this check finds a missing file. Experts are skipped, because every
    tool names them differently.
    """
    known = {*checkpoint.quantized_layers, *checkpoint.ignored_layers}
    if missing := sorted(
        (name for name in layers if name not in known and ".experts." not in name), key=natural_key
    ):
        raise FlowError(
            f"{folder} has no weights of {len(missing)} of the model's {len(layers)} linear "
            f"layers, such as {missing[0]}.",
            f"A file is missing, or config.json is another model's. {REMAKE}",
        )


def _wrong(folder: Path, what: str, found: Any, expected: Any) -> FlowError:
    return FlowError(f"{folder}: {what} is {found!r}, the recipe says {expected!r}.", REMAKE)


def _check_config(folder: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    config = checkpoint.quantization_config
    if checkpoint.quant_method != "compressed-tensors":
        raise _wrong(
            folder,
            "quantization_config.quant_method",
            checkpoint.quant_method,
            "compressed-tensors",
        )
    if len(config["config_groups"]) != 1:
        raise _wrong(
            folder,
            "quantization_config.config_groups",
            sorted(config["config_groups"]),
            "one group",
        )
    saved, expected = next(iter(config["config_groups"].values())), config_groups(recipe)["group_0"]
    for part in ("weights", "input_activations", "output_activations"):
        wanted, found = expected.get(part), saved.get(part)
        if (wanted is None) != (found is None):
            raise _wrong(folder, part, found, wanted)
        for field, value in (wanted or {}).items():
            if found.get(field) != value:
                raise _wrong(folder, f"{part}.{field}", found.get(field), value)
    if saved["targets"] != expected["targets"]:
        raise _wrong(folder, "targets", saved["targets"], expected["targets"])


def _check_layers(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, layers: dict[str, tuple[int, int]]
) -> None:
    """Checks that exactly the linear layers that the recipe does not ignore are quantised."""
    expected = {name for name in layers if not name_matches(name, recipe.ignore)}
    quantized = set(checkpoint.quantized_layers)
    if missing := sorted(expected - quantized, key=natural_key):
        raise FlowError(
            f"{folder}: {len(missing)} layers that the recipe quantises are not quantised, for "
            f"instance {missing[0]}.",
            f"The checkpoint is incomplete. {REMAKE}",
        )
    if extra := sorted(quantized - expected, key=natural_key):
        raise _wrong(folder, f"the treatment of {extra[0]}", "quantised", "ignored")


def _check_shapes(folder: Path, recipe: Recipe, layers: dict[str, tuple[int, int]]) -> None:
    """Checks that the tensors have the bits and the group size of the recipe."""
    weights, tensors = config_groups(recipe)["group_0"]["weights"], tensor_headers(folder)
    packed = weights["num_bits"] == 4
    for name, (rows, columns) in layers.items():
        group_size = weights.get("group_size", columns)
        width, dtype = (
            (-(-columns // 8), "I32")
            if packed
            else (columns, SAVED_DTYPES[weights["type"], weights["num_bits"]])
        )
        expected = {
            "weight_packed" if packed else "weight": (dtype, (rows, width)),
            "weight_scale": (None, (rows, columns // group_size)),
        }
        for part, (kind, shape) in expected.items():
            tensor = tensors.get(f"{name}.{part}")
            if tensor is None:
                raise FlowError(f"{folder}: tensor {name}.{part} is missing.", REMAKE)
            if tensor.shape != shape or kind not in (None, tensor.dtype):
                raise _wrong(
                    folder,
                    f"{name}.{part}",
                    (tensor.dtype, tensor.shape),
                    (kind or tensor.dtype, shape),
                )


def _check_ignore_list(folder: Path, checkpoint: Checkpoint) -> None:
    """Checks that `ignore` names exactly the layers that are not quantised.

    An engine builds its layers by this list.
    """
    if checkpoint.quant_method != "compressed-tensors":
        return
    ignore = checkpoint.quantization_config.get("ignore") or []
    unnamed = [name for name in checkpoint.ignored_layers if not name_matches(name, ignore)]
    denied = [name for name in checkpoint.quantized_layers if name_matches(name, ignore)]
    for names, state, listing in (
        (unnamed, "not quantised", "does not name"),
        (denied, "quantised", "names"),
    ):
        if names:
            raise FlowError(
                f"{folder}: {names[0]} is {state}, but quantization_config.ignore {listing} it.",
                f"Configuration and weights disagree. {REMAKE}",
            )


def _check_scales(folder: Path) -> None:
    """Checks that every scale is finite and not zero.

    One bad scale turns its row, and every answer of the model, into nonsense.
    """
    import torch
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name.rpartition(".")[2] not in SCALES:
                    continue
                scale = file.get_tensor(name).float()
                bad = (
                    "is not finite"
                    if not torch.isfinite(scale).all()
                    else "is zero"
                    if (scale == 0).any()
                    else ""
                )
                if bad:
                    raise FlowError(
                        f"{path}: a scale in {name} {bad}.", f"The checkpoint is damaged. {REMAKE}"
                    )
