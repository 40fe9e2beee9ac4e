"""The kernels in a JupyterLab that is not ours: the workbench's own, or Colab's."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

from model_serve_flow.system import environments
from model_serve_flow.system.environments import NAMES

KERNELS = {environments.environment(name).kernel for name in NAMES}


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """The Python of another Jupyter, whose own folder has none of our kernels."""
    folder = tmp_path_factory.mktemp("their jupyter")
    command(sys.executable, "-m", "venv", "--without-pip", str(folder))
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    return str(folder / "bin" / "python")


@pytest.fixture
def workbench(tmp_path, monkeypatch):
    """A home on a volume, which the JupyterLab of the workbench uses; nothing else of ours."""
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "volume"))
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path / "volume" / "artifacts"))
    monkeypatch.setenv("MODEL_SERVE_FLOW_API_KEY", "secret-of-16-letters")
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


def command(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def kernels(*arguments):
    """The command `kernels`, beside environments that are built already."""
    code = (
        "import sys; from model_serve_flow.system import environments; "
        "environments.ensure = lambda *_: None; "
        "from model_serve_flow.cli import main; main(['kernels', *sys.argv[1:]])"
    )
    return command(sys.executable, "-c", code, *arguments)


def listed(jupyter):
    done = command(jupyter, "-m", "jupyter_client.kernelspecapp", "list", "--json")
    return json.loads(done.stdout)["kernelspecs"]


def test_a_jupyter_of_the_user_lists_them_and_runs_a_notebook(jupyter, workbench):
    said, found = kernels().stdout, listed(jupyter)
    assert found.keys() >= KERNELS
    assert all(found[name]["resource_dir"] in said for name in KERNELS)

    code = "import os, sys; print(sys.prefix, os.environ.get('OMP_WAIT_POLICY'))"
    cells, path = [nbformat.v4.new_code_cell(code)], workbench / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    execute = "from nbclient.cli import main; main()"
    options = ["--inplace", "--kernel_name=model-serve-flow-notebook"]
    command(jupyter, "-c", execute, *options, str(path))
    prefix, policy = nbformat.read(path, as_version=4).cells[0].outputs[0].text.split()
    assert Path(prefix) == environments.environment("notebook").folder and policy

    subprocess.run(said.partition("To remove them: ")[2], shell=True, check=True)
    assert not KERNELS & listed(jupyter).keys()


def test_they_set_what_lab_sets_and_the_users_folders_but_no_key(workbench, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(workbench / "jupyter data"))
    kernels()
    written = {path: path.read_text() for path in workbench.rglob("jupyter data/**/kernel.json")}
    assert {path.parent.name for path in written} == KERNELS
    for text in written.values():
        variables = json.loads(text)["env"]
        assert variables.items() >= environments.PROCESS_VARIABLES.items()
        assert variables["MODEL_SERVE_FLOW_ARTIFACTS"] == str(workbench / "artifacts")
        assert "secret-of" not in text
    kernels()
    assert written == {path: path.read_text() for path in written}, "a second call changes nothing"


def test_a_home_that_cannot_be_written_needs_the_folder_by_name(workbench, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    refused = kernels()
    assert refused.returncode == 1 and "Set JUPYTER_DATA_DIR" in refused.stderr
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(workbench / "data"))
    assert kernels().returncode == 0
    (kernel,) = (workbench / "data").rglob("model-serve-flow-serve/kernel.json")
    home = json.loads(kernel.read_text())["env"]["HOME"]
    assert Path(home).is_relative_to(workbench / "artifacts") and os.access(home, os.W_OK)
