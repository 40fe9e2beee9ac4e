"""Real faults in the real flow: servers, kernels and runs that are killed,
stopped or interrupted, and what is left.

Each test disturbs a copy of the finished workspace of its own, so that it needs no other test.
Times follow from how long an engine took to start in the undisturbed run on this machine.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, SECRETS, copy_linked, flow_command
from soak.comparable import comparable, first_differences
from support.profiles import CI, candidates

from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.vllm import SERVER_MODULE
from model_serve_flow.system import processes
from model_serve_flow.system.digests import folder_digest
from model_serve_flow.system.files import leaves, read_json
from model_serve_flow.system.processes import RUN_VARIABLE

ROOM = ROOT / "artifacts" / "faults"
IDLE_START_SECONDS = 40  # of an engine on two cores that do nothing else
WATCHDOG_SECONDS = 25  # what is promised beyond engine.unresponsive_seconds
INTERRUPT_SECONDS = 10  # what is promised for Ctrl-C
INT8 = "w8a8-int8"


class Room:
    """A workspace with the models, data and results of the undisturbed run,
    and the limits of this machine.
    """

    def __init__(self, flow: Flow) -> None:
        self.undisturbed, self.root = flow.workspace.root, ROOM / CI
        shutil.rmtree(ROOM, ignore_errors=True)
        copy_linked(self.undisturbed, self.root)
        for name in ("base", *candidates(flow)):
            shutil.rmtree(self.root / "results" / name / "raw")
        start = flow.workspace.accuracy("base").engine.start_seconds
        self.slowness = max(start / IDLE_START_SECONDS, 1.0)
        self.silent = round(10 * self.slowness)  # engine.unresponsive_seconds of these runs
        # A start may take longer now than it did then, when other programs use the machine.
        self.start_limit = 8 * IDLE_START_SECONDS * self.slowness

    def limit(self, seconds: float) -> float:
        """The limit for what takes so many seconds on two cores at the most,
        if they do nothing else.
        """
        return 2 * seconds * self.slowness

    def run(self, number: str, *arguments: str, within: Sequence[object] = ()) -> "Disturbed":
        return Disturbed(self, number, *arguments, within=within)

    def results(self, name: str) -> list[Any]:
        """A result of the base: here, and of the undisturbed run."""
        roots = (self.root, self.undisturbed)
        return [read_json(root / "results" / "base" / f"{name}.json") for root in roots]


class Disturbed:
    """A run of one step in a room, and the processes it has started."""

    def __init__(self, room: Room, number: str, *arguments: str, within: Sequence[object]) -> None:
        """`within`: a command that runs the command line that follows its arguments,
        in the same process.
        """
        self.room, self.root = room, room.root
        self.started = time.time()
        self.seen: set[psutil.Process] = set()
        settings = ("--set", f"engine.unresponsive_seconds={room.silent}")
        self.child = subprocess.Popen(
            [
                *map(str, within),
                *flow_command("--only", number, *settings, *arguments, artifacts=ROOM),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SECRETS},
            start_new_session=True,
        )

    def left(self) -> list[psutil.Process]:
        """Processes of this run that still live: those that carry its mark,
        and all that were seen below it.
        """
        marked = processes.marked(RUN_VARIABLE, lambda value: value.startswith(f"{self.root}#"))
        return marked + [process for process in self.seen if processes.alive(process)]

    def look(self) -> None:
        """Remembers every process below the run,
        so that none can hide by losing its mark or its parent.
        """
        self.seen |= set(processes.family(self.child.pid)[1:])

    def until(self, found: Callable[[], Any], what: str) -> Any:
        """What `found()` gives as soon as it is something; fails if the run ends before."""
        deadline = time.monotonic() + self.room.start_limit
        while time.monotonic() < deadline:
            self.look()
            if result := found():
                self.look()
                return result
            assert self.child.poll() is None, (
                f"ended before {what}:\n{self.child.stdout.read()[-4000:]}"
            )
            time.sleep(0.2)
        raise AssertionError(f"no {what} within {self.room.start_limit:.0f} s")

    def servers(self) -> list[psutil.Process]:
        """vLLM's servers, without the engines that they start."""
        return [process for process in self.left() if is_server(process)]

    def engines(self) -> list[psutil.Process]:
        """The processes that vLLM's servers have started."""
        return [process for server in self.servers() for process in server.children(recursive=True)]

    def requests(self, log: str, path: str = "/v1/completions") -> int:
        """Requests that the server of this run has answered, as its log has them."""
        file = self.root / "logs" / log
        return (
            answered(file, path) if file.is_file() and file.stat().st_mtime >= self.started else 0
        )

    def ends(self, seconds: float) -> str:
        """What the run says when it has ended, which must be within `seconds`,
        with nothing left of it.
        """
        try:
            output, _ = self.child.communicate(timeout=seconds)
        finally:
            self.child.kill()
        assert not self.left(), "processes are left"
        for path in self.root.rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        return output

    def fails(self, seconds: float) -> str:
        """As `ends`, with status 1; `seconds` as `Room.limit` takes them."""
        output = self.ends(self.room.limit(seconds))
        assert self.child.returncode == 1, output
        return output

    def finishes(self) -> None:
        """The run ends well, and nothing unfinished of earlier ones is left."""
        output = self.ends(self.room.limit(600))
        assert self.child.returncode == 0, output
        assert nothing_unfinished(self.root)


def nothing_unfinished(root: Path) -> bool:
    endings = (".tmp", ".partial", ".partial.json", ".running.ipynb")
    return not [path for path in root.rglob("*") if path.name.endswith(endings)]


def answered(log: Path, path: str = "/v1/completions") -> int:
    """Requests that a server has answered, as its log has them."""
    return len(re.findall(rf'"POST {path} HTTP/1.1" 200', log.read_text(errors="replace")))


def is_server(process: psutil.Process) -> bool:
    try:
        return SERVER_MODULE in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


@pytest.fixture
def room(flow: Flow) -> Room:
    """A workspace for one test; models and data are links, because they are only read."""
    yield Room(flow)
    shutil.rmtree(ROOM)


def in_mount_namespace(*setup: str) -> list[str]:
    """For `within`: mounts in a namespace of its own, where the room is $0."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting in a namespace is not allowed here")
    return [*prefix, f'{"; ".join(setup)}; exec "$@"', str(ROOM / CI)]


def test_a_disk_that_fills_while_the_comparison_is_written(room):
    """A small disk at `report`: the comparison fits, the pages do not."""
    small = in_mount_namespace('mount -t tmpfs -o size=64k tmpfs "$0/report"')
    output = room.run("06", "--force", within=small).fails(120)
    assert (
        "06_Comparison failed in cell" in output
        and "could not be written: the disk is full" in output
    )
    assert nothing_unfinished(room.root)
    room.run("06").finishes()
    theirs, ours = (
        read_json(root / "report" / "comparison.json") for root in (room.root, room.undisturbed)
    )
    assert first_differences(ours, theirs) == []


def test_read_only_artifacts_are_named_before_anything_starts(room):
    read_only = in_mount_namespace('mount --bind "$0" "$0"', 'mount -o remount,bind,ro "$0"')
    output = room.run("01", "--force", within=read_only).fails(60)
    assert (
        "cannot be written: Read-only file system" in output
        and "01_Base_Accuracy: started" not in output
    )


def test_a_server_killed_while_it_starts(room):
    run = room.run("01", "--force")
    run.until(run.servers, "a server")[0].kill()
    output = run.fails(60)
    assert "01_Base_Accuracy failed" in output and "while starting" in output


def test_after_a_server_was_killed_what_was_scored_is_not_scored_again_and_the_results_are_the_same(
    room,
):
    undisturbed = answered(room.undisturbed / "logs" / "vllm-accuracy-base.log")
    run = room.run("01", "--force")
    scored = run.until(
        lambda: (n := run.requests("vllm-accuracy-base.log")) >= undisturbed // 4 and n, "questions"
    )
    run.servers()[0].kill()
    output = run.fails(120)
    assert "signal 9 (SIGKILL)" in output and "run again to go on" in output
    run = room.run("01")
    run.finishes()
    again = run.requests("vllm-accuracy-base.log")
    print(f"{again} requests instead of {undisturbed}, after {scored}")
    assert again <= undisturbed - scored // 2, (
        "some were on their way, and the watchdog asks for a token of its own"
    )
    assert not any((room.root / "cache").rglob("*.db"))
    for name in ("accuracy", "distribution"):
        theirs, ours = map(comparable, room.results(name))
        assert differences(ours, theirs, comparable(room.results(f"{name}_again")[1])) == []


def differences(ours: Any, theirs: Any, again: Any) -> list[str]:
    """Where two results differ, but for the kinds of values in which the engine differs from
    itself.

    `again` is our second measurement. On most processors it is the same, and then nothing may
    differ; on some the engine rounds otherwise when it computes other requests together, as it does
    after an interruption.
    """
    documents = [dict(leaves(document)) for document in (ours, theirs, again)]
    noisy = {
        _kind(place)
        for place, value in documents[0].items()
        if not place.startswith("protocol") and documents[2].get(place, value) != value
    }
    kept = (
        {place: value for place, value in document.items() if _kind(place) not in noisy}
        for document in documents
    )
    one, other, _ = kept
    return first_differences(one, other)


def _kind(place: str) -> str:
    return re.sub(r"\d+", "#", place)


def test_an_engine_that_hangs_is_ended_by_the_watchdog(room):
    run = room.run("01", "--force")
    run.until(lambda: run.requests("vllm-accuracy-base.log") >= 6, "questions")
    for process in run.engines():
        process.suspend()
    stopped = time.monotonic()
    output = run.fails(room.silent + WATCHDOG_SECONDS + 30)
    assert "hung" in output and "unresponsive_seconds" in output
    print(
        f"ended {time.monotonic() - stopped:.0f} s after it was stopped; it may be silent for "
        f"{room.silent} s"
    )


def test_a_second_run_is_refused_and_ctrl_c_stops_the_first_within_ten_seconds(room):
    run = room.run("01", "--force")
    run.until(run.servers, "a server")
    second = room.run("06")
    output, _ = second.child.communicate(timeout=room.limit(60))
    assert second.child.returncode == 1
    assert (
        f"process {run.child.pid}, started at {read_json(room.root / '.run.lock')['started_at']}"
        in output
    )
    run.look()
    run.child.send_signal(signal.SIGINT)
    output = run.ends(INTERRUPT_SECONDS * room.slowness)
    assert run.child.returncode == 130
    assert "Interrupted" in output


def test_an_engine_killed_under_load_leaves_no_result(room):
    run = room.run("02", "--force")
    run.until(lambda: run.requests("vllm-performance-base.log") >= 3, "load")
    run.engines()[-1].kill()
    output = run.fails(120)
    assert "02_Base_Performance failed" in output and "while it was needed" in output
    assert not (room.root / "results" / "base" / "performance.json").exists()


def test_a_server_killed_during_the_deploy_check(room):
    run = room.run(
        "07",
        "--set",
        f"deploy.candidate={INT8}",
        "--set",
        "deploy.override_reason=a test",
        "--force",
    )
    run.until(
        lambda: run.requests(f"vllm-deploy-{INT8}.log", "/v1/chat/completions") >= 1, "a chat"
    )
    run.servers()[0].kill()
    output = run.fails(120)
    assert "07_Deploy failed" in output and "while it was needed" in output


def test_a_checkpoint_that_may_not_grow_leaves_the_old_one(room):
    """A limit on the size of files stops the one candidate that is left to make."""
    old = folder_digest(room.root / "models" / INT8)
    (room.root / "results" / INT8 / "compression.json").unlink()
    output = room.run("03", within=("prlimit", f"--fsize={64 << 20}")).fails(300)
    assert f"models/{INT8} could not be written" in output and "ulimit -f" in output
    assert nothing_unfinished(room.root) and folder_digest(room.root / "models" / INT8) == old
    room.run("03").finishes()
    assert folder_digest(room.root / "models" / INT8) == old


def test_a_kernel_killed_while_it_compresses(room, flow):
    first, last = candidates(flow)
    run = room.run("03", "--force")
    log = room.root / "logs" / f"compress-{last}.log"
    run.until(
        lambda: log.is_file() and log.stat().st_mtime > run.started and log.stat().st_size > 0,
        "compression",
    )
    kernel = next(p for p in run.left() if "ipykernel_launcher" in " ".join(p.cmdline()))
    kernel.kill()
    output = run.fails(60)
    assert "calibration.samples" in output and "DeadKernelError" in output
    assert Flow.open(CI, {}, ROOM).workspace.compression(first), "what was finished is kept"
    assert not (room.root / "results" / last / "compression.json").exists()
