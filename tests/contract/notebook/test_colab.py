"""The notebook for Colab, in a session that is imitated: without a GPU, and with a T4."""

import os
import re
from pathlib import Path

import papermill
import pytest
from support import nvidia_smi
from support.profiles import CI
from support.surroundings import link_programs

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "examples" / "model-serve-flow" / "Colab.ipynb"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Executes the notebook in a folder of its own; returns what its cells showed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    link_programs(programs, os.environ["PATH"].split(os.pathsep))
    (programs / "nvidia-smi").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", str(programs))
    session = tmp_path / "content"
    session.mkdir()

    def execute(**parameters):
        done = papermill.execute_notebook(
            NOTEBOOK,
            tmp_path / "executed.ipynb",
            {"artifacts": str(tmp_path / "artifacts"), "folder": str(ROOT), **parameters},
            kernel_name="python3",
            progress_bar=False,
            cwd=session,
        )
        cells = [cell for cell in done.cells if cell.cell_type == "code"]
        return "".join(o.get("text", "") for cell in cells for o in cell.outputs)

    return execute


def refused(run, **parameters):
    with pytest.raises(papermill.PapermillExecutionError) as raised:
        run(**parameters)
    return re.sub(r"\x1b\[[0-9;]*m", "", raised.value.evalue)


def test_without_a_checkout_the_parameters_are_named(run):
    assert "is no checkout of model-serve-flow: set repository or folder" in refused(
        run, folder="elsewhere"
    )


def test_a_session_without_a_gpu_is_told_to_choose_one(run):
    assert refused(run) == ("This session has no GPU. Choose one: Runtime, Change runtime type.")


def test_an_old_driver_is_refused_before_anything_is_downloaded(run, tmp_path, monkeypatch):
    (tmp_path / "smi").mkdir()
    t4 = nvidia_smi.line(0, "Tesla T4", "15360", "550.54.15", "7.5")
    nvidia_smi.put_on_path(tmp_path / "smi", monkeypatch, t4)
    reason = refused(run)  # the profile follows from the GPU
    assert "GPU driver" in reason and "550.54.15" in reason and "580 or newer" in reason
    assert not (tmp_path / "artifacts" / "colab-t4" / "models").exists()


def test_every_cell_runs_where_the_profile_fits(run):
    shown = run(profile=CI, command="plan")
    assert f"Profile: {CI}" in shown and "Machine" in shown
    assert "00_Setup" in shown and "07_Deploy" in shown
