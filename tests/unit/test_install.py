"""`make install` puts the command where a shell finds it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environments(tmp_path):
    """Environments that look built, so that nothing is installed."""
    program(tmp_path / "environments" / "tools" / "bin" / "python", "exit 0")
    program(tmp_path / "environments" / "notebook" / "bin" / "model-serve-flow", 'echo "flow $1"')
    (tmp_path / "environments" / "tools" / "ready").touch()
    return tmp_path / "environments"


def said(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_command_runs_from_its_new_place_and_may_be_installed_twice(environments, tmp_path):
    place = tmp_path / "bin"
    command = ("make", "install", f"ENVIRONMENTS={environments}", f"TO={place}")
    assert f'export PATH="{place}:$PATH"' in said(*command)
    said(*command)
    assert said(place / "model-serve-flow", "run") == "flow run\n"
