"""The checks against GuideLLM's own mock server: an endpoint that answers as it should,
and refuses nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from model_serve_flow.deploy.endpoint_checks import check_endpoint, require_checks
from model_serve_flow.errors import FlowError
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.hardware import free_port

START_SECONDS = 120


@pytest.fixture(scope="module")
def mock_server(tmp_path_factory):
    port = free_port()
    log = tmp_path_factory.mktemp("mock") / "server.log"
    program = Path(sys.executable).with_name("guidellm")
    command = [
        program,
        "mock-server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--model",
        "mock",
        "--output-tokens",
        "8",
    ]
    with log.open("wb") as sink:
        child = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(child, url, log)
        (log.parent / "chat_template.jinja").touch()
        yield Endpoint(url, "mock", "a-key-it-does-not-ask-for", log.parent)
    finally:
        child.terminate()
        child.wait(timeout=20)


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert child.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    pytest.fail(f"the mock server did not start:\n{log.read_text()}")


def test_an_open_endpoint_answers_but_must_not_be_deployed(mock_server):
    checks = {check.name: check for check in check_endpoint(mock_server, max_model_len=256)}
    answered = {name for name, check in checks.items() if check.ok}
    assert answered == {"health", "model list", "chat", "streaming"}
    assert all(checks[name].got == "200" for name in checks.keys() - answered)
    with pytest.raises(FlowError, match="missing key: expected 401, got 200"):
        require_checks(tuple(checks.values()))
