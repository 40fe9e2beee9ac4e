"""manifest.json: merging, and writers that do not lose each other's sections."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.manifest import package_versions, read_manifest, update_manifest
from model_serve_flow.flow.results.measured import Model
from model_serve_flow.flow.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.of(tmp_path, "p")


def test_nothing_written_yet_is_empty(workspace: Workspace) -> None:
    assert read_manifest(workspace) == {}


def test_sections_merge_by_key(workspace: Workspace) -> None:
    update_manifest(workspace, versions={"a": "1", "b": "1"}, seed=1)
    model = Model(name="base", sha256="0", size_bytes=1)
    update_manifest(workspace, versions={"b": "2"}, seed=2, model=model)
    assert read_manifest(workspace) == {
        "versions": {"a": "1", "b": "2"},
        "seed": 2,
        "model": model.model_dump(mode="json"),
    }


def test_replace_drops_the_old_keys(workspace: Workspace) -> None:
    update_manifest(workspace, steps={"00": 1, "01": 2})
    update_manifest(workspace, replace=True, steps={"00": 1})
    assert read_manifest(workspace)["steps"] == {"00": 1}


def _write(root: Path, number: int) -> None:
    update_manifest(Workspace(root), **{f"writer{number}": number}, shared={str(number): number})


def test_parallel_writers_lose_nothing(workspace: Workspace) -> None:
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_write, [workspace.root] * 24, range(24)))
    manifest = read_manifest(workspace)
    assert len(manifest) == 25
    assert len(manifest["shared"]) == 24


def test_broken_manifest_is_not_overwritten(workspace: Workspace) -> None:
    workspace.root.mkdir(parents=True)
    workspace.manifest.write_text('{"half":')
    with pytest.raises(FlowError, match=r"manifest\.json is not valid JSON"):
        update_manifest(workspace, seed=1)
    assert workspace.manifest.read_text() == '{"half":'


def test_package_versions() -> None:
    versions = package_versions(["pydantic", "no-such-distribution"])
    assert versions["pydantic"].count(".") == 2
    assert versions["no-such-distribution"] is None
