"""Loads and checks checkpoints, and keeps the most recent models in memory."""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelFacts, ModelOptions
from serving_from_scratch.model.attention import (
    AttentionBackend,
    Eager,
    PagedNumba,
    Sdpa,
    Tiled,
)
from serving_from_scratch.model.kv_cache import KVCache, NoCache, PagedCache, SlotCache
from serving_from_scratch.model.llama import Layer, Llama, LlamaShape, Stretch
from serving_from_scratch.model.proposers import DraftRunner
from serving_from_scratch.model.runner import ModelRunner

Known = TypeVar("Known")
ARCHITECTURE = "LlamaForCausalLM"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BACKENDS = {"sdpa": Sdpa, "eager": Eager, "tiled": Tiled, "paged": PagedNumba}


class ModelManager:
    """Loads models and keeps the most recent ones.

        runner = ModelManager().runner(ModelOptions(folder, precision="float32"))

    Args:
        keep: how many models stay in memory; the least recently used is evicted.
    """

    def __init__(self, keep: int = 1) -> None:
        self.keep = keep
        self._models: OrderedDict[tuple[str, str, bool], Llama] = OrderedDict()

    @property
    def loaded(self) -> tuple[tuple[str, str], ...]:
        """Folder and precision of each model in memory, the least recently used first."""
        return tuple((folder, precision) for folder, precision, _ in self._models)

    def runner(self, options: ModelOptions) -> ModelRunner:
        """Loads a model, or takes it from memory, and gives it a new cache."""
        config = read_config(Path(options.folder))
        shape = read_shape(config)
        check_length(options, shape)
        if options.threads:
            torch.set_num_threads(options.threads)
        model = self._model(options, shape, config)
        known = facts(options, model, config)
        if options.rank:
            # Imported here, because only ranks need it.
            from serving_from_scratch.model.sharding import shard

            model = shard(model, options.rank)
            self._models.clear()
        if options.packed:
            model.pack()
        cache = make_cache(options, model.shape)
        backend: AttentionBackend = pick("attention", options.attention, BACKENDS)()
        runner = ModelRunner(model, cache, backend, known, options.folder)
        return self._with_draft(runner, options) if options.draft else runner

    def _with_draft(self, runner: ModelRunner, options: ModelOptions) -> DraftRunner:
        own = replace(options, folder=options.draft, draft="", cache="slots", attention="sdpa")
        try:
            draft = self.runner(own)
        except ServingError as error:
            raise ServingError(f"The draft model: {error.problem}", error.hint) from error
        return DraftRunner(runner, draft, own.memory(prefixes=True), own.places)

    def _model(self, options: ModelOptions, shape: LlamaShape, config: dict) -> Llama:
        key = (options.folder, options.precision, options.packed)
        if key not in self._models:
            dtype = pick("precision", options.precision, PRECISIONS)
            while len(self._models) >= self.keep:
                self._models.popitem(last=False)
            weights = Weights(Path(options.folder), dtype)
            tied = bool(config.get("tie_word_embeddings"))
            self._models[key] = build(shape, weights, tied)
        self._models.move_to_end(key)
        return self._models[key]


class Weights:
    """Reads a checkpoint's tensors by name; checks and converts each when it is read.

    Args:
        folder: the checkpoint.
        dtype: of the converted tensors.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._files: dict[str, safe_open] = {}
        for path in weight_files(folder):
            try:
                file = safe_open(path, "pt")
            except SafetensorError as error:
                problem = f"{path} is no complete safetensors file: {error}."
                raise ServingError(problem, "Fetch it again.") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        stored = sum(path.stat().st_size for path in weight_files(folder))
        # A checkpoint stores two bytes per weight.
        check_memory("The weights", stored * dtype.itemsize // 2)

    def take(self, name: str, *size: int) -> Tensor:
        """Reads one tensor; raises ServingError if it is missing, misshapen or not finite."""
        if name not in self._files:
            raise ServingError(f"The checkpoint has no tensor {name}.", "Fetch it again.")
        tensor = self._files[name].get_tensor(name)
        if tensor.shape != size:
            raise ServingError(
                f"{name} has the shape {tuple(tensor.shape)}; config.json asks for {size}.",
                "Take config.json and weights of the same model.",
            )
        if not torch.isfinite(tensor).all():
            raise ServingError(f"{name} has values that are no numbers.", "Fetch it again.")
        return tensor.to(self.dtype)


def read_config(folder: Path) -> dict:
    """Reads config.json; refuses other architectures, and checkpoints with their own code."""
    path = folder / "config.json"
    if not path.is_file():
        raise ServingError(f"{folder} has no config.json.", "Name the folder of a checkpoint.")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ServingError(f"{path} is no JSON: {error}.", "Fetch it again.") from error
    if "auto_map" in config:
        raise ServingError(f"{path} asks to run its own code (auto_map).", "It is never run.")
    if config.get("architectures") != [ARCHITECTURE]:
        raise ServingError(
            f"{path} names the architecture {config.get('architectures')}.",
            f"This engine computes {ARCHITECTURE}.",
        )
    return config


def read_shape(config: dict) -> LlamaShape:
    """Takes the model's numbers out of config.json."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type", "default")
    check_arithmetic(config, kind)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return LlamaShape(
        vocabulary=config["vocab_size"],
        hidden=hidden,
        inner=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        width=config.get("head_dim") or hidden // heads,
        epsilon=config["rms_norm_eps"],
        theta=rope.get("rope_theta") or config.get("rope_theta", 10000.0),
        max_length=config["max_position_embeddings"],
        stretch=read_stretch(rope) if kind == "llama3" else None,
    )


def read_stretch(rope: dict) -> Stretch:
    """Takes the numbers of Llama 3's longer texts out of config.json."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return Stretch(*(rope[name] for name in names))


def check_arithmetic(config: dict, rope_type: str) -> None:
    """Refuses settings that the forward pass does not support."""
    computed = {
        "hidden_act": (config.get("hidden_act"), ["silu"]),
        "attention_bias": (config.get("attention_bias", False), [False]),
        "mlp_bias": (config.get("mlp_bias", False), [False]),
        "rope_type": (rope_type, ["default", "llama3"]),
        "quantization_config": (config.get("quantization_config"), [None]),
    }
    for name, (value, known) in computed.items():
        if value not in known:
            problem = f"config.json has {name} {value!r}."
            raise ServingError(problem, f"This engine computes {' or '.join(map(repr, known))}.")


def weight_files(folder: Path) -> list[Path]:
    """Lists the safetensors files; refuses pickles, because they can run code."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
        found = f"only {', '.join(pickles)}" if pickles else "no weights"
        raise ServingError(f"{folder} has {found}.", "Weights must be *.safetensors.")
    return files


def check_length(options: ModelOptions, shape: LlamaShape) -> None:
    """Checks that the model supports texts of the wanted length."""
    if options.length > shape.max_length:
        raise ServingError(
            f"length is {options.length} tokens; the model was made for {shape.max_length}.",
            "Lower length.",
        )


def check_memory(what: str, needed: int) -> None:
    """Checks that this many bytes of memory are free."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise ServingError(
            f"{what} would need {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free.",
            "End other programs, take a smaller model, or lower places or length.",
        )


def build(shape: LlamaShape, weights: Weights, tied: bool) -> Llama:
    """Builds the model from a checkpoint's tensors."""
    table = (shape.vocabulary, shape.hidden)
    embedding = weights.take("model.embed_tokens.weight", *table)
    return Llama(
        shape,
        embedding,
        [build_layer(shape, weights, number) for number in range(shape.layers)],
        weights.take("model.norm.weight", shape.hidden),
        embedding if tied else weights.take("lm_head.weight", *table),
    )


def build_layer(shape: LlamaShape, weights: Weights, number: int) -> Layer:
    """Builds one layer; joins matrices with the same input."""
    hidden, inner = shape.hidden, shape.inner
    q, kv = shape.heads * shape.width, shape.kv_heads * shape.width

    def take(name: str, *size: int) -> Tensor:
        return weights.take(f"model.layers.{number}.{name}.weight", *size)

    gate, up = take("mlp.gate_proj", inner, hidden), take("mlp.up_proj", inner, hidden)
    return Layer(
        attention_norm=take("input_layernorm", hidden),
        qkv=torch.cat(
            [
                take("self_attn.q_proj", q, hidden),
                take("self_attn.k_proj", kv, hidden),
                take("self_attn.v_proj", kv, hidden),
            ]
        ),
        output=take("self_attn.o_proj", hidden, q),
        mlp_norm=take("post_attention_layernorm", hidden),
        gate_up=torch.cat([gate, up]),
        down=take("mlp.down_proj", hidden, inner),
    )


def make_cache(options: ModelOptions, shape: LlamaShape) -> KVCache:
    """Makes the tensors of the cache."""
    dtype = pick("precision", options.precision, PRECISIONS)
    # The paged kernel uses 32-bit numbers, because numba has no bfloat16.
    token = shape.kv(torch.float32 if options.attention == "paged" else dtype)
    if options.cache == "slots":
        check_memory("The cache", options.places * options.length * token.token_bytes)
        return SlotCache(token, options.places, options.length)
    if options.cache == "paged":
        check_memory("The cache", options.pages * options.block_tokens * token.token_bytes)
        return PagedCache(token, options.pages, options.block_tokens)
    return pick("cache", options.cache, {"none": NoCache})()


def facts(options: ModelOptions, model: Llama, config: dict) -> ModelFacts:
    """Collects the facts that clients and the scheduler need."""
    eos = config.get("eos_token_id")
    generation = Path(options.folder) / "generation_config.json"
    if generation.is_file():
        eos = json.loads(generation.read_text()).get("eos_token_id", eos)
    return ModelFacts(
        vocabulary=model.shape.vocabulary,
        max_length=model.shape.max_length,
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        hidden=model.shape.hidden,
        parameters=model.parameters,
        kv_bytes=model.shape.kv(PRECISIONS[options.precision]).token_bytes,
    )


def pick(field: str, value: str, known: dict[str, Known]) -> Known:
    """Looks a name up; raises ServingError that lists the known names."""
    if value not in known:
        raise ServingError(f"{field} is {value!r}.", f"Choose one of {', '.join(known)}.")
    return known[value]
