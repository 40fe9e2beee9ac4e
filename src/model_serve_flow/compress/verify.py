"""Checks that a quantised checkpoint matches its configuration and its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_serve_flow.compress.checkpoint import (
    ACTIVATION_SCALES,
    KV_SCALES,
    SCALES,
    Checkpoint,
    inspect_checkpoint,
    natural_key,
    tensor_headers,
)
from model_serve_flow.compress.recipes import (
    BLOCK,
    KV_CACHE_SCHEMES,
    config_groups,
    linear_layers,
    name_matches,
)
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.setup.integrity import REMAKE
from model_serve_flow.system.weights import weight_files

SAVED_DTYPES = {("int", 8): "I8", ("float", 8): "F8_E4M3"}
NAN_EXPONENT = 255  # of the scales of MXFP4, in the format E8M0 of the OCP specification


def verify_checkpoint(
    folder: Path, recipe: Recipe | None = None, *, trust_remote_code: bool = False
) -> Checkpoint:
    """Checks that a saved checkpoint matches its configuration, and its recipe if it has one.

    Raises:
        FlowError: names the wrong layer, tensor or field of `quantization_config`.
    """
    from transformers import AutoConfig

    checkpoint = inspect_checkpoint(folder, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    layers = linear_layers(config)
    if recipe is None:
        _require_every_layer(folder, checkpoint, layers)
    else:
        _check_config(folder, checkpoint, recipe)
        _check_layers(folder, checkpoint, recipe, layers)
        _check_shapes(folder, recipe, {name: layers[name] for name in checkpoint.quantized_layers})
        _check_kv_cache(folder, checkpoint, recipe, config.get_text_config().num_hidden_layers)
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
    group, tensors = config_groups(recipe)["group_0"], tensor_headers(folder)
    for name, shape in layers.items():
        for part, (kind, expected) in stored_tensors(group, shape).items():
            tensor = tensors.get(f"{name}.{part}")
            if tensor is None:
                raise FlowError(f"{folder}: tensor {name}.{part} is missing.", REMAKE)
            if tensor.shape != expected or kind not in (None, tensor.dtype):
                raise _wrong(
                    folder,
                    f"{name}.{part}",
                    (tensor.dtype, tensor.shape),
                    (kind or tensor.dtype, expected),
                )


def stored_tensors(
    group: dict[str, Any], shape: tuple[int, int]
) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """Returns the tensors in which compressed-tensors stores a layer: name -> dtype and shape.

    Args:
        group: a group of `config_groups`.
        shape: rows and columns of the layer.
    """
    weights, (rows, columns) = group["weights"], shape
    kind, bits, strategy = weights["type"], weights["num_bits"], weights["strategy"]
    scales = {
        "channel": (None, (rows, 1)),
        "tensor": (None, (1,)),
        "block": (None, tuple(-(-size // BLOCK) for size in shape)),
        "group": (None, (rows, columns // weights.get("group_size", columns))),
        "tensor_group": ("F8_E4M3", (rows, columns // weights.get("group_size", columns))),
    }
    stored = {"weight": (SAVED_DTYPES.get((kind, bits)), shape), "weight_scale": scales[strategy]}
    if kind == "int" and (bits == 4 or strategy == "group"):
        del stored["weight"]
        stored["weight_packed"] = ("I32", (rows, -(-columns * bits // 32)))
    elif bits == 4:
        del stored["weight"]
        stored["weight_packed"] = ("U8", (rows, columns // 2))
    if strategy == "tensor_group":
        stored["weight_global_scale"] = (None, (1,))
    if group.get("input_activations", {}).get("dynamic") in (False, "local"):
        name = "input_global_scale" if strategy == "tensor_group" else "input_scale"
        stored[name] = (None, (1,))
    return stored


def _check_kv_cache(folder: Path, checkpoint: Checkpoint, recipe: Recipe, layers: int) -> None:
    """Checks that the KV cache is stored as the recipe says, with scales for every decoder layer.

    Args:
        layers: number of decoder layers.

    Raises:
        FlowError: names the missing scales, or the field that differs.
    """
    saved = checkpoint.quantization_config.get("kv_cache_scheme")
    if recipe.kv_cache_scheme is None:
        if saved:
            raise _wrong(folder, "kv_cache_scheme", saved, None)
        return
    for field, value in KV_CACHE_SCHEMES[recipe.kv_cache_scheme].items():
        if (saved or {}).get(field) != value:
            raise _wrong(folder, f"kv_cache_scheme.{field}", (saved or {}).get(field), value)
    parts = [name.rpartition(".")[2] for name in tensor_headers(folder)]
    for scale in KV_SCALES:
        if (count := parts.count(scale)) != layers:
            raise FlowError(
                f"{folder}: {count} layers have a {scale} of the KV cache, of {layers} layers.",
                REMAKE,
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
                if name.rpartition(".")[2] not in (*SCALES, *ACTIVATION_SCALES, *KV_SCALES):
                    continue
                scale = file.get_tensor(name)
                if scale.dtype == torch.uint8:  # exponents of two: no zero, and 255 is NaN
                    scale = torch.where(scale == NAN_EXPONENT, torch.nan, 1.0)
                bad = (
                    "is not finite"
                    if not torch.isfinite(scale.float()).all()
                    else "is zero"
                    if (scale.float() == 0).any()
                    else ""
                )
                if bad:
                    raise FlowError(
                        f"{path}: a scale in {name} {bad}.", f"The checkpoint is damaged. {REMAKE}"
                    )
