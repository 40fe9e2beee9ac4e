"""Reads of a model what decides its profile, without its weights: config.json and tokenizer."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.setup.hub import download
from model_serve_flow.setup.offline import local
from model_serve_flow.setup.shape import Shape, read_settings, shape_of
from model_serve_flow.system.scheme_names import scheme_name
from model_serve_flow.system.weights import weight_files

FILES = ("config.json", "tokenizer_config.json", "chat_template*")
GENERATES = ("CausalLM", "LMHeadModel", "ConditionalGeneration")
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class ModelFacts:
    """What a model's small files say.

    Attributes:
        source: hub id, or absolute path of a local folder.
        revision: commit of the hub's repository; None: a local folder.
        context: longest context that the model was made for, in tokens; None: not known.
        dtype: that of its published weights; "" if it is not known.
        shape: None for kinds of model whose memory this flow cannot compute.
        parameters: number of weights.
        chat: whether it has a chat template.
    """

    name: str
    source: str
    revision: str | None
    kind: str
    context: int | None
    dtype: str
    shape: Shape | None
    parameters: int
    chat: bool


def read_model(source: str, parameters: int | None = None) -> ModelFacts:
    """Reads the facts of a local folder, or downloads the small files of a hub id.

    Args:
        source: a local folder if there is one with this name, else a hub id.
        parameters: number of weights, for a model whose config.json does not tell.

    Raises:
        FlowError: there is no such model or no config.json, the model generates no text, it is
            compressed already, or its number of weights is not known.
    """
    folder = Path(local(source)).expanduser()
    if folder.is_dir():
        whole = folder.resolve()
        return _facts(whole.name, str(whole), None, folder, parameters)
    if source.startswith(("/", ".", "~")):
        raise FlowError(
            f"Model folder {source} does not exist.", "Correct it, or give a hub id: org/model."
        )
    with tempfile.TemporaryDirectory(prefix="model-files-") as partial:
        commit = download(source, None, Path(partial), FILES)["commit"]
        return _facts(source.rpartition("/")[2], source, commit, Path(partial), parameters)


def _facts(
    name: str, source: str, revision: str | None, folder: Path, parameters: int | None
) -> ModelFacts:
    if not (folder / "config.json").is_file():
        raise FlowError(
            f"{source} has no config.json.",
            "Give a checkpoint in Hugging Face's format: config.json, tokenizer, safetensors.",
        )
    settings = read_settings(folder / "config.json")
    _require_usable(source, settings)
    shape, text = shape_of(settings), {**settings, **(settings.get("text_config") or {})}
    known = parameters or (shape.parameters if shape else None) or _stored_weights(folder)
    if known is None:
        raise FlowError(
            f"The config.json of {source} does not tell the number of weights "
            f"(model_type {settings.get('model_type')!r}).",
            "Give it: --parameters 7000000000.",
        )
    return ModelFacts(
        name=name,
        source=source,
        revision=revision,
        kind=str(text.get("model_type", "")),
        context=next((int(text[key]) for key in LENGTHS if text.get(key)), None),
        dtype=str(text.get("dtype") or text.get("torch_dtype") or ""),
        shape=shape,
        parameters=known,
        chat=_has_chat_template(folder),
    )


def _require_usable(source: str, settings: Mapping[str, Any]) -> None:
    classes = [str(name) for name in settings.get("architectures") or ()]
    if classes and not any(kind in name for name in classes for kind in GENERATES):
        raise FlowError(
            f"{source} generates no text: its architecture is {', '.join(classes)}.",
            "Give a causal language model.",
        )
    if quantised := settings.get("quantization_config"):
        raise FlowError(
            f"{source} is compressed already ({scheme_name(quantised)}).",
            "Give the model that it was made from, and this one as a candidate's 'source'.",
        )


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("chat_template*")):
        return True
    tokenizer = folder / "tokenizer_config.json"
    return tokenizer.is_file() and bool(read_settings(tokenizer).get("chat_template"))


def _stored_weights(folder: Path) -> int | None:
    """Counts the weights in the headers of the safetensors files; None if there are no files."""
    files = weight_files(folder)
    return sum(map(_weights_in, files)) if files else None


def _weights_in(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
