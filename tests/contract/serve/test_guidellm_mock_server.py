"""The real GuideLLM against its own mock server: our command line is one it takes, our reader one that fits."""

import contextlib
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from model_serve_flow.capacity import measure_capacity
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.guidellm import load_command, run_guidellm
from model_serve_flow.machine import free_port
from model_serve_flow.performance import read_load_points
from model_serve_flow.serving import Server

# As many requests at once as asked for, each with 20 ms to the first token and 5 ms to each further one.
TTFT_MS, ITL_MS = 20, 5


@contextlib.contextmanager
def mock(ttft_ms):
    port = free_port()
    command = [sys.executable, "-m", "guidellm", "mock-server", "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen([*command, "--model", "base", "--ttft-ms", str(ttft_ms), "--itl-ms", str(ITL_MS)])
    deadline = time.monotonic() + 90
    while True:
        assert child.poll() is None and time.monotonic() < deadline, "the mock server did not start"
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except httpx.TransportError:
            time.sleep(0.5)
    try:
        yield f"http://127.0.0.1:{port}", child
    finally:
        child.terminate()
        child.wait(timeout=20)


@pytest.fixture(scope="module")
def mock_server():
    with mock(TTFT_MS) as found:
        yield found


@pytest.fixture(scope="module")
def slow_mock_server():
    """One that no load of these tests waits for."""
    with mock(60_000) as found:
        yield found


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


@pytest.fixture
def measured(mock_server, tmp_path):
    """A flow with these settings of `performance`, and a mock server as its model server."""

    def of(server=mock_server, **performance):
        url, child = server
        settings = {f"performance.{key}": value for key, value in {"warmup_seconds": 0.5, **performance}.items()}
        flow = Flow.open("ci", settings, tmp_path)
        flow.workspace.logs.mkdir(parents=True)
        folder = tokenizer(tmp_path / "base")
        return flow, Server(url, "base", None, folder, tmp_path / "log", psutil.Process(child.pid), 1.0)

    return of


def test_load_points_come_back_as_asked_in_turns(measured, tmp_path):
    flow, server = measured(concurrency=[1, 2], repeats=2, seconds=2)
    path = tmp_path / "guidellm.json"
    command = load_command(flow.config, server.url, server.model_name, str(server.folder), str(path))
    client = run_guidellm(flow, server, command, path)
    points = read_load_points(path, flow.config, client)
    assert [(point.concurrency, point.repeat) for point in points] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert all(point.completed_requests > 0 and point.errored_requests == 0 for point in points)
    assert all(point.ttft_ms.p50 >= 15 for point in points)
    assert all(0 < point.client_cpu_share < 1 for point in points)


def test_a_search_that_every_load_passes_ends_at_the_highest(measured):
    slo = {"ttft_ms": 5000, "itl_ms": 1000, "attainment": 0.5, "seconds": 2, "initial_streams": 1, "max_streams": 2}
    flow, server = measured(slo=slo)
    capacity = measure_capacity(flow, server)
    assert [(probe.streams, probe.passed) for probe in capacity.probes] == [(1, True), (2, True)]
    assert (capacity.low, capacity.streams, capacity.high) == (2, 2, None)
    assert capacity.stopped == "max_streams_reached" and capacity.output_tokens_per_s > 0


def test_objectives_that_no_load_keeps_are_a_result(measured):
    slo = {"ttft_ms": 1, "itl_ms": 0.1, "attainment": 0.5, "seconds": 2, "initial_streams": 2, "max_streams": 4}
    flow, server = measured(slo=slo)
    capacity = measure_capacity(flow, server)
    assert [(probe.streams, probe.passed) for probe in capacity.probes] == [(2, False), (1, False)]
    assert (capacity.low, capacity.streams, capacity.high) == (0, 0, 0)
    assert capacity.stopped == "objectives_unmet_at_minimum" and capacity.output_tokens_per_s == 0


def test_a_load_too_short_for_any_request_says_what_to_change(measured, slow_mock_server):
    slo = {"ttft_ms": 5000, "itl_ms": 1000, "seconds": 0.2, "initial_streams": 1, "max_streams": 1}
    flow, server = measured(slow_mock_server, slo=slo)
    with pytest.raises(FlowError, match=r"No request was answered within 0\.7 s.*performance\.slo\.seconds"):
        measure_capacity(flow, server)


def test_without_objectives_there_is_no_search(measured):
    flow, server = measured(slo=None)
    assert measure_capacity(flow, server) is None
