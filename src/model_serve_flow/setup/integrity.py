"""Checks that a checkpoint folder is complete before anything loads it."""

from __future__ import annotations

from pathlib import Path

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.setup.untrusted import SHARD_INDEX, refuse_hostile, strict_json
from model_serve_flow.system.weights import missing_shards, weight_files

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
REMAKE = f"Download it again if it is ready-made. {RERUN}"


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Checks that a folder is a complete and harmless safetensors checkpoint.

    It reads the headers of the tensors, not the tensors.

    Raises:
        FlowError: names the missing, broken or dangerous file.
    """
    if not folder.is_dir():
        raise FlowError(
            f"Model folder {folder} does not exist.", f"Correct 'source' in the profile. {RERUN}"
        )
    refuse_hostile(folder, trust_remote_code=trust_remote_code)
    weights = weight_files(folder)
    if not weights:
        raise FlowError(
            f"{folder} has no *.safetensors weights.",
            "Is the download complete, and the folder the right one?",
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
        raise FlowError(
            f"{path} is missing.", "A checkpoint needs it: copy or download the whole model again."
        )
    if not isinstance(strict_json(path), dict):
        raise FlowError(f"{path} must hold a JSON object.", "Copy or download the model again.")


def _tensor_names(path: Path) -> set[str]:
    """Reads the names of the tensors; safetensors compares the header with the file's size."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise FlowError(
            f"{path} is truncated or corrupt: {error}",
            "Copy or download it again, and check the free disk space.",
        ) from error


def _check_index(folder: Path, tensors: dict[str, set[str]]) -> None:
    index = folder / SHARD_INDEX
    if not index.is_file():
        return
    weight_map = strict_json(index)["weight_map"]
    missing = sorted(set(weight_map.values()) - tensors.keys())
    if missing:
        raise FlowError(
            f"{index} names {', '.join(missing)}, not in the folder.",
            "Copy or download the missing shards.",
        )
    for tensor, shard in weight_map.items():
        if tensor not in tensors[shard]:
            raise FlowError(
                f"{folder / shard} has no tensor {tensor!r}, which {SHARD_INDEX} places there.",
                "Download both again.",
            )
