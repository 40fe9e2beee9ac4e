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

# A GuideLLM process is one Python event loop: it uses at most one core. Near a whole core it sends
# requests and stamps tokens late.
BUSY_SHARE_OF_A_CORE = 0.8
# If the server computes on the same CPU, it may have lost the client's share of its throughput.
TAKEN_SHARE_OF_THE_MACHINE = 0.1


@dataclass
class ClientCpu:
    """Records the CPU seconds of every process of the load generator over time.

    Attributes:
        samples: process id -> (seconds since the epoch, CPU seconds used until then), rising. The
            first sample is taken when the process starts or the record begins.
        sampled: time of the last sample, in seconds since the epoch.
    """

    samples: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    sampled: float = 0.0

    @classmethod
    def begin(cls, members: Iterable[psutil.Process]) -> ClientCpu:
        """Begins a record with the CPU seconds that the processes have used before."""
        now = time.time()
        return cls(
            {member.pid: [(now, processes.cpu_seconds([member]))] for member in members}, now
        )

    def sample(self, members: Iterable[psutil.Process]) -> None:
        """Adds a sample of every process; a new process started after the last sample."""
        before, self.sampled = self.sampled, time.time()
        for member in members:
            # A process that ends between two samples keeps its last reading.
            with contextlib.suppress(psutil.NoSuchProcess):
                times = member.cpu_times()
                # the system knows the start only to about a second
                started = min(max(member.create_time(), before), self.sampled)
                samples = self.samples.setdefault(member.pid, [(started, 0.0)])
                samples.append((self.sampled, times.user + times.system))

    def seconds(self, start: float, end: float) -> dict[int, float]:
        """Computes process id -> CPU seconds between two times, in seconds since the epoch."""
        import numpy as np

        used = {}
        for process, samples in self.samples.items():
            times, cpu_seconds = zip(*samples, strict=True)
            used[process] = float(np.diff(np.interp([start, end], times, cpu_seconds))[0])
        return used

    def share(self, start: float, end: float) -> float:
        """Computes the load generator's share of the machine between two times.

        Args:
            start, end: seconds since the epoch.

        Returns:
            CPU seconds / (wall seconds x cores of this machine).
        """
        return sum(self.seconds(start, end).values()) / (end - start) / usable_cores()

    def limited(self, start: float, end: float, device: Literal["cpu", "gpu"]) -> bool:
        """Checks whether the load generator, and not the server, limited a measurement.

        Two measured facts decide:

        - One process of the load generator used at least 80 % of a core. The process sends requests
          and stamps the times of tokens in one event loop, which uses at most one core. Near a
          whole core, requests are sent late and tokens are stamped late.
        - Only with device `cpu`: all its processes together used at least 10 % of the machine. The
          server could have used every core, so it may have lost up to this share of its throughput.
          (GuideLLM's ten worker processes by default took 39 % of a two-core machine and 22 % of
          the server's tokens/s; one worker takes about 4 %.)

        Args:
            start, end: seconds since the epoch.
            device: where the server computes.
        """
        busiest = max(self.seconds(start, end).values(), default=0.0) / (end - start)
        if busiest >= BUSY_SHARE_OF_A_CORE:
            return True
        return device == "cpu" and self.share(start, end) >= TAKEN_SHARE_OF_THE_MACHINE
