"""llm-compressor in, a verified checkpoint and a CompressionResult out; ready-made checkpoints are verified too."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from model_serve_flow.config import Calibration, Candidate, HubDataset, Recipe
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.results import CalibrationFacts, CompressionResult
from model_serve_flow.sources import check_checkpoint, resolve_checkpoint
from model_serve_flow.workspace import describe_model, read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "What is the capital of France? Answer in one sentence."
DEFAULT_GROUP_SIZE = 128
SERVED_GROUP_SIZES = (32, 64, 128)  # the sizes vLLM's 4-bit kernels have in common
SHUFFLE_BUFFER = 10_000
SAMPLING_SECONDS = 0.05
SAVED_DTYPES = {("int", 8): "I8", ("float", 8): "F8_E4M3"}

_TOKEN_ACTIVATIONS = {"strategy": "token", "symmetric": True, "dynamic": True}
SCHEMES: dict[str, dict[str, Any]] = {
    "W8A8": {
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "int", **_TOKEN_ACTIVATIONS},
    },
    "W4A16": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}},
    "W4A16_ASYM": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": False}},
    "FP8_DYNAMIC": {
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "float", **_TOKEN_ACTIVATIONS},
    },
}

Quantise = Callable[["PreTrainedModel", Recipe], None]


# The recipe


def recipe_modifiers(recipe: Recipe) -> list[Any]:
    """The llm-compressor modifiers of a recipe, in the order in which they act.

    SmoothQuant and AWQ only move difficulty between activations and weights; the last modifier quantises.
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
    """The recipe's scheme written out, as llm-compressor's `config_groups`: one group, for all linear layers."""
    scheme = SCHEMES[recipe.scheme]
    weights = dict(scheme["weights"])
    if weights["strategy"] == "group":
        weights["group_size"] = recipe.group_size or DEFAULT_GROUP_SIZE
    if recipe.observer is not None:
        weights["observer"] = recipe.observer
    return {"group_0": {"targets": ["Linear"], **scheme, "weights": weights}}


def check_group_size(recipe: Recipe, model_config: PreTrainedConfig) -> None:
    """Checks the group size against every layer that will be quantised, before hours are spent.

    Raises:
        FlowError: it does not divide a layer's input columns; names the layer, its columns and the sizes that would do.
    """
    group_size = config_groups(recipe)["group_0"]["weights"].get("group_size")
    if group_size is None:
        return
    columns = {
        name: shape[1] for name, shape in linear_layers(model_config).items() if not _matches(name, recipe.ignore)
    }
    for name, count in columns.items():
        if count % group_size:
            common = math.gcd(*columns.values())
            fitting = [str(size) for size in SERVED_GROUP_SIZES if common % size == 0]
            raise FlowError(
                f"group_size {group_size} does not divide the {count} input columns of {name}.",
                f"Set group_size to {' or '.join(fitting)}." if fitting else "Add the layer to the recipe's 'ignore'.",
            )


def linear_layers(model_config: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """Name -> (rows, columns) of the model's linear layers, without its weights (nothing is allocated).

    Raises:
        FlowError: transformers does not know the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config)
    except ValueError as error:
        raise FlowError(
            f"transformers cannot build a {model_config.model_type!r} model: {str(error).splitlines()[0]}",
            "Only causal language models that transformers knows can be compressed or inspected.",
        ) from error
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """llm-compressor's `ignore`: a module's name, or 're:' and a regular expression that matches from its beginning."""
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)


# The calibration data


def calibration_dataset(flow: Flow, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, CalibrationFacts]:
    """The tokenised calibration texts: `input_ids` and `attention_mask`, one row per text, each of its own length.

    Texts go through the tokenizer's chat template where it has one, are truncated to `max_sequence_length` tokens and
    never padded: padding would count as activations of real text.

    Raises:
        FlowError: fewer texts than `calibration.samples`, a row without text, or the hub cannot be reached.
    """
    from datasets import Dataset

    calibration = flow.config.calibration
    templated = tokenizer.chat_template is not None
    texts = [_text(row, tokenizer) for row in _rows(flow)]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=calibration.max_sequence_length,
        padding=False,
        add_special_tokens=not templated,  # the template has written them already
    )
    dataset = Dataset.from_dict({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
    return dataset, _calibration_facts(dataset, calibration, templated)


def _calibration_facts(dataset: Dataset, calibration: Calibration, templated: bool) -> CalibrationFacts:
    tokens = sum(len(row) for row in dataset["input_ids"])
    return CalibrationFacts(
        source=_source_text(calibration),
        samples=len(dataset),
        tokens=tokens,
        padding_fraction=1 - sum(sum(mask) for mask in dataset["attention_mask"]) / tokens,
        chat_template=templated,
    )


def _source_text(calibration: Calibration) -> str:
    if (packaged := calibration.packaged) is not None:
        return f"{packaged.package}=={packaged.version}: {packaged.path}"
    dataset = calibration.dataset
    return ":".join(part for part in (dataset.path, dataset.name, dataset.split) if part)


def _text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A row as the model will read it; plain text is the user's turn of a chat model."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("text")}]
    if not all(isinstance(m, dict) and m.get("content") and m.get("role") for m in messages):
        raise FlowError(
            f"A calibration row has neither messages nor text: {str(row)[:120]}",
            "Rows are {'messages': [{'role': ..., 'content': ...}]} or {'text': ...}.",
        )
    if tokenizer.chat_template is not None:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    return "\n\n".join(message["content"] for message in messages)


def _rows(flow: Flow) -> list[dict[str, Any]]:
    """The first `samples` rows in an order that the seed decides."""
    calibration = flow.config.calibration
    rows = (
        _packaged_rows(flow)
        if calibration.dataset is None
        else _hub_rows(calibration.dataset, calibration.samples, flow.config.seed)
    )
    if len(rows) < calibration.samples:
        raise FlowError(
            f"calibration.samples is {calibration.samples}, but {_source_text(calibration)} gave {len(rows)} texts.",
            "Lower calibration.samples, or run 00_Setup again if it was raised since.",
        )
    return rows


def _packaged_rows(flow: Flow) -> list[dict[str, Any]]:
    """The rows that 00_Setup wrote, already in an order decided by the seed."""
    from model_serve_flow.packaged_data import read_rows

    path = flow.workspace.data / "calibration.jsonl"
    if not path.is_file():
        raise FlowError(f"{path} is missing.", "Run 00_Setup: it writes the calibration texts.")
    return read_rows(path)[: flow.config.calibration.samples]


def _hub_rows(source: HubDataset, samples: int, seed: int) -> list[dict[str, Any]]:
    """Streams only as much of the dataset as the shuffle needs, instead of downloading all of it."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        stream = load_dataset(source.path, source.name, split=source.split, revision=source.revision, streaming=True)
        rows = list(stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(samples))
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise FlowError(
            f"Calibration dataset {source.path!r} cannot be loaded: {str(error).splitlines()[0]}",
            "Check calibration.dataset (path, name, split, revision), the network and HF_TOKEN, or use a local folder.",
        ) from error
    if rows and source.column not in rows[0]:
        raise FlowError(
            f"Dataset {source.path!r} has no column {source.column!r}; it has {', '.join(rows[0])}.",
            "Set calibration.dataset.column.",
        )
    return [{"text" if isinstance(row[source.column], str) else "messages": row[source.column]} for row in rows]


# Making a candidate


def compress(
    flow: Flow, name: str, quantise: Quantise, calibration: CalibrationFacts | None = None
) -> CompressionResult:
    """Makes the candidate `name` by its recipe and writes its `compression.json`.

    The checkpoint takes its place in `models/` only when it is verified; until then the old one stays.

    Args:
        flow: the profile and its workspace, with the base model in `models/base`.
        name: a candidate with a recipe.
        quantise: called with the loaded base model and the recipe; calls `oneshot` on the model.
        calibration: what the calibration data were; recorded if the recipe uses them.

    Raises:
        FlowError: no base model, a group size that does not fit, no GPU for a GPU profile, a checkpoint that is not
            what the recipe says.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

    candidate, base = flow.config.candidate(name), flow.workspace.model("base")
    recipe = _recipe_of(candidate)
    _require_device(flow, recipe)
    check_checkpoint(base)
    check_group_size(recipe, AutoConfig.from_pretrained(base))
    set_seed(flow.config.seed)
    with _replacing(flow.workspace.model(name)) as folder:
        with _logged(_log(flow, name), mode="w"), _measured(flow.config.device) as cost:
            model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            quantise(model, recipe)
            model.save_pretrained(folder, save_compressed=True)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
        verify_checkpoint(folder, recipe)
    return _record(flow, candidate, cost, calibration if recipe.needs_calibration else None)


def adopt(flow: Flow, name: str) -> CompressionResult:
    """Takes over the ready-made checkpoint of the candidate `name`, verifies it and writes its `compression.json`.

    Raises:
        FlowError: the source cannot be had, or its checkpoint is not quantised or not whole.
    """
    candidate = flow.config.candidate(name)
    if candidate.source is None:
        raise FlowError(f"Candidate {name!r} has a recipe, not a ready-made checkpoint.", "Make it with compress().")
    started = time.perf_counter()
    resolve_checkpoint(candidate.source, candidate.revision, flow.workspace.model(name))
    verify_checkpoint(flow.workspace.model(name))
    return _record(flow, candidate, Cost(seconds=time.perf_counter() - started), None)


def _recipe_of(candidate: Candidate) -> Recipe:
    if candidate.recipe is None:
        raise FlowError(f"Candidate {candidate.name!r} has no recipe: it is ready-made.", "Take it over with adopt().")
    return candidate.recipe


def _require_device(flow: Flow, recipe: Recipe) -> None:
    import torch

    if flow.config.device == "gpu" and not torch.cuda.is_available():
        raise FlowError(
            f"Profile {flow.config.name!r} needs a GPU, and PyTorch sees none.",
            "Check nvidia-smi, or use a CPU profile.",
        )
    if recipe.algorithm == "awq" and not torch.accelerator.is_available():
        raise FlowError(
            "llm-compressor's AWQ pins its activations for an accelerator and cannot run on a CPU alone.",
            "Set algorithm to gptq or rtn, or compress on a GPU.",
        )


def _record(flow: Flow, candidate: Candidate, cost: Cost, calibration: CalibrationFacts | None) -> CompressionResult:
    name, recipe, folder = candidate.name, candidate.recipe, flow.workspace.model(candidate.name)
    checkpoint = inspect_checkpoint(folder)
    sample = ""
    if checkpoint.quant_method == "compressed-tensors":  # transformers needs further packages for other formats
        with _logged(_log(flow, name)):
            sample = generate_sample(folder)
    result = CompressionResult(
        model=describe_model(name, folder),
        base=describe_model("base", flow.workspace.model("base")),
        scheme=checkpoint.scheme,
        algorithm=algorithm_text(recipe) if recipe else checkpoint.quant_method,
        origin=candidate.source or "recipe",
        recipe=recipe.model_dump(mode="json") if recipe else None,
        calibration=calibration,
        quantization_config=checkpoint.quantization_config,
        quantized_layers=len(checkpoint.quantized_layers),
        ignored_layers=checkpoint.ignored_layers,
        bits_per_weight=checkpoint.bits_per_weight,
        seconds=cost.seconds,
        peak_memory_bytes=cost.peak_memory_bytes,
        sample=sample,
    )
    write_json(flow.workspace.results(name) / "compression.json", result)
    return result


def algorithm_text(recipe: Recipe) -> str:
    """The algorithm as reports name it, for instance 'smoothquant+rtn'."""
    return recipe.algorithm if recipe.smoothing_strength is None else f"smoothquant+{recipe.algorithm}"


@dataclass
class Cost:
    """What making a candidate took: wall seconds, and peak resident (CPU) or device (GPU) memory in bytes."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextlib.contextmanager
def _measured(device: str) -> Iterator[Cost]:
    """Fills in the cost of the block; resident memory is sampled, as the system's own peak cannot be reset."""
    import torch

    cost, process, done = Cost(), psutil.Process(), threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            cost.peak_memory_bytes = max(cost.peak_memory_bytes, process.memory_info().rss)

    cost.peak_memory_bytes = process.memory_info().rss
    sampler = threading.Thread(target=sample, daemon=True)
    if device == "gpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        sampler.start()
    started = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        done.set()
        if device == "gpu":
            cost.peak_memory_bytes = torch.cuda.max_memory_allocated()
        else:
            sampler.join()


def _log(flow: Flow, name: str) -> Path:
    return flow.workspace.logs / f"compress-{name}.log"


@contextlib.contextmanager
def _logged(log: Path, mode: str = "a") -> Iterator[None]:
    """Sends llm-compressor's messages and progress bars to a file: hundreds of lines that would bury the lesson."""
    from llmcompressor.logger import LoggerConfig, configure_logger

    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            log.open(mode, encoding="utf-8") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            configure_logger(LoggerConfig())  # binds its messages to the redirected output
            yield
    finally:
        configure_logger(LoggerConfig(console_log_level="ERROR"))


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[Path]:
    """A hidden sibling folder that takes the place of `destination` only if the block succeeds."""
    partial = destination.with_name(f".{destination.name}.partial")
    old = destination.with_name(f".{destination.name}.old")
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes 0600; a server under another user must read it
        if destination.exists():
            destination.rename(old)
        partial.rename(destination)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


# Looking at a checkpoint


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


WEIGHTS = ("weight_packed", "qweight", "weight")
SCALES = ("weight_scale", "weight_scale_inv", "weight_global_scale", "scales")
STORED = (*WEIGHTS, *SCALES, "weight_zero_point", "qzeros")


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Reads configuration and tensor headers of a checkpoint made by any tool; no weights are loaded.

    Raises:
        FlowError: not a whole checkpoint, or it holds no quantised layer.
    """
    from transformers import AutoConfig

    check_checkpoint(folder)
    config = read_json(folder / "config.json").get("quantization_config") or {}
    tensors = tensor_headers(folder)
    quantized = _quantized_layers(tensors)
    if not config or not quantized:
        missing = "no quantization_config in its config.json" if not config else "no quantised layer in its tensors"
        raise FlowError(f"{folder} is not a quantised checkpoint: {missing}.", "Compress it, or correct 'source'.")
    model_config = AutoConfig.from_pretrained(folder)
    layers = linear_layers(model_config)
    return Checkpoint(
        scheme=scheme_name(config),
        quant_method=config.get("quant_method", "unknown"),
        quantization_config=config,
        quantized_layers=tuple(quantized),
        ignored_layers=_left_layers(
            layers, quantized, tensors, tied=model_config.get_text_config().tie_word_embeddings
        ),
        bits_per_weight=_bits_per_weight(quantized, tensors, layers),
        size_bytes=describe_model(folder.name, folder).size_bytes,
    )


def tensor_headers(folder: Path) -> dict[str, Tensor]:
    """Name -> header of every tensor in the folder's safetensors files."""
    from safetensors import safe_open

    headers = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                bits = int(re.search(r"\d+", dtype).group()) if dtype != "BOOL" else 8
                headers[name] = Tensor(path, dtype, shape, math.prod(shape) * bits // 8)
    return headers


def scheme_name(config: dict[str, Any]) -> str:
    """The scheme that a `quantization_config` writes down, such as W8A8, W4A16_ASYM or FP8_DYNAMIC."""
    if config.get("quant_method") != "compressed-tensors":
        if (bits := config.get("bits") or config.get("w_bit")) is None:
            return str(config.get("quant_method", "unknown")).upper()
        symmetric = config.get("sym", not config.get("zero_point", False))
        return f"W{bits}A16" + ("" if symmetric else "_ASYM")
    group = next(iter(config["config_groups"].values()))
    weights, inputs = group["weights"], group.get("input_activations")
    if weights["type"] == "float" and inputs:
        return f"FP{weights['num_bits']}" + ("_DYNAMIC" if inputs.get("dynamic") is True else "")
    return f"W{weights['num_bits']}A{inputs['num_bits'] if inputs else 16}" + ("" if weights["symmetric"] else "_ASYM")


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


# Verifying a checkpoint


def verify_checkpoint(folder: Path, recipe: Recipe | None = None) -> Checkpoint:
    """Checks that a saved checkpoint is what its configuration, and the recipe if there is one, say.

    Raises:
        FlowError: names the field of `quantization_config`, the layer or the tensor that is wrong.
    """
    from transformers import AutoConfig

    checkpoint = inspect_checkpoint(folder)
    if recipe is not None:
        _check_config(folder, checkpoint, recipe)
        layers = linear_layers(AutoConfig.from_pretrained(folder))
        _check_layers(folder, checkpoint, recipe, layers)
        _check_shapes(folder, recipe, {name: layers[name] for name in checkpoint.quantized_layers})
    _check_ignore_list(folder, checkpoint)
    _check_scales(folder)
    return checkpoint


def _wrong(folder: Path, what: str, found: Any, expected: Any) -> FlowError:
    return FlowError(
        f"{folder}: {what} is {found!r}, the recipe says {expected!r}.",
        "Make the candidate again: run --only 03 --force.",
    )


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
    expected = {name for name in layers if not _matches(name, recipe.ignore)}
    quantized = set(checkpoint.quantized_layers)
    if missing := sorted(expected - quantized, key=_natural):
        raise FlowError(
            f"{folder}: {len(missing)} layers that the recipe quantises are not quantised, for instance {missing[0]}.",
            "The checkpoint is incomplete: make the candidate again.",
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
                raise FlowError(f"{folder}: tensor {name}.{part} is missing.", "Make the candidate again.")
            if tensor.shape != shape or kind not in (None, tensor.dtype):
                raise _wrong(folder, f"{name}.{part}", (tensor.dtype, tensor.shape), (kind or tensor.dtype, shape))


def _check_ignore_list(folder: Path, checkpoint: Checkpoint) -> None:
    """`ignore` names the layers left and no others: an engine goes by it when it builds the layers."""
    if checkpoint.quant_method != "compressed-tensors":
        return
    ignore = checkpoint.quantization_config.get("ignore") or []
    unnamed = [name for name in checkpoint.ignored_layers if not _matches(name, ignore)]
    denied = [name for name in checkpoint.quantized_layers if _matches(name, ignore)]
    for names, state, listing in ((unnamed, "not quantised", "does not name"), (denied, "quantised", "names")):
        if names:
            raise FlowError(
                f"{folder}: {names[0]} is {state}, but quantization_config.ignore {listing} it.",
                "Configuration and weights disagree: make or download the checkpoint again.",
            )


def _check_scales(folder: Path) -> None:
    """One scale that is zero or not finite turns its whole row, and with it every answer, into nonsense."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                if name.rpartition(".")[2] not in SCALES:
                    continue
                scale = file.get_tensor(name).float()
                bad = "is not finite" if not torch.isfinite(scale).all() else "is zero" if (scale == 0).any() else ""
                if bad:
                    raise FlowError(
                        f"{path}: a scale in {name} {bad}.", "The checkpoint is damaged: make or download it again."
                    )


# The sanity check


def generate_sample(folder: Path, prompt: str = PROMPT, max_new_tokens: int = 32) -> str:
    """The model's greedy answer to `prompt` with transformers: does it still speak?

    compressed-tensors weights are decompressed on the way, so this shows the weights and not the speed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    text = prompt
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None).to(device)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
