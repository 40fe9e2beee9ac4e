"""Which files of a model's folder are its weights, and whether all of them are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OTHER_COPY = "consolidated"  # Mistral's own files: the same weights under other names
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The files that an engine loads: those of the index, else model.safetensors, else the others.

    A second copy of the weights (`consolidated*.safetensors`) is not among them while there is a
    first.
    Files that the index names and that are missing are left out.
    """
    named = indexed_names(folder)
    if named:
        return [folder / name for name in named if (folder / name).is_file()]
    found = sorted(folder.glob("*.safetensors"))
    single = [path for path in found if path.name == SINGLE]
    return single or [path for path in found if not path.name.startswith(OTHER_COPY)] or found


def indexed_names(folder: Path) -> list[str]:
    """Names of the shards in the index, sorted; none where there is no index that can be read."""
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted({str(name) for name in document["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # whether an index is what it should be is checked elsewhere, with its own messages
        return []


def missing_shards(folder: Path) -> list[str]:
    """Shards that must be there by the names of the others, such as 2 of model-00001-of-00002."""
    names = {path.name for path in folder.glob("*.safetensors")}
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    wanted = {
        f"{stem}-{number:05d}-of-{count}.safetensors"
        for stem, _, count in (match.groups() for match in shards)
        for number in range(1, int(count) + 1)
    }
    return sorted(wanted - names)
