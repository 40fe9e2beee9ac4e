"""Things broken on purpose, against the real engine and the real checkpoints: each must be found."""

import shutil

import pytest
from conftest import ARTIFACTS

from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.kernels import require_expected_kernel
from model_serve_flow.serving import serve


@pytest.fixture
def broken(tmp_path):
    """A workspace of its own, with room for planted models."""
    finished = Flow.open("ci", {}, ARTIFACTS)
    assert finished.workspace.model("base").is_dir(), "run the flow first: pytest tests/e2e/test_flow.py"
    planted = Flow.open("ci", {}, tmp_path)
    planted.workspace.model("base").parent.mkdir(parents=True)
    return finished, planted


def test_the_base_served_under_a_candidates_name_is_found(broken):
    finished, planted = broken
    shutil.copytree(finished.workspace.model("base"), planted.workspace.model("w8a8-int8"))
    with serve(planted, "w8a8-int8") as server, pytest.raises(FlowError, match="without a quantised kernel"):
        require_expected_kernel(server.facts(), "w8a8-int8", server.folder)


def test_a_server_that_dies_while_starting_shows_its_last_lines(broken):
    finished, planted = broken
    shutil.copytree(finished.workspace.model("base"), planted.workspace.model("base"))
    (planted.workspace.model("base") / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(FlowError, match=r"(?s)ended with exit code .*no-such-model"), serve(planted, "base"):
        pass


def test_a_port_in_use_is_refused(broken):
    import socket

    finished, _ = broken
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FlowError, match=f"Port {port} is in use"), serve(finished, "base", port=port):
            pass
