"""An installed library has no checkout around it: the working folder must lead there."""

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.system import checkout as module


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder with an installed library and, beside it, a checkout."""
    library = tmp_path / "site-packages" / "model_serve_flow" / "checkout.py"
    library.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(library))
    for name in ("07_Deploy", "profiles"):
        (tmp_path / "clone" / module.MODULES / name).mkdir(parents=True)
    return tmp_path


def test_the_library_in_a_checkout_finds_it_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (module.checkout() / "pyproject.toml").is_file()


def test_an_installed_library_finds_the_checkout_from_a_modules_folder(installed, monkeypatch):
    monkeypatch.chdir(installed / "clone" / module.MODULES / "07_Deploy")
    assert module.checkout() == installed / "clone"


@pytest.mark.parametrize("folder", [".", "site-packages/model_serve_flow"])
def test_outside_of_any_checkout_it_says_what_to_do(installed, monkeypatch, folder):
    monkeypatch.chdir(installed / folder)
    with pytest.raises(FlowError, match=f"working folder {installed / folder} is inside") as raised:
        module.checkout()
    assert "MODEL_SERVE_FLOW_PROFILES" in raised.value.hint
