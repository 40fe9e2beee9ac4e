"""A proxy for the internet, as companies have one: no request to our own server, and no key,
may reach it.
"""

import contextlib
import socket
import sys
import threading

import psutil
import pytest
import requests
from support.engines import VLLM
from test_guidellm_mock_server import load, mock_server, tokenizer  # noqa: F401 (mock_server is a fixture)
from test_resume import KEY, Endpoint, finds_out, folder  # noqa: F401

from model_serve_flow.deploy.endpoint_checks import check_endpoint
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.accuracy import measure_accuracy
from model_serve_flow.measure.guidellm.generator import load_generator
from model_serve_flow.serve import launch, vllm
from model_serve_flow.serve import server as server_module
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.engine_variables import known_names

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
# vLLM's server in a few lines: what it says of itself, and a port behind which the endpoint of the
# test answers
FORWARDER = """
import os, socket, sys, threading
print("Initializing a V1 LLM engine (v0.32.0) with config: dtype=torch.float32", flush=True)

def pour(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)

with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
    while True:
        client = listener.accept()[0]
        server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=pour, args=pair, daemon=True).start()
"""


@pytest.fixture
def proxy(monkeypatch):
    """The bytes that a proxy got, which every variable names; it answers nothing."""
    got = []

    def accept(listener):
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                with listener.accept()[0] as client:
                    got.append(client.recv(65536))

    for variable in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        for variable in PROXIES:
            monkeypatch.setenv(variable, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield got
        # it is one, and is still asked for what is elsewhere
        with contextlib.suppress(requests.RequestException):
            requests.get("http://hub.invalid/", timeout=10)
        assert got and b"hub.invalid" in got[-1]
        listener.shutdown(socket.SHUT_RDWR)


def for_our_server(got):
    """What of the proxy's bytes was meant for our server; libraries ask for what is elsewhere."""
    return [
        data for data in got if KEY.encode() in data or b"127.0.0.1" in data or b"localhost" in data
    ]


def healthy(request):
    request.send_response(200)
    request.send_header("Content-Length", "0")
    request.end_headers()


@pytest.mark.parametrize("concurrency", [1, 8])
def test_no_question_of_lm_eval_goes_to_a_proxy(folder, proxy, monkeypatch, concurrency):  # noqa: F811
    settings = {
        "accuracy.tasks": ["word_analogies"],
        "accuracy.limit": None,
        "accuracy.concurrency": concurrency,
    }
    flow = Flow.open("ci", {**settings, "engine.max_model_len": 128}, folder)
    monkeypatch.setenv("MODEL_SERVE_FLOW_API_KEY", KEY)
    with Endpoint(labels=False) as endpoint:
        endpoint.server.RequestHandlerClass.do_GET = healthy
        command = [sys.executable, "-c", FORWARDER, str(endpoint.server.server_port)]
        monkeypatch.setattr(
            vllm,
            "serve_command",
            lambda config, folder, name, port, purpose: [*command, str(port)],
        )
        with launch.serve(flow, "base", purpose="accuracy") as server:
            assert measure_accuracy(flow, server).tasks["word_analogies"].n == 30
        assert sum(not finds_out([prompt]) for prompt in endpoint.answered) == 30 * 4
    assert for_our_server(proxy) == []


def test_no_request_of_guidellm_or_a_notebook_goes_to_a_proxy(mock_server, proxy, tmp_path):  # noqa: F811
    settings = {"concurrency": [2], "repeats": 1, "seconds": 2, "warmup_seconds": 0.5}
    flow = Flow.open(
        "ci", {f"performance.{key}": value for key, value in settings.items()}, tmp_path
    )
    (url, child), log = mock_server, tmp_path / "vllm.log"
    log.touch()
    tokens = tokenizer(tmp_path / "base")
    server = server_module.Server(
        url, "base", KEY, tokens, log, psutil.Process(child.pid), 1.0, child.poll, engine=VLLM
    )
    with load_generator(flow) as generator:
        generator.run(
            server, load(flow, server, tmp_path / "points.json"), tmp_path / "points.json"
        )
    assert ask(server, "Who?") and list(stream(server, "Who?"))
    assert any(check.ok for check in check_endpoint(server, max_model_len=256))
    assert for_our_server(proxy) == []


def test_the_variables_that_vllm_knows_are_read_from_its_source():
    assert {"VLLM_PORT", "VLLM_CPU_KVCACHE_SPACE", "VLLM_LOGGING_LEVEL"} <= known_names()
    assert 100 < len(known_names()) < 1000 and not any(
        name.startswith("VLLM_SERVICE") for name in known_names()
    )
