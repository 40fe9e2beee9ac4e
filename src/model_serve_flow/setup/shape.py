"""Reads the shape of a model from its config.json, and computes its number of weights.

It covers decoders of the Llama family: Llama, Mistral, Qwen, Gemma and Phi-3, with or without
experts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.offline import local

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
FOREIGN = ("kv_lora_rank", "ssm_state_size", "mamba_d_state", "linear_num_key_heads", "ffn_dim")
UNGATED = ("gpt_neox", "gpt2", "opt", "bloom", "falcon", "phi", "gptj", "starcoder2")
# models that tie their embeddings unless config.json says otherwise
TIED = ("gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2")
WITH_BIAS = ("qwen2", "qwen2_moe")  # on query, key and value, although no key says so


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that decide its memory.

    Attributes:
        windows: for every layer, how many tokens it looks back; 0 for all.
        experts: number of experts in a layer that has experts; 0 if no layer has.
        dense_layers: number of layers without experts, in a model with experts.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    windows: tuple[int, ...]
    biased: bool = False
    head_norms: bool = False
    norms_per_layer: int = 2
    experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    dense_layers: int = 0

    @property
    def parameters(self) -> int:
        """Number of weights."""
        query, pair = self.heads * self.head_size, 2 * self.kv_heads * self.head_size
        attention = self.hidden * (2 * query + pair)
        attention += (query + pair) * self.biased + 2 * self.head_size * self.head_norms
        gated = 3 * self.hidden
        sparse = self.experts * (gated * self.expert_intermediate + self.hidden)
        sparse += gated * self.shared_intermediate + self.hidden * bool(self.shared_intermediate)
        dense = self.layers if not self.experts else self.dense_layers
        blocks = dense * gated * self.intermediate + (self.layers - dense) * sparse
        norms = self.layers * self.norms_per_layer * self.hidden + self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * attention + blocks + norms + embeddings

    def cache_bytes(
        self, tokens: int, *, width: int = 2, tensor: int = 1, pipeline: int = 1
    ) -> int:
        """Computes the bytes of KV cache on each GPU for one sequence.

        Args:
            tokens: length of the sequence. A layer with a sliding window keeps only its window.
            width: bytes of a value: 2 in 16 bits, 1 in FP8.
            tensor: GPUs that share each layer. Each holds at least one KV head.
            pipeline: groups of GPUs that share the layers.
        """
        kept = sum(min(tokens, window) if window else tokens for window in self.windows)
        heads = max(-(-self.kv_heads // tensor), 1)
        return 2 * heads * self.head_size * width * -(-kept // pipeline)


def shape_of(settings: Mapping[str, Any]) -> Shape | None:
    """Reads the shape from the contents of a config.json; None for other kinds of model."""
    text = {**settings, **settings.get("text_config", {})}
    kind = str(text.get("model_type", ""))
    if kind in UNGATED or any(text.get(key) for key in FOREIGN):
        return None
    try:
        layers, hidden, heads = (
            int(text[key]) for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
        )
        intermediate, vocabulary = int(text["intermediate_size"]), int(text["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return None
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=text.get("head_dim") or hidden // heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        tied=bool(text.get("tie_word_embeddings", kind in TIED)),
        windows=_windows(text, kind, layers),
        biased=bool(text.get("attention_bias", kind in WITH_BIAS)),
        head_norms=kind.startswith(("qwen3", "gemma3")),
        norms_per_layer=4 if kind.startswith(("gemma2", "gemma3")) else 2,
        **_experts(text, layers),
    )


def _experts(text: Mapping[str, Any], layers: int) -> dict[str, int]:
    count = next((int(text[key]) for key in EXPERT_COUNTS if text.get(key)), 0)
    if not count:
        return {}
    step = int(text.get("decoder_sparse_step") or 1)
    dense = set(text.get("mlp_only_layers") or ()) | set(
        range(text.get("first_k_dense_replace") or 0)
    )
    dense |= {number for number in range(layers) if (number + 1) % step}
    return {
        "experts": count,
        "expert_intermediate": int(text.get("moe_intermediate_size") or text["intermediate_size"]),
        "shared_intermediate": int(text.get("shared_expert_intermediate_size") or 0),
        "dense_layers": len(dense),
    }


def _windows(text: Mapping[str, Any], kind: str, layers: int) -> tuple[int, ...]:
    """Returns how many tokens each layer looks back; 0 for all tokens."""
    window = int(text.get("sliding_window") or 0)
    if not window or text.get("use_sliding_window") is False:
        return (0,) * layers
    if names := text.get("layer_types"):
        return tuple(window if "sliding" in str(name) else 0 for name in names)
    if kind == "gemma2":  # every other layer, beginning with the first
        return tuple(0 if number % 2 else window for number in range(layers))
    if pattern := text.get("sliding_window_pattern"):
        return tuple(0 if (number + 1) % pattern == 0 else window for number in range(layers))
    return (window,) * layers


def base_settings(flow: Flow) -> dict[str, Any] | None:
    """Reads the base's config.json, without downloading anything.

    It looks in the workspace, in the local source, and in the hub's cache.

    Returns:
        The settings; None if the file is in none of these places.
    """
    model, made = flow.config.model, flow.workspace.model("base") / "config.json"
    if made.is_file():
        return read_settings(made)
    return None if model.source is None else source_settings(model.source, model.revision)


def source_settings(source: str, revision: str | None = None) -> dict[str, Any] | None:
    """Reads the config.json of a local folder, or of a hub id in the hub's cache.

    Returns:
        The settings; None if the file is in neither place.
    """
    places = [Path(local(source)).expanduser() / "config.json", _hub_cache(source, revision)]
    for path in filter(None, places):
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file fails where a name is too long)
            return read_settings(path)
    return None


def _hub_cache(source: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    except HFValidationError:  # a path, not the name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a model, such as config.json.

    Raises:
        FlowError: the file cannot be read.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlowError(
            f"{path} cannot be read: {error}", "Copy or download the model again."
        ) from error
    return settings if isinstance(settings, dict) else {}
