"""Ends child processes: with their parent, on request, and wherever they hide."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from model_serve_flow.system.variables import value, variable

# For Python's setproctitle, which by default overwrites the environment that /proc shows.
KEEP_READABLE = {"SPT_NOENV": "1"}
# marks every process of a run; session and parent do not matter
RUN_VARIABLE = variable("run")
ORPHAN_SECONDS = 1.0
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


def end_with_parent() -> None:
    """Asks Linux to send this process SIGTERM when the thread that started it ends.

    Use it as `preexec_fn`. See prctl(2), PR_SET_PDEATHSIG.
    """
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def end_when_orphaned() -> None:
    """Kills this process when its present parent process has ended.

    A separate thread watches the parent, so it does not matter which thread started this process.
    """

    def wait(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(
        target=wait, args=(os.getppid(),), name="end with the parent", daemon=True
    ).start()


def family(pid: int) -> list[psutil.Process]:
    """Lists the process and all its descendants; empty if it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(variable: str, fits: Callable[[str], bool]) -> list[psutil.Process]:
    """Lists living processes whose environment variable has a fitting value, whatever their parent.

    Some processes set their own title, such as vLLM's engine. Their environment can be read only
    with `KEEP_READABLE`.

    Args:
        variable: name of the environment variable.
        fits: checks its value.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(*GONE, psutil.AccessDenied):
            value = process.environ().get(variable)
            if value is not None and fits(value) and alive(process) and process.pid != os.getpid():
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Checks whether the process still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(find: Callable[[], list[psutil.Process]], seconds: float) -> int:
    """Asks the processes that `find` returns to end, and kills the rest after `seconds`.

    Processes that appear meanwhile are killed too.

    Returns:
        The number of processes at the first call of `find`.
    """
    first = find()
    each(first, psutil.Process.terminate)
    psutil.wait_procs(first, timeout=seconds)
    while left := find():
        # a kill also ends a stopped process, a request to end does not
        each(left, psutil.Process.kill)
        psutil.wait_procs(left, timeout=seconds)
    return len(first)


def cpu_seconds(processes: Iterable[psutil.Process], *, ended_children: bool = False) -> float:
    """Sums the CPU time of processes, in seconds; processes that are gone do not count.

    Args:
        processes: the processes.
        ended_children: also counts their children that have ended, such as a compiler's processes.
    """
    total = 0.0
    for process in processes:
        with contextlib.suppress(*GONE):
            times = process.cpu_times()
            total += times.user + times.system
            if ended_children:
                total += times.children_user + times.children_system
    return total


def own() -> list[psutil.Process]:
    """Lists this process, its descendants, and all processes of the same run."""
    found = {process.pid: process for process in family(os.getpid())}
    if mark := value("run"):
        found |= {process.pid: process for process in marked(RUN_VARIABLE, mark.__eq__)}
    return list(found.values())


def is_stopped(process: psutil.Process) -> bool:
    """Checks whether a signal (SIGSTOP) or a debugger holds the process; False if it is gone."""
    with contextlib.suppress(*GONE):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def peak_memory(processes: Iterable[psutil.Process]) -> int:
    """Sums the peak resident sizes, in bytes; shared pages count once per process."""
    total = 0
    for process in processes:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            total += next(
                (
                    int(line.split()[1]) * 1024
                    for line in status.splitlines()
                    if line.startswith("VmHWM")
                ),
                0,
            )
    return total


def each(processes: Iterable[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    """Applies an action to every process that still exists."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)
