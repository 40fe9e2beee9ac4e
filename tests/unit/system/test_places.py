"""Containers without a home, with a read-only one, and with a user id that has no name."""

from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.system import places
from model_serve_flow.system.files import cache_folder
from model_serve_flow.system.places import (
    LONGEST_TEMPORARY,
    home_variables,
    temporary_variables,
    writable,
)

READ_ONLY = Path("/proc/sys")  # nobody can make a file there, not even root


@pytest.fixture
def nameless(monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(places.pwd, "getpwuid", unknown)


def test_a_home_that_can_be_written_stays(tmp_path):
    assert home_variables({"HOME": str(tmp_path), "USER": "me"}, []) == {}


@pytest.mark.parametrize("home", [str(READ_ONLY), "/proc/nowhere"])
def test_a_read_only_home_is_replaced_by_the_first_place_that_can_be_written(tmp_path, home):
    found = home_variables({"HOME": home, "USER": "me"}, [READ_ONLY, tmp_path])
    assert found == {"HOME": str(tmp_path / ".home")}
    assert writable(tmp_path / ".home")


def test_a_user_id_without_a_name_gets_one_and_a_home(tmp_path, nameless):
    found = home_variables({}, [tmp_path])
    assert found == {"USER": "user", "LOGNAME": "user", "HOME": str(tmp_path / ".home")}


def test_where_nothing_can_be_written_the_variable_is_named(monkeypatch, nameless):
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: str(READ_ONLY))
    with pytest.raises(FlowError, match="Set HOME"):
        home_variables(
            {"HOME": "/"} if not writable(Path("/")) else {"HOME": str(READ_ONLY)}, [READ_ONLY]
        )


def test_the_cache_goes_where_writing_works(tmp_path, monkeypatch):
    monkeypatch.delenv("MODEL_SERVE_FLOW_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(READ_ONLY))
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path / "volume"))
    assert cache_folder().is_relative_to(tmp_path / "volume")


@pytest.mark.parametrize("present", ["none", "long"])
def test_a_temporary_folder_that_no_socket_fits_into_is_replaced(tmp_path, monkeypatch, present):
    def found():
        if present == "none":
            raise FileNotFoundError("No usable temporary directory found")
        return str(tmp_path / ("long" * 30))

    monkeypatch.setattr(places.tempfile, "gettempdir", found)
    variables = temporary_variables([])
    assert variables == {"TMPDIR": "/tmp"}
    monkeypatch.setattr(places, "SHORT_TEMPORARY", READ_ONLY)
    monkeypatch.setattr(places, "LONGEST_TEMPORARY", len(str(tmp_path)) + 5)
    assert temporary_variables([READ_ONLY, tmp_path]) == {"TMPDIR": str(tmp_path / ".tmp")}
    with pytest.raises(FlowError, match="Set TMPDIR") as raised:
        temporary_variables([tmp_path / "far" / "away"])
    assert "at most" in raised.value.hint


def test_a_usual_temporary_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(places.tempfile, "gettempdir", lambda: "/var/tmp")
    assert temporary_variables([tmp_path]) == {} and len("/var/tmp") < LONGEST_TEMPORARY
