"""The real GuideLLM against its own mock server: our command line is one it takes,
our reader one that fits.

It runs in the driver, as in the notebooks: with the requests and the results of GuideLLM's own
program.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure import blocks
from model_serve_flow.measure.capacity import measure_capacity
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.driver import with_values
from model_serve_flow.measure.guidellm.generator import GENERATOR_VARIABLE, load_generator
from model_serve_flow.measure.load_points import measure_load, read_load_points
from model_serve_flow.measure.performance import measure_performance
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.server import Server
from model_serve_flow.system import processes
from model_serve_flow.system.hardware import free_port

# As many requests at once as asked for, each with 20 ms to the first token and 5 ms to each further
# one.
TTFT_MS, ITL_MS = 20, 5
SLOW_TTFT_MS = 2000
KEY = "a-key-that-nobody-may-see"


@contextlib.contextmanager
def mock(ttft_ms):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "guidellm",
        "mock-server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    child = subprocess.Popen(
        [*command, "--model", "base", "--ttft-ms", str(ttft_ms), "--itl-ms", str(ITL_MS)]
    )
    deadline = time.monotonic() + 300
    try:
        while True:
            assert child.poll() is None and time.monotonic() < deadline, (
                "the mock server did not start"
            )
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except httpx.TransportError:
                time.sleep(0.5)
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
    """One whose answers take longer than the shortest loads of these tests."""
    with mock(SLOW_TTFT_MS) as found:
        yield found


def tokenizer(folder):
    """A word-level tokenizer of its own: no model is needed to count tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{i}": i for i in range(1, 2000)}}
    words.update(
        {letter: len(words) + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz .,")}
    )
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """One for all tests: a failed job must leave it fit for the next."""
    with load_generator(Flow.open("ci", {}, tmp_path_factory.mktemp("generator"))) as generator:
        yield generator


@pytest.fixture
def measured(mock_server, tmp_path):
    """A flow with these settings of `performance`, and a mock server as its model server."""

    def of(server=mock_server, **performance):
        url, child = server
        settings = {
            f"performance.{key}": value
            for key, value in {"warmup_seconds": 0.5, **performance}.items()
        }
        flow = Flow.open("ci", settings, tmp_path)
        folder = tokenizer(tmp_path / "base")
        (tmp_path / "vllm.log").touch()
        process = psutil.Process(child.pid)
        return flow, Server(
            url, "base", KEY, folder, tmp_path / "vllm.log", process, 1.0, child.poll, engine=VLLM
        )

    return of


def load(flow, server, path):
    return load_command(flow.config, server.url, server.model_name, str(server.folder), str(path))


def search(flow, server, generator):
    path = flow.workspace.raw(server.model_name) / "goodput.json"
    return measure_capacity(flow.config, server, generator, path)


def served(flow, server):
    """The same server as a measurement knows it: with a checkpoint and with vLLM's log."""
    base = flow.workspace.model("base")
    if not base.is_dir():
        tokenizer(base)
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_bytes(b"weights")
    server.log.write_text(
        "Initializing a V1 LLM engine (v0.32.0) with config: dtype=torch.bfloat16"
    )
    return dataclasses.replace(server, folder=base)


def loads_run(flow):
    """What GuideLLM was asked for since the last call: its file -> concurrency of each load."""
    found = {}
    for path in sorted(flow.workspace.raw("base").glob("guidellm-*.json")):
        found[path.stem] = [
            one["config"]["strategy"]["streams"]
            for one in json.loads(path.read_text())["benchmarks"]
        ]
        path.unlink()
    return found


LOAD = {"concurrency": [1, 2], "repeats": 2, "seconds": 1, "min_requests": 2, "slo": None}


def test_load_points_come_back_as_asked_in_turns(measured, generator):
    flow, server = measured(**LOAD)
    points = measure_performance(flow, served(flow, server), generator).points
    assert [(point.concurrency, point.repeat) for point in points] == [
        (1, 1),
        (2, 1),
        (1, 2),
        (2, 2),
    ]
    assert loads_run(flow) == {"guidellm-1": [1, 2], "guidellm-2": [1, 2]}
    assert all(point.completed_requests >= 2 and point.errored_requests == 0 for point in points)
    assert all(point.ttft_ms.p50 >= 15 for point in points)
    assert all(0 < point.client_cpu_share < 1 for point in points)


def test_what_is_measured_is_kept_load_by_load(measured, generator, capsys):
    flow, server = measured(**LOAD)
    first = measure_performance(flow, served(flow, server), generator)
    loads_run(flow)
    assert (
        measure_performance(flow, served(flow, server), generator) == first
        and loads_run(flow) == {}
    )
    assert "kept: results/base/performance.json" in capsys.readouterr().out
    flow, server = measured(**LOAD | {"concurrency": [1, 2, 3]})
    more = measure_performance(flow, served(flow, server), generator)
    assert loads_run(flow) == {"guidellm-1": [3], "guidellm-2": [3]}
    assert more.measured_loads().keys() == {1, 2, 3} and set(first.points) <= set(more.points)
    flow, server = measured(**LOAD | {"output_tokens": 12})
    assert measure_performance(flow, served(flow, server), generator).points != first.points
    assert loads_run(flow) == {"guidellm-1": [1, 2], "guidellm-2": [1, 2]}


def test_blocks_of_real_loads_are_kept_and_their_searches_give_an_interval(
    measured, generator, monkeypatch
):
    slo = {
        "ttft_ms": 5000,
        "itl_ms": 1000,
        "attainment": 0.5,
        "seconds": 1,
        "initial_streams": 1,
        "max_streams": 1,
    }
    flow, server = measured(**LOAD | {"concurrency": [1], "blocks": 2, "slo": slo})
    base, started = served(flow, server), []

    @contextlib.contextmanager
    def serve(flow, name, purpose):
        started.append(name)
        yield base

    monkeypatch.setattr(blocks, "serve", serve)
    result = blocks.measure_in_blocks(flow, [], generator, lambda server: None)["base"]
    assert [(point.repeat, point.block) for point in result.points] == [
        (1, 1),
        (2, 2),
    ] and started == ["base", "base"]
    assert sorted(result.searches) == [1, 2] and result.capacity.searches == 2
    assert result.capacity.ci95 == (1, None) and result.unmeasured() == []
    assert flow.workspace.performance_in_blocks() == result
    assert blocks.measure_in_blocks(flow, [], generator, lambda server: None)["base"] == result
    assert started == ["base"] * 3


def test_a_slow_load_lasts_until_it_has_its_requests(measured, generator, slow_mock_server):
    flow, server = measured(
        slow_mock_server, **LOAD | {"concurrency": [1], "repeats": 1, "min_requests": 3}
    )
    (point,) = measure_performance(flow, served(flow, server), generator).points
    assert point.valid and point.completed_requests == 3
    assert point.seconds > 2 * SLOW_TTFT_MS / 1000, (
        "one second is asked for at least, and three answers take longer"
    )


def test_a_load_that_no_request_completes_is_tried_twice_and_again_by_the_next_run(
    measured, generator, slow_mock_server, capsys
):
    slo = {
        "ttft_ms": 200,
        "itl_ms": 50,
        "attainment": 0.5,
        "seconds": 0.5,
        "initial_streams": 1,
        "max_streams": 1,
    }
    short = LOAD | {"concurrency": [1], "repeats": 1, "seconds": 0.5, "max_seconds": 1, "slo": slo}
    flow, server = measured(slow_mock_server, **short)
    result = measure_performance(flow, served(flow, server), generator)
    assert loads_run(flow) == {"guidellm-1": [1], "guidellm-once-more": [1]}
    missing = [
        "load point 1: 0 requests completed, performance.min_requests is 2",
        "capacity: no request was answered",
    ]
    assert [
        found.startswith(start) for found, start in zip(result.unmeasured(), missing, strict=True)
    ] == [True, True]
    assert (
        "base: load point 1, repeat 1, is not measured: 0 requests completed"
        in capsys.readouterr().out
    )
    flow, server = measured(**short)
    repaired = measure_performance(flow, served(flow, server), generator)
    assert loads_run(flow) == {"guidellm-1": [1]}
    assert repaired.unmeasured() == [] and repaired.capacity.streams == 1


def test_a_load_whose_requests_fail_ends_in_time_and_is_not_measured(measured, generator, tmp_path):
    flow, server = measured(**LOAD | {"concurrency": [1], "repeats": 1})
    path = tmp_path / "failing.json"
    # not there: 404
    command = with_values(load(flow, server, path), "--backend", request_format="/pooling")
    (point,) = read_load_points(path, flow.config, generator.run(server, command, path), [(1, 1)])
    assert point.errored_requests > 0 and "requests failed" in point.problem and point.seconds < 5


def test_a_search_that_every_load_passes_ends_at_the_highest(measured, generator):
    slo = {
        "ttft_ms": 5000,
        "itl_ms": 1000,
        "attainment": 0.5,
        "seconds": 2,
        "initial_streams": 1,
        "max_streams": 2,
    }
    flow, server = measured(slo=slo)
    capacity = search(flow, server, generator)
    assert [(probe.streams, probe.passed) for probe in capacity.probes] == [(1, True), (2, True)]
    assert (capacity.streams, capacity.failed) == (2, None)
    assert capacity.stopped == "max_streams_reached" and capacity.output_tokens_per_s > 0


def test_objectives_that_no_load_keeps_are_a_result(measured, generator):
    slo = {
        "ttft_ms": 1,
        "itl_ms": 0.1,
        "attainment": 0.5,
        "seconds": 2,
        "initial_streams": 2,
        "max_streams": 4,
    }
    flow, server = measured(slo=slo)
    capacity = search(flow, server, generator)
    assert [(probe.streams, probe.passed) for probe in capacity.probes] == [(2, False), (1, False)]
    assert (capacity.streams, capacity.failed) == (0, 1)
    assert capacity.stopped == "objectives_unmet_at_minimum" and capacity.output_tokens_per_s == 0


def test_a_load_too_short_for_any_request_says_what_to_change(
    measured, generator, slow_mock_server
):
    slo = {"ttft_ms": 5000, "itl_ms": 1000, "seconds": 0.2, "initial_streams": 1, "max_streams": 1}
    flow, server = measured(slow_mock_server, slo=slo)
    capacity = search(flow, server, generator)
    assert not capacity.measured and "raise performance.slo.seconds" in capacity.stopped


def test_without_objectives_there_is_no_search(measured, generator):
    flow, server = measured(slo=None)
    assert search(flow, server, generator) is None


def test_an_endpoint_without_an_engine_of_ours_is_measured(measured, generator, tmp_path):
    """No checkpoint, no log, no process: an address and a tokenizer are enough."""
    load = {"concurrency": [1, 3], "seconds": 1, "min_requests": 1, "repeats": 1, "blocks": 1}
    flow, server = measured(**load)
    endpoint = Endpoint(server.url, "base", KEY, server.folder)
    points = measure_load(flow.config, endpoint, generator, tmp_path / "load.json")
    assert [(point.concurrency, point.repeat, point.problem) for point in points] == [
        (1, 1, ""),
        (3, 1, ""),
    ]
    assert all(point.busy is not None for point in points)


def requests(path):
    """The requests of each load in GuideLLM's file, as they were sent and in that order."""
    loads = json.loads(path.read_text())["benchmarks"]
    sent = [
        sorted(load["requests"]["successful"], key=lambda one: one["request_start_time"])
        for load in loads
    ]
    return [[one["request_args"] for one in load] for load in sent]


def test_a_second_job_in_the_same_process_asks_what_the_first_one_asked(
    measured, generator, tmp_path
):
    flow, server = measured(concurrency=[1, 2], repeats=1, seconds=2)
    outputs = [tmp_path / name / "points.json" for name in ("one", "other")]
    for output in outputs:
        where = (server.url, server.model_name, str(server.folder), str(output))
        generator.run(server, load_command(flow.config, *where), output)
    for one, other in zip(*map(requests, outputs), strict=True):
        fewer, more = sorted((one, other), key=len)
        assert len(fewer) > 5 and one[0] == other[0]
        assert len(set(fewer) - set(more)) <= 2  # those in flight at the end


@contextlib.contextmanager
def recorded(url):
    """A port in front of the server at `url`, and all bytes that clients sent to it."""
    target, sent = ("127.0.0.1", int(url.rsplit(":", 1)[1])), []

    def join(client):
        # a client that is cut off at the end of a load resets its connection
        with (
            contextlib.suppress(ConnectionError),
            client,
            socket.create_connection(target) as server,
        ):
            other = {client: server, server: client}
            while True:
                for source in select.select(list(other), [], [])[0]:
                    if not (data := source.recv(65536)):
                        return
                    if source is client:
                        sent.append(data)
                    other[source].sendall(data)

    def accept(listener):
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                threading.Thread(target=join, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def command_lines():
    """Those of all processes of this machine while the block runs."""
    seen, stop = set(), threading.Event()

    def look():
        while not stop.wait(0.2):
            seen.update(
                " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
            )

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_every_request_carries_the_key_and_nothing_else_does(
    measured, generator, mock_server, tmp_path
):
    url, child = mock_server
    with recorded(url) as (address, sent), command_lines() as seen:
        flow, server = measured((address, child), concurrency=[1], repeats=1, seconds=1)
        generator.run(server, load(flow, server, tmp_path / "keyed.json"), tmp_path / "keyed.json")
        asked = b"".join(sent)
    assert asked.count(b"POST /v1/completions") > 3
    assert asked.lower().count(f"authorization: bearer {KEY}".encode()) >= asked.count(
        b"POST /v1/completions"
    )
    assert any("guidellm.driver" in line for line in seen) and not any(KEY in line for line in seen)
    assert holders_of_the_key(tmp_path, generator) == []


def test_what_guidellm_refuses_is_shown_without_the_key(measured, generator, tmp_path):
    """The message of an error repeats the input: here a tokenizer of that name."""
    flow, server = measured()
    command = with_values(
        load(flow, server, tmp_path / "refused.json"), "--tokenizer", model=f"/no/such/{KEY}"
    )
    with pytest.raises(FlowError, match=r"/no/such/\*+") as refused:
        generator.run(server, command, tmp_path / "refused.json")
    assert KEY not in str(refused.value)
    assert holders_of_the_key(tmp_path, generator) == []


def holders_of_the_key(folder, generator):
    files = [
        path for root in (folder, generator._logs) for path in root.rglob("*") if path.is_file()
    ]
    assert len(files) > 3
    return [path for path in files if KEY.encode() in path.read_bytes()]


def running(mark):
    return processes.marked(GENERATOR_VARIABLE, mark.__eq__)


def await_workers(mark):
    """Until the processes of a load run: driver, fork server, manager,
    worker and those that give them their data.
    """
    deadline = time.monotonic() + 120
    while len(running(mark)) < 6:
        assert time.monotonic() < deadline, "no load runs"
        time.sleep(0.2)


def test_a_driver_that_is_killed_in_a_load_is_an_error_and_leaves_nothing(measured, tmp_path):
    flow, server = measured(concurrency=[1], repeats=1, seconds=60)
    path = tmp_path / "raw" / "killed.json"
    with load_generator(flow) as generator:

        def kill():
            await_workers(generator._driver.mark)
            os.kill(generator._driver.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(FlowError, match=r"exit code -9"):
            generator.run(server, load(flow, server, path), path)
        thread.join()
        assert running(generator._driver.mark) == [] and list(path.parent.iterdir()) == []


PARENT = """
import json, sys
from pathlib import Path
import psutil
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.measure.guidellm.generator import load_generator
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.serve.server import Server

url, key, folder, root = sys.argv[1:]
load = {"concurrency": [1], "repeats": 1, "seconds": 60}
flow = Flow.open("ci", {f"performance.{key}": value for key, value in load.items()}, root)
server = Server(url, "base", key, Path(folder), Path(folder), psutil.Process(), 1.0, engine=None)
with load_generator(flow) as generator:
    print(generator._driver.mark, flush=True)
    path = Path(root) / "killed.json"
    generator.run(server, load_command(flow.config, url, "base", folder, str(path)), path)
"""


def test_a_notebook_that_is_killed_leaves_no_load_generator(measured, tmp_path):
    _, server = measured()
    arguments = [server.url, "another-key", str(server.folder), str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True
    ) as parent:
        mark = parent.stdout.readline().strip()
        await_workers(mark)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 15
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running(mark) == []
