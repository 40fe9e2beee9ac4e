"""Finds the weight files in a model's folder, and missing shards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OTHER_COPY = "consolidated"  # Mistral's own files: the same weights with other names
FLOAT_WIDTHS = {"F16": 2, "BF16": 2, "F32": 4}  # safetensors' names -> bytes of a value
HEADER_BYTES = 100_000_000  # safetensors' own limit
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


def float_weights(files: Iterable[Path]) -> tuple[int, int] | None:
    """Counts the weights that are stored in 16 or 32 bits, without scales and zero points.

    Returns:
        Their number, and their bytes; None if a file has no readable header.
    """
    values = size = 0
    for path in files:
        if (header := _header(path)) is None:
            return None
        for name, tensor in header.items():
            if name.endswith(("scale", "zero_point")) or tensor.get("dtype") not in FLOAT_WIDTHS:
                continue
            count = math.prod(tensor["shape"])
            values += count
            size += count * FLOAT_WIDTHS[tensor["dtype"]]
    return values, size


def _header(path: Path) -> dict[str, Any] | None:
    """Reads the header of a safetensors file: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= HEADER_BYTES else b""
    try:
        return json.loads(text)
    except ValueError:
        # other code checks the weights and reports their errors
        return None


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
