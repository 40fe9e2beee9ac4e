"""Which files are a model's weights: with an index, with a second copy, with a shard missing."""

import json
from pathlib import Path

import pytest

from model_serve_flow.system.weights import missing_shards, weight_files

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def fill(folder: Path, *names: str, index: tuple[str, ...] = ()) -> Path:
    for name in names:
        (folder / name).write_bytes(b"x")
    if index:
        weight_map = {f"layer.{number}": name for number, name in enumerate(index)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        ((*SHARDS, "consolidated.safetensors"), SHARDS, SHARDS),
        ((*SHARDS, "consolidated.safetensors"), (), SHARDS),
        (
            ("model.safetensors", "consolidated.safetensors", "adapter.safetensors"),
            (),
            ("model.safetensors",),
        ),
        (("consolidated.safetensors",), (), ("consolidated.safetensors",)),
        (("gptq_model-4bit-128g.safetensors",), (), ("gptq_model-4bit-128g.safetensors",)),
    ],
)
def test_the_weights_are_the_files_that_an_engine_loads(tmp_path, names, index, expected):
    found = weight_files(fill(tmp_path, *names, index=index))
    assert tuple(path.name for path in found) == expected


def test_a_shard_that_its_neighbours_name_is_missing(tmp_path):
    assert missing_shards(fill(tmp_path, "model-00001-of-00003.safetensors")) == [
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert (
        missing_shards(
            fill(
                tmp_path, *("model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
            )
        )
        == []
    )
