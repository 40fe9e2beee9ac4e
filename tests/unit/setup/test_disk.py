"""The disk that a run needs: models, data, and environments that are still to be built."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from model_serve_flow import cli
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup import disk
from model_serve_flow.setup.checks import Check
from model_serve_flow.setup.fit import estimate, require
from model_serve_flow.system import environment_sizes, environments
from model_serve_flow.system.hardware import inspect_machine
from model_serve_flow.system.sizes import GIB

ALL = {"notebook", "serve", "compress"}
HERE = environments.environments_folder()  # before a test names another folder


@pytest.fixture(autouse=True)
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments and uv's cache are on one file system."""
    monkeypatch.setenv("MODEL_SERVE_FLOW_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))


def built(tmp_path: Path, device: str, *names: str) -> None:
    """Makes environments look as if they had been built for a device, from whatever locks."""
    for name in names:
        packages = tmp_path / "environments" / name / "lib" / "python3.12" / "site-packages"
        (packages / ("nvidia" if device == "gpu" else "torch")).mkdir(parents=True)
        (tmp_path / "environments" / name / "complete").write_text("a digest")


def checks(tmp_path: Path, profile: str, free_gib: float) -> list[Check]:
    flow = Flow.open(profile, {}, tmp_path)
    machine = inspect_machine(tmp_path).model_copy(update={"disk_free_bytes": int(free_gib * GIB)})
    return disk.disk_checks(flow, machine, estimate(flow).disk_bytes)


def test_before_anything_is_built_a_full_disk_is_refused_with_both_figures(
    tmp_path: Path,
) -> None:
    assert [item.ok for item in checks(tmp_path, "gpu-llama-3.1-8b", 60)] == [True, True]
    models, both = checks(tmp_path, "gpu-llama-3.1-8b", 50)
    assert models.ok and not both.ok
    with pytest.raises(FlowError, match=r"disk for environments: 50.0 GiB; needed: 9.6 GiB to "
                       r"build notebook, serve, compress, and 43.4 GiB of models"):  # fmt: skip
        require([models, both])


def test_what_is_built_is_not_counted_again_also_if_its_locks_are_older(tmp_path: Path) -> None:
    built(tmp_path, "cpu", *ALL)
    assert [item.name for item in checks(tmp_path, "cpu-smollm2", 60)] == ["disk"]
    # for a GPU, only the notebook environment will do
    (_, rest) = checks(tmp_path, "colab-t4", 60)
    assert "to build serve, compress" in rest.needed
    sizes = environment_sizes.SIZES["gpu"]
    own = sizes.own["serve"] + sizes.own["compress"]
    assert environment_sizes.missing_bytes("gpu") == sizes.shared + own


def test_the_second_large_environment_shares_the_files_of_the_first(tmp_path: Path) -> None:
    built(tmp_path, "gpu", "serve", "notebook")
    own = environment_sizes.SIZES["gpu"].own["compress"]
    assert environment_sizes.missing_bytes("gpu") == own


def test_with_the_cache_elsewhere_every_environment_has_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = environment_sizes.missing_bytes("cpu")
    number = {tmp_path / "cache": 1}
    monkeypatch.setattr(environment_sizes, "file_system", lambda folder: number.get(folder, 2))
    shared = environment_sizes.SIZES["cpu"].shared
    assert environment_sizes.missing_bytes("cpu") == together + 2 * shared


def test_tasks_and_texts_of_the_hub_are_counted_and_those_of_packages_are_in_the_environments(
    tmp_path: Path,
) -> None:
    assert disk.data_bytes(Flow.open("cpu-smollm2", {}, tmp_path).config) == 0
    assert disk.data_bytes(Flow.open("colab-t4", {}, tmp_path).config) == GIB


@pytest.mark.parametrize("name", environments.NAMES)
def test_the_sizes_are_those_of_the_environments_here(name: str) -> None:
    """Within a fifth: locks that change them more need new figures."""
    if not (HERE / name / "complete").is_file():
        pytest.skip(f"the {name} environment is not built here")
    du = ["du", "-s", "--block-size=1", str(HERE / name)]
    taken = int(subprocess.run(du, capture_output=True, text=True, check=True).stdout.split()[0])
    sizes = environment_sizes.SIZES["cpu"]
    assert taken == pytest.approx(sizes.shared + sizes.own[name], rel=0.2)


def test_plan_names_the_disk_of_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path))
    shown = CliRunner().invoke(cli.main, ["plan", "--profile", "gpu-llama-3.3-70b"]).output
    assert "disk for environments to build: about 9.6 GiB" in shown
