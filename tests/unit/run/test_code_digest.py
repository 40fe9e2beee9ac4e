"""Which of our own source files a step depends on."""

import json

import pytest

from model_serve_flow.run import code_digest as module
from model_serve_flow.run.code_digest import PACKAGE, code_digest, files_used
from model_serve_flow.run.steps import STEPS, module_folder


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A small package in the place of ours, and a step that uses some of it."""
    package = tmp_path / PACKAGE.name
    (package / "templates").mkdir(parents=True)
    (package / "templates" / "report.j2").write_text("a page")
    sources = {
        "__init__": "",
        "used": "from model_serve_flow import deep\n\ndef late():\n    import "
        "model_serve_flow.lazy",
        "deep": "",
        "lazy": "",
        "child": "",
        "starts": 'COMMAND = ["-m", "model_serve_flow.child"]',
        "loads": 'LOADER = ("model_serve_flow", "templates")',
        "other": "",
    }
    for name, code in sources.items():
        (package / f"{name}.py").write_text(code)
    monkeypatch.setattr(module, "PACKAGE", package)
    module._used_by.cache_clear()
    step = tmp_path / "00_Step"
    step.mkdir()
    cells = [
        {
            "cell_type": "code",
            "source": ["from utils import run\n", "from model_serve_flow.loads import LOADER"],
        }
    ]
    (step / "00_Step.ipynb").write_text(json.dumps({"cells": cells}))
    (step / "utils.py").write_text(
        "from model_serve_flow.used import late\nfrom model_serve_flow.starts import COMMAND"
    )
    yield package, lambda: (module._used_by.cache_clear(), code_digest(step, "00_Step.ipynb"))[1]
    module._used_by.cache_clear()


@pytest.mark.parametrize(
    "name", ["used.py", "deep.py", "lazy.py", "starts.py", "child.py", "templates/report.j2"]
)
def test_an_edit_of_what_a_step_uses_changes_its_digest(library, name):
    package, digest = library
    before = digest()
    (package / name).write_text((package / name).read_text() + "\n# edited")
    assert digest() != before


def test_an_edit_of_anything_else_does_not(library):
    package, digest = library
    before = digest()
    (package / "other.py").write_text("edited = True")
    assert digest() == before == digest()


def names(number):
    """Modules of ours that the real step depends on."""
    step = next(step for step in STEPS if step.number == number)
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in files_used(module_folder(step), step.notebook)
    }


def test_the_real_steps_depend_on_what_they_run():
    assert {
        "compare/stats/paired.py",
        "compare/verdict.py",
        "report/templates/report.html.j2",
    } <= names("06")
    assert {
        "measure/lm_eval_client.py",
        "serve/launch.py",
        "serve/vllm_main.py",
        "serve/watchdog.py",
    } <= names("01")
    guidellm = {"driver.py", "workers.py", "constraint.py"}
    assert {f"measure/guidellm/{name}" for name in guidellm} <= names("02")
    assert {"compress/compression.py", "compress/calibration.py"} <= names(
        "03"
    ) and "deploy/kserve.json" in names("07")
    assert not {"report/report.py", "compress/compression.py", "measure/lm_eval_client.py"} & names(
        "02"
    )
