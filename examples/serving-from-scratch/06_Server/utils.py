"""Provides what the notebook of 06_Server uses: a server to watch, overload and break."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import pandas as pd
import psutil

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.serve.local_server import LocalServer
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json

__all__ = [
    "Flow",
    "Server",
    "after_leaving",
    "kill_worker",
    "overload",
    "prepare_base",
    "process_table",
    "raw_events",
    "recovery_chart",
    "streams_chart",
    "watch",
    "write_json",
]

COMMAND = (sys.executable, "-m", "serving_from_scratch.cli", "serve")


class Server(LocalServer):
    """Runs our server in its own processes, on a free port.

    Args:
        base: the checkpoint.
        options: of `serving-from-scratch serve`; `places=4` means `--places 4`.
    """

    def __init__(self, base: Path, **options: Any) -> None:
        named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        super().__init__([*COMMAND, str(base), "--port=0", "--name=base", *named])

    @property
    def worker(self) -> psutil.Process:
        return self.process.children()[0]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Sends a request and returns the JSON of the answer."""
        return self.client.post(path, json=body).json()

    def metric(self, name: str) -> float:
        """Reads one number of /metrics."""
        lines = self.client.get("/metrics").text.splitlines()
        start = f"serving_from_scratch_{name} "
        return float(next(line for line in lines if line.startswith(start)).split()[1])


def process_table(server: Server) -> pd.DataFrame:
    """Shows the memory of both processes, and whether torch is loaded in them."""
    rows = {
        name: {
            "memory, MB": round(process.memory_info().rss / 1e6),
            "torch loaded": any("torch" in map.path for map in process.memory_maps()),
        }
        for name, process in (("API", server.process), ("worker", server.worker))
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def raw_events(server: Server, prompt: str, tokens: int) -> str:
    """Returns a stream as `curl -N` shows it."""
    body = {"prompt": prompt, "max_tokens": tokens}
    return server.client.post("/generate_stream", json=body).text.strip()


@dataclass
class Watched:
    """A stream as its reader saw it.

    Attributes:
        text: all pieces together.
        times: of each event, in seconds.
        error: message of the last event, if it was an error.
        done: whether the stream ended in [DONE].
    """

    text: str = ""
    times: list[float] = field(default_factory=list)
    error: str = ""
    done: bool = False


def watch(server: Server, prompt: str, tokens: int) -> Watched:
    """Reads a stream to its end."""
    seen = Watched()
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    with server.client.stream("POST", "/generate_stream", json=body) as reply:
        for line in reply.iter_lines():
            if line == "data: [DONE]":
                seen.done = True
            elif line:
                piece = json.loads(line.removeprefix("data: "))
                seen.times.append(time.monotonic())
                seen.text += piece.get("text", "")
                seen.error = piece.get("error", {}).get("message", "")
    return seen


def streams_chart(streams: list[Watched], started: float) -> None:
    """Draws when each reader received its tokens, one line per stream."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 0.4 * len(streams) + 1))
        for line, (seen, colour) in enumerate(zip(streams, PALETTE * 9, strict=False)):
            times = [moment - started for moment in seen.times]
            axis.plot(times, [line] * len(times), "|", color=colour, markersize=14)
        axis.set(xlabel="Seconds", yticks=[], xlim=0, ylim=(len(streams) - 0.5, -0.5))
        axis.grid(False, axis="y")
        figure.tight_layout()
        plt.show()


def after_leaving(server: Server, prompt: str) -> pd.DataFrame:
    """Shows the cache's free tokens before, while and after a client reads a stream."""
    rows = {"before": server.metric("cache_free_tokens")}
    body = {"prompt": prompt, "max_tokens": 500, "ignore_eos": True}
    with server.client.stream("POST", "/generate_stream", json=body) as reply:
        lines = reply.iter_lines()  # kept, because httpx closes the stream without it
        next(lines)
        rows["while it reads"] = server.metric("cache_free_tokens")
    left = time.monotonic()
    while server.metric("requests_running"):
        time.sleep(0.01)
    rows[f"{time.monotonic() - left:.2f} s after it left"] = server.metric("cache_free_tokens")
    return pd.DataFrame({"free tokens of the cache": rows}).astype(int)


def overload(server: Server, prompt: str, count: int) -> pd.DataFrame:
    """Sends many requests at once; counts the answers by status, with their seconds."""

    def ask(_: int) -> tuple[int, float]:
        started = time.monotonic()
        reply = server.client.post("/generate", json={"prompt": prompt, "max_tokens": 8})
        return reply.status_code, time.monotonic() - started

    with ThreadPoolExecutor(count) as pool:
        seen = pd.DataFrame(pool.map(ask, range(count)), columns=["status", "seconds"])
    grouped = seen.groupby("status")["seconds"]
    table = grouped.agg(requests="count", median_s="median", longest_s="max")
    return table.round(2)


@dataclass
class Recovery:
    """The events around the kill of a worker; times in seconds of the monotonic clock."""

    stream: Watched
    whole_text: str
    whole_ended: float
    health: list[tuple[float, int]]
    killed: float


@contextlib.contextmanager
def watched_health(server: Server, health: list[tuple[float, int]]) -> Iterator[None]:
    """Asks for /health ten times a second during the block."""
    ended = threading.Event()

    def look() -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            while not ended.wait(0.1):
                health.append((time.monotonic(), client.get("/health").status_code))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def kill_worker(server: Server, prompt: str, tokens: int) -> Recovery:
    """Kills the worker during a stream and a whole request, and records what happens."""
    health: list[tuple[float, int]] = []
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    with watched_health(server, health), ThreadPoolExecutor() as pool:
        stream = pool.submit(watch, server, prompt, tokens)
        whole = pool.submit(server.post, "/basic_generate", **body)
        while server.metric("requests_running") < 2:
            time.sleep(0.05)
        time.sleep(1)
        killed = time.monotonic()
        server.worker.kill()
        text = whole.result()["text"]
        ended = time.monotonic()
        time.sleep(0.5)
        return Recovery(stream.result(), text, ended, health, killed)


def recovery_chart(seen: Recovery) -> None:
    """Draws the stream, the whole request and the health around the kill."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.4))
        tokens = [moment - seen.killed for moment in seen.stream.times]
        axis.plot(tokens[:-1], [0] * (len(tokens) - 1), "|", color=PALETTE[0], markersize=14)
        axis.plot(tokens[-1:], [0], "x", color=PALETTE[3], markersize=10)
        begun, ended = seen.health[0][0] - seen.killed, seen.whole_ended - seen.killed
        axis.barh(1, ended - begun, left=begun, height=0.5, color=PALETTE[1])
        for moment, status in seen.health:
            colour = PALETTE[2] if status == 200 else PALETTE[3]
            axis.plot(moment - seen.killed, 2, "s", color=colour, markersize=5)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks([0, 1, 2], ["stream", "whole request", "/health"])
        axis.set(xlabel="Seconds after the worker was killed", ylim=(2.6, -0.6))
        axis.grid(False, axis="y")
        figure.tight_layout()
        plt.show()
