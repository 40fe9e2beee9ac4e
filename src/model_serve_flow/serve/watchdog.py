"""Ends a server that hangs without dying, so that no client waits for it for ever."""

from __future__ import annotations

import contextlib
import re
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
# Share of a core from which on the engine computes and needs no question, which would take time
# of what is measured.
BUSY_SHARE = 0.2
# The same for a server that owes a token. Idle, vLLM's processes take 0.02; one that computes
# beside eighty other processes on two cores still gets this much.
WORKING_SHARE = 0.05
# vLLM's counters of the work it did: tokens read, tokens made, and tokens of all its steps.
_COUNTERS = re.compile(
    r"^vllm:(?:prompt_tokens_total|generation_tokens_total|iteration_tokens_total_sum)\b.*", re.M
)


@contextlib.contextmanager
def watched(server: Server, seconds: float) -> Iterator[None]:
    """While the block runs, kills the server (and sets `server.hung`) if it owes a token and makes
    no progress.

    Progress is CPU time of its processes, of those among their children that ended too (a
    compiler's, say), or a change of its own counters of tokens. A process that a signal stopped
    makes none, whatever the others do. How busy the machine is does not matter: an engine that
    gets a core only now and then makes progress all the same.

    A server that makes progress is left alone. Of one that is idle one token is asked; an idle
    engine gives it in milliseconds. It hangs if it owes that token and made no progress for
    `seconds`. It is ended within `seconds` and 25 s: three looks, each five seconds after the last
    and up to two seconds long.
    An engine that computes for ever without an answer is not found here: its clients' own limits
    end that.

    Args:
        seconds: how long a server may owe a token without any progress.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(server, seconds, stop), name="watchdog", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()  # not joined: it may wait for an answer of a server that is about to be ended


@dataclass(frozen=True)
class _Look:
    """What the server had done until a moment.

    Attributes:
        when: seconds, by the clock that nobody sets.
        cpu_seconds: CPU time of its processes and their ended children.
        counters: its own counters of tokens, as it writes them; none if it did not answer in time.
        stopped: whether a signal holds one of its processes.
    """

    when: float
    cpu_seconds: float
    counters: tuple[str, ...] | None
    stopped: bool

    def computed_since(self, before: _Look, share: float) -> bool:
        """Whether it did something since then: its counters changed,
        or it used this share of a core.
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
            # Where this process was stopped itself, the time that passed says nothing.
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
    counters = None
    with contextlib.suppress(httpx.HTTPError):  # it hangs, is ending, or is another engine
        counters = tuple(_COUNTERS.findall(client.get("/metrics").text))
    members = processes.family(server.process.pid)
    used = processes.cpu_seconds(members, ended_children=True)
    return _Look(time.monotonic(), used, counters, any(map(processes.is_stopped, members)))


def _ask(server: Server) -> threading.Thread:
    """Asks for one token, in a thread that ends with the answer, or with the server."""
    thread = threading.Thread(
        target=_wait_for_a_token, args=(server,), name="watchdog's question", daemon=True
    )
    thread.start()
    return thread


def _wait_for_a_token(server: Server) -> None:
    body = {"model": server.model_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    # Refused or cut off: it is ending, which is not for the watchdog to say.
    with contextlib.suppress(httpx.TransportError), server.client(timeout=None) as client:
        client.post("/v1/completions", json=body)


def _kill(server: Server) -> None:
    """Kills the whole family; a process that is stopped cannot be asked to end."""
    server.hung.set()
    processes.each(reversed(processes.family(server.process.pid)), psutil.Process.kill)
