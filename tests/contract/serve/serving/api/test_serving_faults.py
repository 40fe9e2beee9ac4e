"""What is promised when a process dies, hangs or is told to end: with real signals."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from support.serving_server import gone

LONG = 900


class Reader(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, server, max_tokens=LONG, **other):
        super().__init__(daemon=True)
        self.server, self.lines, self.ended = server, [], None
        self.question = {"prompt": "def", "max_tokens": max_tokens, "ignore_eos": True, **other}
        self.start()

    def run(self):
        client = self.server.client
        try:
            with client.stream("POST", "/generate_stream", json=self.question) as reply:
                for line in reply.iter_lines():
                    self.lines.append(line)
        except httpx.RemoteProtocolError as error:
            self.lines.append(f"broken: {error}")
        self.ended = time.monotonic()

    @property
    def events(self):
        return [json.loads(line[6:]) for line in self.lines if line and line != "data: [DONE]"]


def reading(server, number=2):
    """Starts streams, and waits until each has sent something."""
    readers = [Reader(server) for _ in range(number)]
    server.wait_until(lambda: all(len(reader.lines) > 4 for reader in readers))
    return readers


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_worker_ends_streams_and_runs_whole_requests_again(start, death):
    with start() as server, ThreadPoolExecutor() as pool:
        expected = server.generate("def", LONG)
        readers = reading(server)
        whole = pool.submit(server.generate, "def", LONG)
        server.wait_until(lambda: server.metric("requests_running") == 3)
        killed = time.monotonic()
        server.worker.send_signal(death)
        assert server.wait_until(lambda: not server.healthy()) < 2
        refused = server.post("/generate", prompt="a")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        for reader in readers:
            reader.join(10)
            assert reader.ended - killed < 2
            assert death.name in reader.events[-1]["error"]["message"]
            assert "data: [DONE]" not in reader.lines
        assert whole.result()[0]["token_ids"] == expected[0]["token_ids"]
        assert server.healthy()
        assert server.metric("worker_deaths_total") == 1
        assert server.metric("cache_free_tokens") == 8 * 1024


def test_a_worker_that_dies_while_nothing_runs_is_replaced(start):
    with start() as server:
        server.worker.kill()
        assert server.wait_until(lambda: not server.healthy()) < 2
        server.wait_until(server.healthy)
        server.generate("a")


def test_a_worker_without_memory_is_replaced(start):
    with start() as server:
        used = server.worker.memory_info().vms
        server.worker.rlimit(psutil.RLIMIT_AS, (used, used))
        assert len(server.generate(["a " * 400] * 20, 8)) == 20
        assert server.metric("worker_deaths_total") == 1


def test_a_step_that_hangs_is_ended(start):
    with start("--step-seconds", "1") as server, ThreadPoolExecutor() as pool:
        [reader] = reading(server, 1)
        whole = pool.submit(server.generate, "def", LONG)
        server.wait_until(lambda: server.metric("requests_running") == 2)
        stopped = time.monotonic()
        server.worker.suspend()
        reader.join(10)
        assert reader.ended - stopped < 3
        assert "within 1 seconds" in reader.events[-1]["error"]["message"]
        assert len(whole.result()[0]["token_ids"]) == LONG


def test_a_request_is_run_again_once_and_three_deaths_are_final(start):
    with start() as server, ThreadPoolExecutor() as pool:
        whole = pool.submit(server.post, "/generate", prompt="a", max_tokens=LONG, ignore_eos=True)
        for _ in range(2):
            server.wait_until(lambda: server.metric("requests_running"))
            server.worker.kill()
            server.wait_until(lambda: not server.healthy())
            server.wait_until(server.healthy)
        assert whole.result().status_code == 503
        server.worker.kill()
        server.wait_until(lambda: not server.healthy())
        time.sleep(1)
        health, refused = server.client.get("/health"), server.post("/generate", prompt="a")
        assert health.status_code == refused.status_code == 503
        assert "stays down, after 3 faults" in health.json()["problem"]
        assert "SIGKILL" in refused.json()["error"]["message"]
        assert server.process.children() == []


def test_the_worker_ends_with_the_api_process(start):
    with start() as server:
        [reader] = reading(server, 1)
        worker = server.worker
        server.process.kill()
        assert server.wait_until(lambda: gone(worker)) < 5  # within one on an idle machine
        reader.join(10)
        assert reader.lines[-1].startswith("broken")


def test_sigterm_lets_running_requests_end_and_takes_no_more(start):
    with start() as server, ThreadPoolExecutor() as pool:
        whole = pool.submit(server.generate, "def", LONG)
        server.wait_until(lambda: server.metric("requests_running") == 1)
        family = [server.process, server.worker]
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as other:
            other.get("/health")
            server.process.terminate()
            server.wait_until(lambda: not server.healthy())
            refused = other.post("/generate", json={"prompt": "a"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert len(whole.result()[0]["token_ids"]) == LONG
        server.wait_until(lambda: all(map(gone, family)))
        assert server.exit_code() == 0
        assert "Traceback" not in server.log.read_text()


def test_what_does_not_end_in_time_is_told_so(start):
    with start("--drain-seconds", "0.2") as server:
        readers = reading(server)
        server.process.terminate()
        for reader in readers:
            reader.join(10)
            assert "The server ends" in reader.events[-1]["error"]["message"]
            assert "data: [DONE]" not in reader.lines
        assert server.exit_code() == 0
