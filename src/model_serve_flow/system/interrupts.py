"""Changes what Ctrl-C and SIGTERM do to a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Ignores Ctrl-C and SIGTERM, so that a second Ctrl-C does not interrupt the clean-up."""
    with _handling(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, so that a terminated run stops its child processes.

    Ctrl-C raises KeyboardInterrupt too, even in a run that a shell started in the background. Such
    a run would ignore Ctrl-C by default.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextlib.contextmanager
def _handling(handler: Any) -> Iterator[None]:
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
