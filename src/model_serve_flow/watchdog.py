"""Ends a server that hangs without dying, so that no client waits for it for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import psutil

from model_serve_flow import processes

if TYPE_CHECKING:
    from model_serve_flow.serving import Server

INTERVAL_SECONDS = 5.0
# Share of a core above which the engine computes and needs no question: one would take time of what is measured.
BUSY_SHARE_OF_A_CORE = 0.2


@contextlib.contextmanager
def watched(server: Server, seconds: float) -> Iterator[None]:
    """While the block runs, kills the server (and sets `server.hung`) if it is idle and leaves one token unanswered.

    A server whose processes computed in the last five seconds is left alone. Of one that did not, one token is asked
    for; an idle engine gives it in milliseconds, and one that got work in that moment computes while the token waits.
    An engine that computes for ever without an answer is not found here: its clients' own limits end that.

    Args:
        seconds: how long the token may take.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(server, seconds, stop), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()  # not joined: it may wait for an answer of a server that is about to be ended


def _watch(server: Server, seconds: float, stop: threading.Event) -> None:
    used = _cpu_seconds(server)
    while not stop.wait(INTERVAL_SECONDS):
        before, used = used, _cpu_seconds(server)
        if used - before >= BUSY_SHARE_OF_A_CORE * INTERVAL_SECONDS or _answers(server, seconds):
            continue
        before, used = used, _cpu_seconds(server)
        if used - before >= BUSY_SHARE_OF_A_CORE * seconds:
            continue  # it computes again: the token waits behind requests that came at the same moment
        if not stop.is_set():
            _kill(server)
        return


def _cpu_seconds(server: Server) -> float:
    return processes.cpu_seconds(processes.family(server.process.pid))


def _answers(server: Server, seconds: float) -> bool:
    """Whether one token came in time, or the server is gone anyway, which is not for the watchdog to say."""
    body = {"model": server.model_name, "prompt": "1", "max_tokens": 1, "temperature": 0}
    try:
        with server.client(timeout=seconds) as client:
            client.post("/v1/completions", json=body)
    except httpx.TimeoutException:
        return False
    except httpx.TransportError:  # refused or cut off: it is ending
        return True
    return True


def _kill(server: Server) -> None:
    """Kills the whole family; a process that is stopped cannot be asked to end."""
    server.hung.set()
    processes.each(reversed(processes.family(server.process.pid)), psutil.Process.kill)
