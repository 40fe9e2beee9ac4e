"""Real faults in the real flow: servers, kernels and runs that are killed, stopped or interrupted, and what is left.

One workspace is disturbed again and again; at the end it must hold what the undisturbed run holds.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, SECRETS, copy_linked, flow_command
from soak.comparable import comparable, first_differences
from support.profiles import CI, HAS_INT4, candidates

from model_serve_flow import processes
from model_serve_flow.flow import Flow
from model_serve_flow.notebooks import RUN_VARIABLE
from model_serve_flow.serving import SERVER_MODULE
from model_serve_flow.workspace import folder_digest, read_json

pytestmark = pytest.mark.skipif(
    not HAS_INT4,
    reason="the limits in seconds of these tests are for a processor with AVX-512; others are too slow",
)

ROOM = ROOT / "artifacts" / "faults"
SILENT_SECONDS = 10  # engine.unresponsive_seconds of these runs
INTERRUPT_SECONDS = 10  # what is promised for Ctrl-C
START_SECONDS = 240


class Disturbed:
    """A run of one step in the workspace of these tests, and the processes it has started."""

    def __init__(self, number: str, *arguments: str, within: Sequence[object] = ()) -> None:
        """`within`: a command that runs the command line that follows its arguments, in the same process."""
        self.root = ROOM / CI
        self.started = time.time()
        self.seen: set[psutil.Process] = set()
        settings = ("--set", f"engine.unresponsive_seconds={SILENT_SECONDS}")
        self.child = subprocess.Popen(
            [*map(str, within), *flow_command("--only", number, *settings, *arguments, artifacts=ROOM)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SECRETS},
            start_new_session=True,
        )

    def left(self) -> list[psutil.Process]:
        """Processes of this run that still live: those that carry its mark, and all that were seen below it."""
        marked = processes.marked(RUN_VARIABLE, lambda value: value.startswith(f"{self.root}#"))
        return marked + [process for process in self.seen if processes.alive(process)]

    def look(self) -> None:
        """Remembers every process below the run, so that none can hide by losing its mark or its parent."""
        self.seen |= set(processes.family(self.child.pid)[1:])

    def until(self, found, what: str):
        """What `found()` gives as soon as it is something; fails if the run ends before."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            self.look()
            if result := found():
                self.look()
                return result
            assert self.child.poll() is None, f"ended before {what}:\n{self.child.stdout.read()[-4000:]}"
            time.sleep(0.2)
        raise AssertionError(f"no {what} within {START_SECONDS} s")

    def servers(self) -> list[psutil.Process]:
        """vLLM's processes: the server and, once it has one, its engine."""
        return [process for process in self.left() if is_server(process)]

    def requests(self, log: str, path: str = "/v1/completions") -> int:
        """Requests that the server of this run has answered, as its log has them."""
        file = self.root / "logs" / log
        return answered(file, path) if file.is_file() and file.stat().st_mtime >= self.started else 0

    def ends(self, seconds: float) -> str:
        """What the run says when it has ended, which must be within `seconds`, with nothing left of it."""
        try:
            output, _ = self.child.communicate(timeout=seconds)
        finally:
            self.child.kill()
        assert not self.left(), "processes are left"
        for path in self.root.rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        return output

    def finishes(self) -> None:
        """The run ends well, and nothing unfinished of earlier ones is left."""
        output = self.ends(600)
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


@pytest.fixture(scope="module")
def room(flow) -> Path:
    """A workspace with the model and the data of the undisturbed one, by links: they are only read."""
    shutil.rmtree(ROOM, ignore_errors=True)
    copy_linked(flow.workspace.root, ROOM / CI)
    for name in ("base", *candidates(flow)):
        shutil.rmtree(ROOM / CI / "results" / name / "raw")
    yield ROOM / CI
    shutil.rmtree(ROOM)


def failed(output: str, child: subprocess.Popen) -> str:
    assert child.returncode == 1, output
    return output


def in_mount_namespace(*setup: str) -> list[str]:
    """For `within`: mounts in a namespace of its own, where the room is $0."""
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting in a namespace is not allowed here")
    return [*prefix, f'{"; ".join(setup)}; exec "$@"', str(ROOM / CI)]


def test_a_disk_that_fills_while_the_comparison_is_written(room, flow):
    """A small disk at `report`: the comparison fits, the pages do not."""
    small = in_mount_namespace('mount -t tmpfs -o size=64k tmpfs "$0/report"')
    run = Disturbed("06", "--force", within=small)
    output = failed(run.ends(120), run.child)
    assert "06_Comparison failed in cell" in output and "could not be written: the disk is full" in output
    assert nothing_unfinished(room)
    Disturbed("06").finishes()
    ours, theirs = (read_json(root / "report" / "comparison.json") for root in (flow.workspace.root, room))
    assert first_differences(ours, theirs) == []


def test_read_only_artifacts_are_named_before_anything_starts(room):
    read_only = in_mount_namespace('mount --bind "$0" "$0"', 'mount -o remount,bind,ro "$0"')
    run = Disturbed("01", "--force", within=read_only)
    output = failed(run.ends(60), run.child)
    assert "cannot be written: Read-only file system" in output and "01_Base_Accuracy: started" not in output


def test_a_server_killed_while_it_starts(room):
    run = Disturbed("01", "--force")
    run.until(run.servers, "a server")[0].kill()
    output = failed(run.ends(60), run.child)
    assert "01_Base_Accuracy failed" in output and "while starting" in output


def test_a_server_killed_while_lm_eval_asks_it(room):
    run = Disturbed("01")
    run.until(lambda: run.requests("vllm-accuracy-base.log") >= 6, "questions")
    run.servers()[0].kill()
    output = failed(run.ends(120), run.child)
    assert "signal 9 (SIGKILL)" in output and "run again to go on" in output


def test_a_server_that_hangs_is_ended_by_the_watchdog(room):
    run = Disturbed("01")
    asked = run.until(lambda: run.requests("vllm-accuracy-base.log") >= 6, "questions")
    assert asked
    for process in run.servers():
        process.suspend()
    output = failed(run.ends(SILENT_SECONDS + 120), run.child)
    assert "hung" in output and "unresponsive_seconds" in output


def test_a_second_run_is_refused_and_ctrl_c_stops_the_first_within_ten_seconds(room):
    run = Disturbed("01")
    run.until(run.servers, "a server")
    second = Disturbed("06")
    output, _ = second.child.communicate(timeout=60)
    assert second.child.returncode == 1
    assert f"process {run.child.pid}, started at {read_json(room / '.run.lock')['started_at']}" in output
    run.look()
    run.child.send_signal(signal.SIGINT)
    output = run.ends(INTERRUPT_SECONDS)
    assert run.child.returncode == 130
    assert "Interrupted" in output


def test_what_was_scored_is_not_scored_again_and_the_results_are_the_same(room, flow):
    """After four disturbances the step goes on where it was."""
    Disturbed("01").finishes()
    here, undisturbed = (answered(root / "logs" / "vllm-accuracy-base.log") for root in (room, flow.workspace.root))
    print(f"{here} requests instead of {undisturbed}")
    # Two disturbed runs waited for six requests each, of which two find out what the engine knows.
    assert here <= undisturbed - 4, "at least two of each four need not be answered again"
    assert not any((room / "cache").rglob("*.db"))
    for name in ("accuracy", "accuracy_again", "distribution"):
        ours, theirs = (
            comparable(read_json(root / "results" / "base" / f"{name}.json")) for root in (flow.workspace.root, room)
        )
        assert first_differences(ours, theirs) == []


def test_an_engine_killed_under_load_leaves_no_result(room):
    run = Disturbed("02", "--force")
    run.until(lambda: run.requests("vllm-performance-base.log") >= 3, "load")
    engine = [p for server in run.servers() for p in server.children(recursive=True)]
    assert engine, "the engine is a process of its own"
    engine[-1].kill()
    output = failed(run.ends(120), run.child)
    assert "02_Base_Performance failed" in output and "while it was needed" in output
    assert not (room / "results" / "base" / "performance.json").exists()


def test_a_load_point_with_too_few_requests_is_marked_and_not_compared(room):
    short = ("performance.seconds=1", "performance.repeats=1", "performance.slo=null", "performance.min_requests=1000")
    Disturbed("02", *(word for value in short for word in ("--set", value))).finishes()
    points = read_json(room / "results" / "base" / "performance.json")["points"]
    assert points and not any(point["valid"] for point in points)
    run = Disturbed("06", "--force")
    output = failed(run.ends(60), run.child)
    assert "of base is not valid" in output and "performance.min_requests is 1000" in output


def test_a_server_killed_during_the_deploy_check(room):
    run = Disturbed("07", "--set", "deploy.candidate=w8a8-int8", "--set", "deploy.override_reason=a test", "--force")
    run.until(lambda: list(room.glob("logs/vllm-deploy-*.log")) and run.servers(), "a server")
    name = "w8a8-int8"
    run.until(lambda: run.requests(f"vllm-deploy-{name}.log", "/v1/chat/completions") >= 1, "a chat")
    run.servers()[0].kill()
    output = failed(run.ends(120), run.child)
    assert "07_Deploy failed" in output and "while it was needed" in output


def test_a_checkpoint_that_may_not_grow_leaves_the_old_one(room):
    """A limit on the size of files stops the one candidate that is left to make."""
    old = folder_digest(room / "models" / "w8a8-int8")
    (room / "results" / "w8a8-int8" / "compression.json").unlink(missing_ok=True)
    run = Disturbed("03", within=("prlimit", f"--fsize={64 << 20}"))
    output = failed(run.ends(300), run.child)
    assert "models/w8a8-int8 could not be written" in output and "ulimit -f" in output
    assert nothing_unfinished(room) and folder_digest(room / "models" / "w8a8-int8") == old
    Disturbed("03").finishes()
    assert folder_digest(room / "models" / "w8a8-int8") == old


def test_a_kernel_killed_while_it_compresses(room, flow):
    first, last = candidates(flow)
    run = Disturbed("03", "--force")
    log = room / "logs" / f"compress-{last}.log"
    run.until(lambda: log.is_file() and log.stat().st_mtime > run.started and log.stat().st_size > 0, "compression")
    kernel = next(p for p in run.left() if "ipykernel_launcher" in " ".join(p.cmdline()))
    kernel.kill()
    output = failed(run.ends(60), run.child)
    assert "calibration.samples" in output and "DeadKernelError" in output
    assert Flow.open(CI, {}, ROOM).workspace.compression(first), "what was finished is kept"
    assert not (room / "results" / last / "compression.json").exists()
