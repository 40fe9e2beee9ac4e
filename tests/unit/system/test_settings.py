import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow, default_artifacts
from model_serve_flow.system.settings import Settings, require_known, settings
from model_serve_flow.system.variables import MARKS, PREFIX, value, variable

ROOT = Path(__file__).resolve().parents[3]
# as Kubernetes sets where a workbench is called model-serve-flow, and another model-serve-flow-two
OF_SERVICES = (
    "SERVICE_HOST",
    "SERVICE_PORT",
    "SERVICE_PORT_NOTEBOOK",
    "PORT",
    "PORT_8888_TCP",
    "PORT_8888_TCP_ADDR",
    "TWO_SERVICE_HOST",
    "TWO_PORT_80_TCP_PROTO",
)


@pytest.mark.parametrize("name", ["ARTIFACT", "API-KEY", "MIRORR", "CACHE_DIR"])
def test_a_misspelt_variable_is_refused_with_the_setting_it_resembles(monkeypatch, tmp_path, name):
    monkeypatch.setenv(f"{PREFIX}{name}", str(tmp_path))
    with pytest.raises(FlowError, match=f"No setting is called {PREFIX}{name}.") as raised:
        Flow.open("ci", {}, tmp_path)
    assert f"Perhaps {PREFIX}{name[:3]}" in raised.value.hint


def test_variables_of_others_and_of_the_profile_are_no_settings_of_ours():
    ours = [*map(variable, Settings.model_fields), *map(variable, MARKS)]
    services = [f"{PREFIX}{name}" for name in OF_SERVICES]
    require_known(["PATH", "MODEL_SERVE", f"{PREFIX}_PERFORMANCE__SECONDS", *ours, *services])


def test_an_empty_variable_is_not_set_and_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv(variable("artifacts"), "")
    assert default_artifacts() == ROOT / "artifacts"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable("artifacts"), "~/volume")
    assert default_artifacts() == tmp_path / "volume"


def test_no_error_and_no_repr_shows_the_key(monkeypatch, tmp_path):
    monkeypatch.setenv(variable("api_key"), "a-secret-of-mine")
    assert "a-secret" not in repr(settings())
    monkeypatch.setenv(variable("api_key"), "a-secret")
    with pytest.raises(FlowError, match="has 8 characters, at least 16") as raised:
        settings()
    assert "a-secret" not in str(raised.value)


def test_every_setting_that_the_code_names_is_one(monkeypatch):
    known = {*Settings.model_fields, *MARKS}
    named = re.compile(r'(?<![\w.])(?:variable|value)\("(\w+)"')
    read = re.compile(r"(?<!_)settings\(\)\.(\w+)")
    sources = [path.read_text() for path in (ROOT / "src/model_serve_flow").rglob("*.py")]
    used = {name for text in sources for name in [*named.findall(text), *read.findall(text)]}
    assert used == known
    written = [text for text in sources if re.search(r'"MODEL_SERVE_FLOW_\w*"', text)]
    assert [text.splitlines()[0] for text in written] == [
        '"""Reads one of the flow\'s own environment variables with the standard library alone.'
    ]


def test_help_lists_every_setting():
    command = [sys.executable, "-m", "model_serve_flow.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [name for name in Settings.model_fields if variable(name) not in shown] == []


def test_blanks_around_a_value_do_not_count():
    assert value("index", {variable("index"): " public\n"}) == "public"
    assert value("index", {}) == "" and os.environ.get(variable("index")) is None
