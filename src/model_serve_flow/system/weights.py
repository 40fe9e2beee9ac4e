"""Finds the weight files in a model's folder, and missing shards."""

from __future__ import annotations

import json
import re
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OTHER_COPY = "consolidated"  # Mistral's own files: the same weights with other names
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Lists the files that an engine loads: of the index, else model.safetensors, else others.

    A second copy of the weights (`consolidated*.safetensors`) is used only if there is no first
    copy. Files that the index names and that are missing are left out.
    """
    named = indexed_names(folder)
    if named:
        return [folder / name for name in named if (folder / name).is_file()]
    found = sorted(folder.glob("*.safetensors"))
    single = [path for path in found if path.name == SINGLE]
    return single or [path for path in found if not path.name.startswith(OTHER_COPY)] or found


def indexed_names(folder: Path) -> list[str]:
    """Lists the shards that the index names, sorted; empty without a readable index."""
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted({str(name) for name in document["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # other code checks the index and reports its errors
        return []


def missing_shards(folder: Path) -> list[str]:
    """Lists shards that the names of other shards imply, such as 2 of model-00001-of-00002."""
    names = {path.name for path in folder.glob("*.safetensors")}
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    wanted = {
        f"{stem}-{number:05d}-of-{count}.safetensors"
        for stem, _, count in (match.groups() for match in shards)
        for number in range(1, int(count) + 1)
    }
    return sorted(wanted - names)
