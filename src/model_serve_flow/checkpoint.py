"""A quantised checkpoint on disk: what it says of itself, what its tensors show, and whether the two agree."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_serve_flow.config import Recipe
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.recipes import config_groups, linear_layers, name_matches
from model_serve_flow.sources import check_checkpoint
from model_serve_flow.system.scheme_names import UNREADABLE, scheme_name
from model_serve_flow.system.weights import weight_files
from model_serve_flow.workspace import describe_model, read_json

WEIGHTS = ("weight_packed", "qweight", "weight")
SCALES = ("weight_scale", "weight_scale_inv", "weight_global_scale", "scales")
STORED = (*WEIGHTS, *SCALES, "weight_zero_point", "qzeros")
REMAKE = f"Download it again if it is ready-made. {RERUN}"
PROBE = "Grüße! 3.14 € for  two\n\ttabs, CamelCase, isn't 東京 🙂"  # what tokenizers treat differently
SAVED_DTYPES = {("int", 8): "I8", ("float", 8): "F8_E4M3"}


@dataclass(frozen=True)
class Tensor:
    """The header of one tensor of a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """What a quantised checkpoint says of itself, and what its tensors show."""

    scheme: str
    quant_method: str
    quantization_config: dict[str, Any]
    quantized_layers: tuple[str, ...]
    ignored_layers: tuple[str, ...]
    bits_per_weight: float
    size_bytes: int


def inspect_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Reads configuration and tensor headers of a checkpoint made by any tool; no weights are loaded.

    Raises:
        FlowError: not a whole checkpoint, or it holds no quantised layer.
    """
    from transformers import AutoConfig

    check_checkpoint(folder, trust_remote_code=trust_remote_code)
    config = _quantization_config(folder)
    if tool := UNREADABLE.get(str(config.get("quant_method"))):
        raise FlowError(
            f"{folder} is a checkpoint of {tool}, whose tensors this flow cannot read and verify.",
            "Give a checkpoint of llm-compressor, GPTQ, AWQ, AutoRound or ModelOpt, or a recipe for 03.",
        )
    tensors = tensor_headers(folder)
    quantized = _quantized_layers(tensors)
    if not config or not quantized:
        missing = "no quantization_config in its config.json" if not config else "no quantised layer in its tensors"
        raise FlowError(f"{folder} is not a quantised checkpoint: {missing}.", "Compress it, or correct 'source'.")
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
    """What config.json says; of a checkpoint of an older ModelOpt, hf_quant_config.json."""
    config = read_json(folder / "config.json", finite=False).get("quantization_config") or {}
    older = folder / "hf_quant_config.json"
    if config or not older.is_file():
        return config
    written = read_json(older).get("quantization") or {}
    return {"quant_method": "modelopt", **written}


def tensor_headers(folder: Path) -> dict[str, Tensor]:
    """Name -> header of every tensor in the folder's safetensors files."""
    from safetensors import safe_open

    headers = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                bits = int(re.search(r"\d+", dtype).group()) if dtype != "BOOL" else 8
                headers[name] = Tensor(path, dtype, shape, math.prod(shape) * bits // 8)
    return headers


def _quantized_layers(tensors: dict[str, Tensor]) -> list[str]:
    """Layers that have a scale beside their weight, in the order of the file."""
    owners = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in SCALES}
    return sorted(owners, key=_natural)


def _left_layers(
    layers: dict[str, tuple[int, int]], quantized: list[str], tensors: dict[str, Tensor], tied: bool
) -> tuple[str, ...]:
    """Linear layers that are stored as they were; a tied lm_head has no tensor of its own."""
    stored = {name for name in layers if f"{name}.weight" in tensors or (tied and name == "lm_head")}
    return tuple(sorted(stored - set(quantized), key=_natural))


def _natural(name: str) -> list[Any]:
    """Sorts layer 10 after layer 9: the parts of a name, with numbers as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _bits_per_weight(quantized: list[str], tensors: dict[str, Tensor], layers: dict[str, tuple[int, int]]) -> float:
    """Bits of weights, scales and zero points, per weight, over the quantised layers whose shape is known."""
    known = [name for name in quantized if name in layers]
    if not known:
        raise FlowError(
            f"None of the {len(quantized)} quantised layers, such as {quantized[0]}, is a linear layer of the model.",
            "Weights and config.json belong to different models.",
        )
    stored = [tensors[f"{name}.{part}"].size_bytes for name in known for part in STORED if f"{name}.{part}" in tensors]
    return 8 * sum(stored) / sum(math.prod(layers[name]) for name in known)


def verify_checkpoint(folder: Path, recipe: Recipe | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Checks that a saved checkpoint is what its configuration, and the recipe if there is one, say.

    Raises:
        FlowError: names the field of `quantization_config`, the layer or the tensor that is wrong.
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


def _require_every_layer(folder: Path, checkpoint: Checkpoint, layers: dict[str, tuple[int, int]]) -> None:
    """Refuses a checkpoint without the weights of a layer, where no index tells that a file is missing.

    Experts are left out: every tool has names of its own for them.
    """
    known = {*checkpoint.quantized_layers, *checkpoint.ignored_layers}
    if missing := sorted((name for name in layers if name not in known and ".experts." not in name), key=_natural):
        raise FlowError(
            f"{folder} has no weights of {len(missing)} of the model's {len(layers)} linear layers, "
            f"such as {missing[0]}.",
            f"A file is missing, or config.json is another model's. {REMAKE}",
        )


def _wrong(folder: Path, what: str, found: Any, expected: Any) -> FlowError:
    return FlowError(f"{folder}: {what} is {found!r}, the recipe says {expected!r}.", REMAKE)


def _check_config(folder: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    config = checkpoint.quantization_config
    if checkpoint.quant_method != "compressed-tensors":
        raise _wrong(folder, "quantization_config.quant_method", checkpoint.quant_method, "compressed-tensors")
    if len(config["config_groups"]) != 1:
        raise _wrong(folder, "quantization_config.config_groups", sorted(config["config_groups"]), "one group")
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


def _check_layers(folder: Path, checkpoint: Checkpoint, recipe: Recipe, layers: dict[str, tuple[int, int]]) -> None:
    """Exactly the linear layers that the recipe does not ignore are quantised."""
    expected = {name for name in layers if not name_matches(name, recipe.ignore)}
    quantized = set(checkpoint.quantized_layers)
    if missing := sorted(expected - quantized, key=_natural):
        raise FlowError(
            f"{folder}: {len(missing)} layers that the recipe quantises are not quantised, for instance {missing[0]}.",
            f"The checkpoint is incomplete. {REMAKE}",
        )
    if extra := sorted(quantized - expected, key=_natural):
        raise _wrong(folder, f"the treatment of {extra[0]}", "quantised", "ignored")


def _check_shapes(folder: Path, recipe: Recipe, layers: dict[str, tuple[int, int]]) -> None:
    """The tensors themselves have the bits and group size that the configuration writes down."""
    weights, tensors = config_groups(recipe)["group_0"]["weights"], tensor_headers(folder)
    packed = weights["num_bits"] == 4
    for name, (rows, columns) in layers.items():
        group_size = weights.get("group_size", columns)
        width, dtype = (
            (-(-columns // 8), "I32") if packed else (columns, SAVED_DTYPES[weights["type"], weights["num_bits"]])
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
                raise _wrong(folder, f"{name}.{part}", (tensor.dtype, tensor.shape), (kind or tensor.dtype, shape))


def _check_ignore_list(folder: Path, checkpoint: Checkpoint) -> None:
    """`ignore` names the layers left and no others: an engine goes by it when it builds the layers."""
    if checkpoint.quant_method != "compressed-tensors":
        return
    ignore = checkpoint.quantization_config.get("ignore") or []
    unnamed = [name for name in checkpoint.ignored_layers if not name_matches(name, ignore)]
    denied = [name for name in checkpoint.quantized_layers if name_matches(name, ignore)]
    for names, state, listing in ((unnamed, "not quantised", "does not name"), (denied, "quantised", "names")):
        if names:
            raise FlowError(
                f"{folder}: {names[0]} is {state}, but quantization_config.ignore {listing} it.",
                f"Configuration and weights disagree. {REMAKE}",
            )


def _check_scales(folder: Path) -> None:
    """One scale that is zero or not finite turns its whole row, and with it every answer, into nonsense."""
    import torch
    from safetensors import safe_open

    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name.rpartition(".")[2] not in SCALES:
                    continue
                scale = file.get_tensor(name).float()
                bad = "is not finite" if not torch.isfinite(scale).all() else "is zero" if (scale == 0).any() else ""
                if bad:
                    raise FlowError(f"{path}: a scale in {name} {bad}.", f"The checkpoint is damaged. {REMAKE}")


# The tokenizer of a candidate


def verify_same_tokenizer(base: Path, candidate: Path, *, trust_remote_code: bool = False) -> None:
    """A candidate must read and be spoken to as its base: only its weights are compressed.

    Files may be written differently by another tool; compared is what they mean once loaded.

    Raises:
        FlowError: names what differs (chat template, vocabulary, added tokens, merges, the ids of a sample text), or
            a tokenizer cannot be loaded.
    """
    ours, theirs = (_tokenizer_facts(folder, trust_remote_code) for folder in (base, candidate))
    for what, expected in ours.items():
        if theirs[what] != expected:
            raise FlowError(
                f"The tokenizer of {candidate} is not that of {base}: its {what} differs "
                f"({_example(expected, theirs[what])}).",
                f"Copy the base's tokenizer files into it if it is ready-made. {RERUN}",
            )


def _tokenizer_facts(folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise FlowError(f"The tokenizer in {folder} cannot be loaded: {said}", REMAKE) from error
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"] if tokenizer.is_fast else {}
    text = PROBE
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": PROBE}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {
        "chat template": tokenizer.chat_template,
        "vocabulary": tokenizer.get_vocab(),
        "set of added tokens": {key: repr(token) for key, token in tokenizer.added_tokens_decoder.items()},
        "list of merges": model.get("merges"),
        "tokenisation of a sample text": [tokenizer(PROBE).input_ids, tokenizer(text).input_ids],
    }


def _example(expected: Any, found: Any) -> str:
    """The first entry, or the first place, in which the two differ."""
    if isinstance(expected, dict):
        key = next(key for key in [*expected, *found] if expected.get(key) != found.get(key))
        return f"{key!r}: {expected.get(key)!r} became {found.get(key)!r}"
    ours, theirs = str(expected), str(found)
    at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
    return f"{ours[at : at + 60]!r} became {theirs[at : at + 60]!r}"
