"""An installed library has no checkout around it: the working folder must lead there."""

import shutil

import pytest

from model_serve_flow import checkout as module
from model_serve_flow.errors import FlowError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    library = tmp_path / "site-packages" / "model_serve_flow" / "checkout.py"
    library.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(library))
    return tmp_path


def test_the_library_in_a_checkout_finds_it_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (module.checkout() / "pyproject.toml").is_file()


def test_an_installed_library_finds_the_checkout_from_a_modules_folder(installed, monkeypatch):
    folder = installed / "clone" / module.MODULES / "07_Deploy"
    folder.mkdir(parents=True)
    (folder.parent / "profiles").mkdir()
    monkeypatch.chdir(folder)
    assert module.checkout() == installed / "clone"


def test_outside_of_any_checkout_it_says_what_to_do(installed, monkeypatch):
    shutil.rmtree(installed / "clone", ignore_errors=True)
    monkeypatch.chdir(installed)
    with pytest.raises(FlowError, match="MODEL_SERVE_FLOW_PROFILES"):
        module.checkout()
