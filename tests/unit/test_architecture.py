"""The picture of the rooms shows the imports that are there."""

import importlib.util
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
sys.modules["architecture"] = architecture = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(architecture)

SOURCES = {
    "cli.py": "from model_serve_flow.run import runner",
    "run/__init__.py": "",
    "run/runner.py": "import os\n\ndef run():\n    from model_serve_flow.flow.flow.profile import "
    "load",
    "flow/profile.py": "import model_serve_flow.system.files\nimport model_serve_flow.errors",
    "system/files.py": "from model_serve_flow.errors import FlowError",
    "errors.py": "class FlowError(Exception): ...",
}


@pytest.fixture
def package(tmp_path):
    """A small package of ours, and the means to write more of it."""

    def write(name, source):
        path = tmp_path / "model_serve_flow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        return tmp_path / "model_serve_flow"

    for name, source in SOURCES.items():
        folder = write(name, source)
    return folder, write


def test_arrows_are_the_imports_between_rooms_also_those_inside_functions(package):
    found = architecture.arrows(package[0])
    assert found == {
        ("cli", "run"),
        ("run", "flow"),
        ("flow", "system"),
        ("flow", "errors"),
        ("system", "errors"),
    }
    assert architecture.without_implied(found) == found - {("flow", "errors")}


def test_the_picture_has_every_room_and_the_arrows_that_are_not_implied(package):
    picture = architecture.draw(architecture.arrows(package[0]))
    assert ET.fromstring(picture).tag.endswith("svg")
    assert all(f">{room}</text>" in picture for room in architecture.LEVELS)
    assert "<title>cli imports run</title>" in picture and "flow imports errors" not in picture


@pytest.mark.parametrize("room", ["run", "measure"])  # above, and beside
def test_an_import_of_a_room_that_is_not_below_fails(package, monkeypatch, tmp_path, capsys, room):
    folder = package[1]("compress/recipes.py", f"import model_serve_flow.{room}.a")
    monkeypatch.setattr(architecture, "PACKAGE", folder)
    monkeypatch.setattr(architecture, "PICTURE", tmp_path / "picture.svg")
    assert architecture.main() == 1
    assert "compress imports" in capsys.readouterr().err
    assert 'class="up"' in (tmp_path / "picture.svg").read_text()


def test_a_module_outside_the_rooms_is_named(package):
    with pytest.raises(ValueError, match=r"new\.py: no room is called 'new'"):
        architecture.arrows(package[1]("new.py", "import os"))


@pytest.mark.skipif(not (architecture.PACKAGE / "flow").is_dir(), reason="there are no rooms yet")
def test_the_committed_picture_is_that_of_the_imports():
    drawn = architecture.draw(architecture.arrows(architecture.PACKAGE))
    again = "Draw it again: .environments/notebook/bin/python docs/architecture.py"
    assert architecture.PICTURE.read_text(encoding="utf-8") == drawn, again
