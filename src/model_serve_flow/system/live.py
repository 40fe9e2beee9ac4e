"""Reports the progress of a long step from the notebook's process to the runner.

    live.report("base: lm-eval", 0, 618, "requests")    # begins: the rate counts from here
    live.report("base: lm-eval", 312, 618, "requests")  # cheap: most calls write nothing

The process writes a small file, whose path is in the variable `MODEL_SERVE_FLOW_LIVE`. A notebook
that is opened without the runner has no such variable, and nothing is written.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from model_serve_flow.system.variables import value, variable

VARIABLE = variable("live")  # path of the file; set by the runner for the notebook's kernel
WRITE_SECONDS = 0.5  # least time between two writes, except the first and the last


@dataclass(frozen=True)
class Live:
    """The progress of a measurement.

    Times are `time.monotonic()`, which is the same clock for all processes of a machine.
    """

    what: str
    done: int
    total: int  # 0: not known
    unit: str
    first: int  # done before it began, if it continues an earlier measurement
    started: float
    at: float

    def __str__(self) -> str:
        """Writes `base: lm-eval, 312 of 618 requests, about 2 min left`."""
        share = f"{self.done:,} of {self.total:,} {self.unit}".strip() if self.total else ""
        return ", ".join(filter(None, [self.what, share, self._end()]))

    def _end(self) -> str:
        seconds = self.seconds_left()
        if seconds is None:
            return ""
        return f"about {duration(seconds)} left" if seconds > 0 else "soon over"

    def seconds_left(self) -> float | None:
        """Estimates the seconds until the end from the rate so far; None without a rate."""
        if self.done <= self.first or not self.total:
            return None
        pace = (self.at - self.started) / (self.done - self.first)
        return max(self.at + pace * (self.total - self.done) - time.monotonic(), 0.0)

    @property
    def is_over(self) -> bool:
        """Returns whether the measurement is done, so that nothing is shown until the next."""
        return 0 < self.total <= self.done


class _Reporter:
    """The state of `report` in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.last: Live | None = None
        self.written = float("-inf")
        self.failed_path = ""

    def report(self, path: str, what: str | None, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        with self.lock:
            what = what if what is not None else self.last.what if self.last else ""
            last = self.last
            same = last is not None and (what, total, unit) == (last.what, last.total, last.unit)
            begins = not same or last is None or done < last.done
            first, started = (done, now) if begins or last is None else (last.first, last.started)
            self.last = Live(what, done, total, unit, first, started, now)
            if begins or self.last.is_over or now - self.written >= WRITE_SECONDS:
                self.written = now
                self.write(path, self.last)

    def write(self, path: str, live: Live) -> None:
        """Writes the file; a failure is printed once and does not stop the measurement."""
        if path == self.failed_path:
            return
        temporary = _temporary(Path(path))
        try:
            temporary.write_text(json.dumps(asdict(live)), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            self.failed_path = path
            reason = f"{path} cannot be written ({error.strerror})"
            print(f"note: {reason}: the terminal does not show how far this step is")


_reporter = _Reporter()


def report(what: str | None, done: int, total: int, unit: str = "") -> None:
    """Tells the runner how far a measurement is; any thread may call it, even for every request.

    A new measurement begins if `what`, `total` or `unit` changes, or if `done` becomes smaller.

    Args:
        what: name of the measurement, such as "base: lm-eval"; None: the measurement reported last.
        done: how much is done. When all is done, the runner shows it no longer.
        total: how much there is; 0: not known, then only `what` is shown.
        unit: what is counted, such as "requests".
    """
    if path := value("live"):
        _reporter.report(path, what, done, total, unit)


def read(path: Path) -> Live | None:
    """Reads the last report; None if there is none or its measurement is over."""
    try:
        found = Live(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    return None if found.is_over else found


@contextmanager
def fresh(path: Path) -> Iterator[None]:
    """Deletes the file when the block begins and when it ends."""
    _remove(path)
    try:
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _temporary(path).unlink(missing_ok=True)  # left over if a process was killed while writing


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp")


def duration(seconds: float) -> str:
    """Writes a duration as roughly as an estimate is known.

    42 -> '40 s', 125 -> '2 min', 5500 -> '1.5 h'.
    """
    if seconds < 97.5:
        step = 5 if seconds < 57.5 else 10
        return f"{max(step * round(seconds / step), 5)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
