"""Every notebook of the sequence is as the runner and its readers expect."""

import json
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

SEQUENCE = Path(__file__).resolve().parents[3] / "examples" / "serving-from-scratch"
MODULES = sorted(path.parent.name for path in SEQUENCE.glob("[0-9]*/pyproject.toml"))
PARAMETERS = ("profile = None", "overrides = {}", "artifacts = None")

module = pytest.mark.parametrize("module", MODULES)


def test_there_are_notebooks():
    assert "00_Setup" in MODULES and "03_Batching" in MODULES


@module
def test_module_is_whole(module):
    for name in ("README.md", "utils.py", "pyproject.toml", f"{module}.ipynb"):
        assert (SEQUENCE / module / name).is_file(), name
    settings = tomllib.loads((SEQUENCE / module / "pyproject.toml").read_text())
    assert settings["tool"]["model-serve-flow"] == {"environment": "serve"}
    assert settings["project"]["description"] and settings["project"]["dependencies"]


@module
def test_notebook_is_short_and_has_no_output(module):
    path = SEQUENCE / module / f"{module}.ipynb"
    notebook = nbformat.reads(json.dumps(json.loads(path.read_text())), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec["name"] == "model-serve-flow-serve"
    first, *_, last = notebook.cells
    assert first.source.startswith(f"# {module[:2]} ") and last.cell_type == "markdown"
    assert f"results/serving/{module}.json" in first.source
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata["tags"] == ["parameters"]
    lines = [line.split("  #")[0] for line in code[0].source.splitlines()]
    assert tuple(lines[:3]) == PARAMETERS
    assert not any(cell.metadata.get("tags") for cell in code[1:])
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 20, cell.source


@module
def test_links_lead_somewhere(module):
    path = SEQUENCE / module / f"{module}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for text in [*texts, (SEQUENCE / module / "README.md").read_text()]:
        for part in text.split("](")[1:]:
            target = part.split(")")[0]
            assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted(SEQUENCE.glob("*/ci.yaml")), ids=lambda p: p.parent.name)
def test_smaller_sizes_are_parameters(path):
    notebook = nbformat.read(path.parent / f"{path.parent.name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if cell.metadata.get("tags"))
    names = {line.split(" = ")[0] for line in parameters.source.splitlines()}
    assert yaml.safe_load(path.read_text()).keys() <= names
