"""Child processes that end: with their parent, when asked to, and wherever they hid."""

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

# setproctitle(3) of Python: by default the title is written over what /proc shows as the process's
# environment.
KEEP_READABLE = {"SPT_NOENV": "1"}
# marks every process of a run, whatever session or parent it has
RUN_VARIABLE = "MODEL_SERVE_FLOW_RUN"
ORPHAN_SECONDS = 1.0
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


def end_with_parent() -> None:
    """For `preexec_fn`: asks Linux to send this process SIGTERM when the thread that started it
    ends, however it does.

    See prctl(2), PR_SET_PDEATHSIG.
    """
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def end_when_orphaned() -> None:
    """Kills this process, from a thread of its own, when its present parent has ended;
    whatever thread started it.
    """

    def wait(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(
        target=wait, args=(os.getppid(),), name="end with the parent", daemon=True
    ).start()


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; empty if it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def marked(variable: str, fits: Callable[[str], bool]) -> list[psutil.Process]:
    """Living processes that were started with an environment variable whose value fits,
    whatever parent they have.

    The environment of a process that gives itself a title, as vLLM's engine does, can only be read
    with `KEEP_READABLE`.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(*GONE, psutil.AccessDenied):
            value = process.environ().get(variable)
            if value is not None and fits(value) and alive(process) and process.pid != os.getpid():
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(find: Callable[[], list[psutil.Process]], seconds: float) -> int:
    """Asks the processes that `find` gives to end, and kills those, also new ones,
    that are left after `seconds`.

    Returns:
        How many there were.
    """
    first = find()
    each(first, psutil.Process.terminate)
    psutil.wait_procs(first, timeout=seconds)
    while left := find():
        # also ends a process that is stopped, which a request to end does not
        each(left, psutil.Process.kill)
        psutil.wait_procs(left, timeout=seconds)
    return len(first)


def cpu_seconds(processes: Iterable[psutil.Process], *, ended_children: bool = False) -> float:
    """CPU time the processes have used until now; those that are gone do not count.

    Args:
        ended_children: also counts what their children had used that have ended, such as a
            compiler's processes.
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
    """This process, all below it, and all of the same run, whatever parent they have."""
    found = {process.pid: process for process in family(os.getpid())}
    if mark := os.environ.get(RUN_VARIABLE):
        found |= {process.pid: process for process in marked(RUN_VARIABLE, mark.__eq__)}
    return list(found.values())


def is_stopped(process: psutil.Process) -> bool:
    """Whether a signal (SIGSTOP) or a debugger holds the process;
    one that is gone is not stopped.
    """
    with contextlib.suppress(*GONE):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    return False


def peak_memory(processes: Iterable[psutil.Process]) -> int:
    """Sum of the peak resident sizes, in bytes (pages that processes share count for each)."""
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
    """Does something to every process that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            action(process)
