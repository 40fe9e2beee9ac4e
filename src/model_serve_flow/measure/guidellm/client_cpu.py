"""Measures how much CPU the load generator takes from the server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import psutil

from model_serve_flow.system import processes
from model_serve_flow.system.hardware import usable_cores

# A GuideLLM process is one Python event loop: it cannot use more than one core, and close to that
# its clock runs late.
BUSY_SHARE_OF_A_CORE = 0.8
# Where the server computes on the same CPU, the client's share is what the server may have lost of
# its throughput.
TAKEN_SHARE_OF_THE_MACHINE = 0.1


@dataclass
class ClientCpu:
    """CPU seconds of every process of the load generator over time: it runs beside the server.

    Attributes:
        samples: process id -> (seconds since the epoch, CPU seconds used until then), rising, from
            its start or that of the record on.
        sampled: seconds since the epoch of the last sample.
    """

    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    sampled: float = 0.0

    @classmethod
    def begin(cls, members: Iterable[psutil.Process]) -> ClientCpu:
        """A record that starts now, with what the processes have used before."""
        now = time.time()
        return cls(
            {member.pid: [(now, processes.cpu_seconds([member]))] for member in members}, now
        )

    def sample(self, members: Iterable[psutil.Process]) -> None:
        """Adds what each process has used until now;
        one that is new started after the last sample.
        """
        before, self.sampled = self.sampled, time.time()
        for member in members:
            # A process that ends between two samples keeps its last reading.
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                # is known to about a second
                started = min(max(member.create_time(), before), self.sampled)
                samples = self.samples.setdefault(member.pid, [(started, 0.0)])
                samples.append((self.sampled, times.user + times.system))

    def seconds(self, start: float, end: float) -> dict[int, float]:
        """Process id -> CPU seconds between two times (seconds since the epoch)."""
        import numpy as np

        used = {}
        for process, samples in self.samples.items():
            times, cpu_seconds = zip(*samples, strict=True)
            used[process] = float(np.diff(np.interp([start, end], times, cpu_seconds))[0])
        return used

    def share(self, start: float, end: float) -> float:
        """CPU seconds between two times (seconds since the epoch) / (wall seconds x cores of this
        machine).
        """
        return sum(self.seconds(start, end).values()) / (end - start) / usable_cores()

    def limited(self, start: float, end: float, device: Literal["cpu", "gpu"]) -> bool:
        """Whether what was measured between two times says something about the load generator and
        not the server.

        Two measured facts decide:

        - One of its processes used at least 80 % of a core. It sends requests and stamps the times
          of tokens in one event loop, which cannot use more than one core: near that, requests go
          out and tokens are stamped late.
        - Only with device `cpu`: all its processes together used at least 10 % of the machine. The
          server could have used every core, so it may have lost up to this share of its throughput.
          (GuideLLM's ten worker processes by default took 39 % of a two-core machine and 22 % of
          the server's tokens/s; one takes about 4 %.)
        """
        busiest = max(self.seconds(start, end).values(), default=0.0) / (end - start)
        if busiest >= BUSY_SHARE_OF_A_CORE:
            return True
        return device == "cpu" and self.share(start, end) >= TAKEN_SHARE_OF_THE_MACHINE
