"""The server's life, with a few lines of Python in the engine's place; the real engine is started in tests/e2e."""

import socket
import sys
import time

import psutil
import pytest

from model_serve_flow import serving
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow

LOG = """
(EngineCore) INFO Initializing a V1 LLM engine (v0.32.0) with config: quantization=compressed-tensors, seed=0
(Worker pid=2) INFO [__init__.py:1] Selected CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8
(Worker pid=2) INFO [__init__.py:1] Selected CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8
(EngineCore pid=1) INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum concurrency
"""
HEALTHY = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def flow(tmp_path):
    flow = Flow.open("ci", {"engine.startup_seconds": 20}, tmp_path)
    flow.workspace.model("base").mkdir(parents=True)
    return flow


def engine(monkeypatch, code):
    monkeypatch.setattr(
        serving, "serve_command", lambda config, folder, name, port: [sys.executable, "-c", code, str(port)]
    )


def server(tmp_path, text):
    log = tmp_path / "vllm.log"
    log.write_text(text)
    return serving.Server("http://127.0.0.1:1", "base", None, tmp_path, log, psutil.Process(), 1.0)


def test_facts_are_read_from_the_log(tmp_path):
    facts = server(tmp_path, LOG).facts()
    assert facts.version == "0.32.0"
    assert facts.quantization == "compressed-tensors"
    assert facts.kernels == ("CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8",)
    assert facts.kv_cache_tokens == 46592
    assert facts.peak_memory_bytes > 2**20


def test_quantization_none_means_unquantised(tmp_path):
    facts = server(tmp_path, LOG.replace("quantization=compressed-tensors", "quantization=None")).facts()
    assert facts.quantization is None


def test_a_log_without_a_version_is_not_trusted(tmp_path):
    with pytest.raises(FlowError, match="does not name the engine's version"):
        server(tmp_path, "nothing here").facts()


def test_the_whole_family_is_stopped(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    with serving.serve(flow, "base") as running:
        family = [running.process, *running.process.children(recursive=True)]
        assert len(family) == 2
    deadline = time.monotonic() + 10
    while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family):
        assert time.monotonic() < deadline, "a process of the server is left"
        time.sleep(0.1)


def test_the_server_is_stopped_when_the_block_fails(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    with pytest.raises(ZeroDivisionError), serving.serve(flow, "base") as running:
        process = running.process
        raise ZeroDivisionError
    assert not process.is_running()


def test_a_server_that_dies_shows_its_last_lines(flow, monkeypatch):
    engine(monkeypatch, "print('CUDA out of memory'); raise SystemExit(3)")
    with pytest.raises(FlowError, match=r"(?s)exit code 3 .*CUDA out of memory"), serving.serve(flow, "base"):
        pass


def test_a_server_that_never_answers_is_ended(flow, monkeypatch, tmp_path):
    flow = Flow.open("ci", {"engine.startup_seconds": 1}, tmp_path)
    engine(monkeypatch, "import time; print('loading', flush=True); time.sleep(600)")
    with (
        pytest.raises(FlowError, match=r"(?s)did not answer within 1 s.*startup_seconds=2"),
        serving.serve(flow, "base"),
    ):
        pass


def test_a_port_in_use_is_refused(flow):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FlowError, match="in use"), serving.serve(flow, "base", port=taken.getsockname()[1]):
            pass


def test_a_missing_model_folder_is_named(tmp_path):
    with pytest.raises(FlowError, match="no model folder"), serving.serve(Flow.open("ci", {}, tmp_path), "base"):
        pass


def test_the_key_goes_by_environment_not_by_command_line(flow):
    command = serving.serve_command(flow.config, flow.workspace.model("base"), "base", 8000)
    assert not any("api-key" in argument for argument in command)
    assert command[command.index("--host") + 1] == "127.0.0.1"


def alive(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_servers_of_several_models_start_together_and_each_ends_after_its_turn(flow, monkeypatch):
    flow.workspace.model("w8a8-int8").mkdir()
    engine(monkeypatch, HEALTHY)
    with serving.serve_each(flow, ["base", "w8a8-int8"]) as servers:
        first = next(servers)
        second = next(servers)
        assert (first.model_name, second.model_name) == ("base", "w8a8-int8")
        assert first.url != second.url
        assert second.process.create_time() - first.process.create_time() < 1  # not after the first one's turn
        assert not alive([first.process])
        assert alive([second.process])
        assert list(servers) == []
        assert not alive([second.process])


def test_a_turn_that_fails_leaves_no_server(flow, monkeypatch):
    flow.workspace.model("w8a8-int8").mkdir()
    engine(monkeypatch, HEALTHY)
    with pytest.raises(ZeroDivisionError), serving.serve_each(flow, ["base", "w8a8-int8"]) as servers:
        next(servers)
        children = psutil.Process().children(recursive=True)
        assert len(alive(children)) == 4
        raise ZeroDivisionError
    assert not alive(children)


def test_one_server_that_cannot_start_ends_the_others(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    before = set(psutil.Process().children(recursive=True))
    with (
        pytest.raises(FlowError, match="no model folder"),
        serving.serve_each(flow, ["base", "w8a8-int8"]) as servers,
    ):
        list(servers)
    assert not alive(set(psutil.Process().children(recursive=True)) - before)
