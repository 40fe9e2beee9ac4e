"""From nothing to the command line: Pythons without ensurepip, without pip, and no make."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.system import environments, tools

ROOT = Path(__file__).parents[3]


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """Pins of a uv and a packaging of our own, which pip finds in a folder,
    beside one it must not install.
    """
    wheels, lines = tmp_path / "wheels", []
    wheels.mkdir()
    for name in ("uv", "packaging", "other"):
        wheel = wheels / f"{name}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(
                f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
            )
            archive.writestr(f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}-1.dist-info/RECORD", "")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}==1 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}\n")
    path = tmp_path / "lock.txt"
    path.write_text("".join(lines))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return path


def without(monkeypatch, *names):
    real = tools.importlib.util.find_spec
    monkeypatch.setattr(
        tools.importlib.util, "find_spec", lambda name: None if name in names else real(name)
    )


def test_a_python_without_ensurepip_gets_the_pinned_tools_and_no_others(
    lock, tmp_path, monkeypatch
):
    without(monkeypatch, "ensurepip", "venv")
    folder = tools.provide(tmp_path / "tools", lock)
    assert (
        (folder / "uv").is_dir()
        and (folder / "packaging").is_dir()
        and not (folder / "other").exists()
    )
    (folder / "mine").touch()
    assert (tools.provide(folder, lock) / "mine").exists(), "installed once"
    lock.write_text(lock.read_text().replace("==1", "==2"))
    with pytest.raises(FlowError, match="cannot be installed"):
        tools.provide(folder, lock)


def test_other_files_than_those_pinned_are_refused(lock, tmp_path):
    lock.write_text(lock.read_text().replace("sha256:", "sha256:f")[:-2])
    with pytest.raises(FlowError, match="cannot be installed"):
        tools.provide(tmp_path / "tools", lock)


def test_where_there_is_no_pip_a_uv_on_the_path_installs(tmp_path, monkeypatch):
    without(monkeypatch, "pip", "ensurepip")
    (tmp_path / "uv").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools._installer(tmp_path)[:3] == [str(tmp_path / "uv"), "pip", "install"]
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FlowError, match="has no pip, no ensurepip"):
        tools._installer(tmp_path)


def test_the_command_line_starts_without_make(tmp_path):
    """The environment is ready, so nothing is built;
    its Python is started with the same arguments.
    """
    notebook = tmp_path / "notebook"
    (notebook / "bin").mkdir(parents=True)
    python = notebook / "bin" / "python"
    python.write_text('#!/bin/sh\necho "started with $*"\n')
    python.chmod(0o755)
    (notebook / "complete").write_text(environments._digest("notebook", "cpu"))
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "MODEL_SERVE_FLOW_ENVIRONMENTS": str(tmp_path),
    }
    command = [sys.executable, "-m", "model_serve_flow", "plan", "--profile", "ci"]
    done = subprocess.run(
        command, env=variables, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout == "started with -m model_serve_flow.cli plan --profile ci\n", done.stderr


def test_the_way_there_needs_the_standard_library_alone():
    """A bare interpreter imports it: without site-packages."""
    code = (
        "import model_serve_flow.__main__, sys; sys.exit('pydantic' in sys.modules or 'packaging' "
        "in sys.modules)"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-S", "-c", code], env=variables, check=True)
