"""No secret of the environment leaves it, and nothing needs a network where a mirror is."""

import pytest
from conftest import ARTIFACTS, CANARY, SECRETS
from support.canary import files_with
from support.profiles import CI


def test_no_command_line_showed_a_secret(watched):
    assert watched.seen - watched.before, "only processes that were there anyway were seen"
    assert watched.found == {}


def test_no_file_and_no_message_holds_a_secret(flow, watched):
    """Every byte of models, results, raw outputs, logs, notebooks, manifests and the report."""
    assert files_with(ARTIFACTS / CI, CANARY.encode()) == []
    assert CANARY not in watched.output


def test_the_search_finds_what_it_looks_for(flow, tmp_path):
    (tmp_path / "notebook.ipynb").write_text('{"outputs": ["' + SECRETS["HF_TOKEN"] + '"]}')
    assert [path.name for path in files_with(tmp_path, CANARY.encode())] == ["notebook.ipynb"]


def test_the_flow_ran_without_a_network(watched):
    if not watched.offline:
        pytest.skip("this machine does not allow user and network namespaces (unshare)")
    assert "00_Setup" in watched.output and "07_Deploy" in watched.output
