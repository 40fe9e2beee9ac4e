"""What Ctrl-C and SIGTERM do to a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """A second Ctrl-C must not cut off what the first one began."""
    with _handling(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt as Ctrl-C does, so that no child outlives a run that is
    ended so; and Ctrl-C does in a run that a shell started in the background, which ignores it
    otherwise.
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
