"""Measures how busy other programs keep the machine, and says what that does to the figures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.system import processes
from model_serve_flow.system.gpu_throttling import gpu_throttled_seconds
from model_serve_flow.system.hardware import usable_cores
from model_serve_flow.system.throttling import throttled_seconds

SAMPLE_SECONDS = 2.0
# Below these shares of the CPU, other programs do not show in the figures.
BUSY_SHARE, STEAL_SHARE = 0.1, 0.02
THROTTLED_SHARE = 0.02
STATISTICS = Path("/proc/stat")
# The first columns of a line of /proc/stat, see proc_stat(5). The last two columns, guest times,
# are already part of user and nice.
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True)
class _Moment:
    """CPU seconds until a moment.

    Attributes:
        when: `time.monotonic()` of the moment, in seconds.
        total, used, stolen: of the cores that this process may run on, since the machine started.
        own: of our processes.
        throttled: core seconds in which the cores were held back; None: not known.
        gpu_throttled: seconds in which a GPU was held back; None: not known.
    """

    when: float
    total: float
    used: float
    stolen: float
    own: float
    throttled: float | None = None
    gpu_throttled: float | None = None


class MachineWatch:
    """Measures the CPU time of the machine and of our own processes between two moments.

    Our own processes are this process, its descendants, and all processes of the same run. Children
    that ended count too.
    """

    def __init__(self) -> None:
        self._start, self._end = _look(), None

    def stop(self) -> None:
        """Ends the period that `result` describes."""
        self._end = _look()

    def result(self) -> Busy:
        """Returns what other programs took from the start until `stop`, or until now."""
        return _between(self._start, self._end or _look())


@contextmanager
def watch_machine() -> Iterator[MachineWatch]:
    """Measures what other programs take while the block runs.

    Usage: `with watch_machine() as watch: ...`, then `watch.result()`.
    """
    watch = MachineWatch()
    try:
        yield watch
    finally:
        watch.stop()


def sample_machine(seconds: float = SAMPLE_SECONDS) -> Busy:
    """Measures for `seconds` how busy the machine is."""
    with watch_machine() as watch:
        time.sleep(seconds)
    return watch.result()


def is_busy(busy: Busy) -> bool:
    """Checks whether other programs or the hypervisor took enough CPU to affect the figures."""
    if busy.others_share is None or busy.steal_share is None:
        return busy.load_average > busy.cores
    return busy.others_share >= BUSY_SHARE or busy.steal_share >= STEAL_SHARE


def disturbed(busy: Busy | None) -> bool:
    """Checks whether to repeat a measurement: others took the CPU, or CPU or GPU was held back."""
    return busy is not None and (is_busy(busy) or (busy.throttled_share or 0.0) >= THROTTLED_SHARE)


def less_disturbed(one: Busy, other: Busy) -> bool:
    """Checks whether `one` was disturbed less than `other`."""
    lost = [(busy.taken or 0.0) + (busy.throttled_share or 0.0) for busy in (one, other)]
    return lost[0] < lost[1]


def disturbance(disturbed: Sequence[Busy]) -> str:
    """Describes the worst disturbance: the most CPU others took and the longest throttling."""
    taken = max((busy.taken or 0.0) for busy in disturbed)
    held = max((busy.throttled_share or 0.0) for busy in disturbed)
    return (
        f"other programs took up to {taken:.0%} of the CPU, and heat or a quota held CPU or GPU "
        f"back for {held:.0%} of the time"
    )


def in_words(busy: Busy) -> str:
    """Describes in two sentences who uses the CPU and what that does to the figures."""
    if busy.others_share is None or busy.steal_share is None:
        used = "the system does not say what other programs use"
    else:
        used = (
            f"other programs used {busy.others_share:.0%} of the CPU and the hypervisor took "
            f"{busy.steal_share:.0%}"
        )
    load = (
        f"Load average {busy.load_average:.1f} on {busy.cores} cores; over {busy.seconds:.0f} s "
        f"{used}."
    )
    return f"{load} {_effect(busy)}"


def _effect(busy: Busy) -> str:
    if not is_busy(busy):
        return "The machine is quiet enough for the figures to be its own."
    return (
        "A model that is served on this CPU gives fewer output tokens/s and longer latencies than "
        "on an idle machine (about half the speed where every core is taken), and repeats differ "
        "more; accuracy stays the same."
    )


def _look() -> _Moment:
    total, used, stolen = _machine(STATISTICS.read_text(encoding="utf-8"), os.sched_getaffinity(0))
    own = processes.cpu_seconds(processes.own(), ended_children=True)
    held = throttled_seconds(os.sched_getaffinity(0)), gpu_throttled_seconds()
    return _Moment(time.monotonic(), total, used, stolen, own, *held)


def _machine(statistics: str, cores: set[int]) -> tuple[float, float, float]:
    """Reads (all, used, stolen) CPU seconds of some cores from the text of /proc/stat.

    If /proc/stat numbers the cores differently, the figures are of all cores. Some containers show
    a file of zeros.
    """
    lines = {
        name: values
        for name, *values in map(str.split, statistics.splitlines())
        if name.startswith("cpu")
    }
    wanted = [f"cpu{core}" for core in cores]
    chosen = wanted if set(wanted) <= lines.keys() else ["cpu"]
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = [
        sum(int(lines[name][place]) for name in chosen) / ticks for place in range(len(_COLUMNS))
    ]
    times = dict(zip(_COLUMNS, seconds, strict=True))
    total = sum(seconds)
    return total, total - times["idle"] - times["iowait"] - times["steal"], times["steal"]


def _between(start: _Moment, end: _Moment) -> Busy:
    total, own = end.total - start.total, max(end.own - start.own, 0.0)
    told = total > 0
    others = max(end.used - start.used - own, 0.0)
    return Busy(
        load_average=os.getloadavg()[0],
        cores=usable_cores(),
        others_share=min(others / total, 1.0) if told else None,
        steal_share=min(max(end.stolen - start.stolen, 0.0) / total, 1.0) if told else None,
        throttled_share=_throttled(start, end),
        seconds=end.when - start.when,
    )


def _throttled(start: _Moment, end: _Moment) -> float | None:
    """Returns the share of the time that was held back: of the cores or of a GPU, the larger."""
    seconds = end.when - start.when
    pairs = (
        (start.throttled, end.throttled, seconds * usable_cores()),
        (start.gpu_throttled, end.gpu_throttled, seconds),
    )
    shares = [
        min(max(after - before, 0.0) / whole, 1.0)
        for before, after, whole in pairs
        if before is not None and after is not None and whole > 0
    ]
    return max(shares, default=None)
