"""The real GuideLLM against its own mock server: our command line is one it takes, our reader one that fits."""

import subprocess
import sys
import time

import httpx
import psutil
import pytest

from model_serve_flow.flow import Flow
from model_serve_flow.machine import free_port
from model_serve_flow.performance import read_load_points, run_guidellm
from model_serve_flow.serving import Server


@pytest.fixture
def mock_server():
    port = free_port()
    command = [sys.executable, "-m", "guidellm", "mock-server", "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen([*command, "--model", "base", "--ttft-ms", "20", "--itl-ms", "5"])
    deadline = time.monotonic() + 90
    while True:
        assert child.poll() is None and time.monotonic() < deadline, "the mock server did not start"
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except httpx.TransportError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}", child
    child.terminate()
    child.wait(timeout=20)


def tokenizer(folder):
    """A word-level tokenizer of its own: no model is needed to count tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, 2000)}}
    words.update({letter: len(words) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,")})
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<unk>").save_pretrained(folder)
    return folder


def test_load_points_come_back_as_asked(mock_server, tmp_path):
    url, child = mock_server
    flow = Flow.open("ci", {"performance.seconds": 3, "performance.warmup_seconds": 0}, tmp_path)
    folder = tokenizer(tmp_path / "base")
    server = Server(url, "base", None, folder, tmp_path / "log", psutil.Process(child.pid), 1.0)
    flow.workspace.logs.mkdir(parents=True)
    client = run_guidellm(flow, server, tmp_path / "guidellm.json")
    points = read_load_points(tmp_path / "guidellm.json", flow.config)
    assert [point.concurrency for point in points] == list(flow.config.performance.concurrency)
    assert all(point.completed_requests > 0 and point.errored_requests == 0 for point in points)
    assert all(point.ttft_ms.p50 >= 15 for point in points)
    assert client.cpu_seconds[-1] > 0
