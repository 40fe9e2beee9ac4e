"""Kills a server that hangs, so that no client waits for it forever."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import psutil

from model_serve_flow.system import processes

if TYPE_CHECKING:
    from model_serve_flow.serve.server import Server

INTERVAL_SECONDS = 5.0
COUNTERS_SECONDS = 2.0
# From this share of a core on, the engine is computing. It is not asked for a token then, because
# the request would disturb the measurement.
BUSY_SHARE = 0.2
# The same for a server that owes a token. Idle, vLLM's processes take 0.02 of a core. A server that
# computes beside eighty other processes on two cores still gets this share.
WORKING_SHARE = 0.05


@contextlib.contextmanager
def watched(server: Server, seconds: float) -> Iterator[None]:
    """Kills the server, and sets `server.hung`, if it hangs while the block runs.

    A server hangs if it owes a token and makes no progress for `seconds`. Progress is CPU time of
    its processes and their ended children (such as a compiler's processes), or a change of its own
    token counters. A server with a process that a signal stopped makes no progress. A busy machine
    does not matter: an engine that gets a core only now and then still makes progress.

    A server that makes progress is not disturbed. An idle server is asked for one token, which it
    gives in milliseconds. A server that hangs is killed after at most `seconds` + 25 s: three
    looks, five seconds apart and up to two seconds long each.

    The watchdog does not find an engine that computes forever without an answer. The time limits of
    the clients end such a request.

    Args:
        server: the server to watch.
        seconds: how long the server may owe a token without progress.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(server, seconds, stop), name="watchdog", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()  # not joined: the thread may wait for a server that is about to be stopped


@dataclass(frozen=True)
class _Look:
    """What the server had done until a moment.

    Attributes:
        when: `time.monotonic()` of the moment, in seconds.
        cpu_seconds: CPU time of its processes and their ended children.
        counters: its own token counters, as text; None if it did not answer in time.
        stopped: whether a signal holds one of its processes.
    """

    when: float
    cpu_seconds: float
    counters: tuple[str, ...] | None
    stopped: bool

    def computed_since(self, before: _Look, share: float) -> bool:
        """Checks whether the server made progress since `before`.

        Progress is a change of its counters, or at least `share` of a core.
        """
        if self.stopped:
            return False
        if None not in (self.counters, before.counters) and self.counters != before.counters:
            return True
        return self.cpu_seconds - before.cpu_seconds >= share * (self.when - before.when)


def _watch(server: Server, seconds: float, stop: threading.Event) -> None:
    with server.client(timeout=COUNTERS_SECONDS) as client:
        now, question, quiet = _look(server, client), None, 0.0
        while not stop.wait(INTERVAL_SECONDS):
            before, now = now, _look(server, client)
            owing = question is not None and question.is_alive()
            # If our own process was stopped, the elapsed time says nothing about the server.
            quiet += min(now.when - before.when, INTERVAL_SECONDS + COUNTERS_SECONDS)
            if now.computed_since(before, WORKING_SHARE if owing else BUSY_SHARE):
                quiet = 0.0
            elif not owing:
                question, quiet = _ask(server), 0.0
            elif quiet >= seconds:
                if not stop.is_set():
                    _kill(server)
                return


def _look(server: Server, client: httpx.Client) -> _Look:
    counters, wanted = None, server.engine.counters
    if wanted is not None:
        with contextlib.suppress(httpx.HTTPError):  # the server hangs or is ending
            counters = tuple(wanted.findall(client.get("/metrics").text))
    members = processes.family(server.process.pid)
    used = processes.cpu_seconds(members, ended_children=True)
    return _Look(time.monotonic(), used, counters, any(map(processes.is_stopped, members)))


def _ask(server: Server) -> threading.Thread:
    """Asks for one token in a thread, which ends with the answer or with the server."""
    thread = threading.Thread(
        target=_wait_for_a_token, args=(server,), name="watchdog's question", daemon=True
    )
    thread.start()
    return thread


def _wait_for_a_token(server: Server) -> None:
    body = {"model": server.model_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    # Refused or cut off: the server is ending, and others report that.
    with contextlib.suppress(httpx.TransportError), server.client(timeout=None) as client:
        client.post("/v1/completions", json=body)


def _kill(server: Server) -> None:
    """Kills all processes of the server; a stopped process would not react to a request to end."""
    server.hung.set()
    processes.each(reversed(processes.family(server.process.pid)), psutil.Process.kill)
