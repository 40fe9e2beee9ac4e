"""Measures the base's output tokens/s beside endless loops, with two OpenMP wait policies.

`active` threads spin while they wait; `passive` threads sleep. After `model-serve-flow run --only
00`:

    .environments/serve/bin/python benchmarks/busy.py

prints one line per setting, in about five minutes. Run it on an idle machine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.launch import serve
from model_serve_flow.serve.server import Server

LOOPS = (0, 1, 3)
REQUESTS = (1, 8)
TOKENS = 64
LONGEST_SECONDS = 600  # of a request or a loop


@contextlib.contextmanager
def endless_loops(number: int, *, seconds: float = LONGEST_SECONDS) -> Iterator[None]:
    """Runs processes that take all the CPU time they get.

    They end after `seconds` even if this program is killed.
    """
    code = f"import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def output_tokens_per_s(server: Server, requests: int) -> float:
    """Measures the output tokens/s of requests that start together; each gives `TOKENS` tokens."""
    body = {
        "model": server.model_name,
        "prompt": "Once upon a time",
        "max_tokens": TOKENS,
        "ignore_eos": True,
    }

    def ask(client: httpx.Client) -> int:
        answer = client.post("/v1/completions", json=body)
        return answer.raise_for_status().json()["usage"]["completion_tokens"]

    with server.client(timeout=LONGEST_SECONDS) as client, ThreadPoolExecutor(requests) as pool:
        started = time.monotonic()
        tokens = sum(pool.map(ask, [client] * requests))
        return tokens / (time.monotonic() - started)


def main() -> None:
    """Measures every setting and prints a line for each."""
    flow = Flow.open(None)
    print("policy   loops  " + "  ".join(f"{count} request(s)" for count in REQUESTS), flush=True)
    for policy in ("active", "passive"):
        os.environ["OMP_WAIT_POLICY"] = policy
        with serve(flow, "base", purpose="performance") as server:
            output_tokens_per_s(server, 1)  # the first one warms up
            for number in LOOPS:
                with endless_loops(number):
                    found = [output_tokens_per_s(server, count) for count in REQUESTS]
                print(
                    f"{policy:8} {number:5}  " + "  ".join(f"{speed:12.1f}" for speed in found),
                    flush=True,
                )


if __name__ == "__main__":
    main()
