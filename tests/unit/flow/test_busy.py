"""How busy the machine is: real processes, and files of /proc as other machines have them."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from model_serve_flow.flow import busy
from model_serve_flow.flow.busy import in_words, is_busy, sample_machine, watch_machine
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.system import processes

TICKS = os.sysconf("SC_CLK_TCK")
LOOP = "import time; end = time.time() + {seconds}\nwhile time.time() < end: pass"
# prints its process id after it gave up its parent, so that it belongs to nobody here
STRANGER = (
    f"import os\nif os.fork(): os._exit(0)\nos.setsid(); print(os.getpid(), flush=True)\n{LOOP}"
)


def statistics(*cores):
    """The text of /proc/stat for (user, nice, system, idle, iowait, irq, softirq,
    steal) seconds of each core.
    """
    whole = [sum(column) for column in zip(*cores, strict=True)]
    rows = [("cpu", whole), *((f"cpu{number}", core) for number, core in enumerate(cores))]
    lines = [
        f"{name} {' '.join(str(value * TICKS) for value in values)} 5 5" for name, values in rows
    ]
    return "\n".join([*lines, "intr 12 0 3", "ctxt 99"])


def between(start, end):
    return busy._between(busy._Moment(0.0, *start), busy._Moment(10.0, *end))


def test_of_the_time_of_two_cores_what_is_not_ours_is_that_of_others():
    found = between((100, 40, 2, 5), (120, 55, 3, 14))
    assert found.others_share == pytest.approx((15 - 9) / 20)
    assert found.steal_share == pytest.approx(1 / 20)
    assert found.seconds == 10 and found.cores >= 1


def test_every_column_is_what_it_is():
    text = statistics((1, 2, 4, 100, 50, 8, 16, 32), (1, 0, 0, 10, 0, 0, 0, 0))
    assert busy._machine(text, {0}) == (213, 31, 32)
    assert busy._machine(text, {0, 1}) == (224, 32, 32)
    assert busy._machine(text, {7}) == (224, 32, 32), "a container that numbers its cores otherwise"


def test_where_the_system_tells_nothing_it_says_so_and_the_load_decides():
    quiet = between((0, 0, 0, 1), (0, 0, 0, 2)).model_copy(update={"load_average": 0.5, "cores": 2})
    assert quiet.others_share is None and quiet.steal_share is None and not is_busy(quiet)
    assert is_busy(quiet.model_copy(update={"load_average": 5}))
    assert "does not say" in in_words(quiet)


def test_what_another_program_computes_is_that_of_others():
    with watch_machine() as watch:
        stranger = subprocess.run(
            [sys.executable, "-Sc", STRANGER.format(seconds=2)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )  # returns when its output is closed, which is at its end
        used = 2.0
    found = watch.result()
    assert int(stranger.stdout) not in {process.pid for process in processes.own()}
    whole = found.seconds * len(os.sched_getaffinity(0))
    cores_left = len(os.sched_getaffinity(0)) / max(os.getloadavg()[0], 1)
    assert found.others_share * whole >= 0.5 * used * min(cores_left, 1)


def test_what_we_compute_is_ours_also_in_children_that_ended():
    start = busy._look()
    subprocess.run([sys.executable, "-Sc", "for _ in range(10**7): pass"], check=True)
    used = psutil.Process().cpu_times()
    own = busy._look().own - start.own
    assert own >= 0.15, "the child's time"
    assert own <= used.children_user + used.children_system + used.user + used.system


def test_processes_of_the_same_run_are_ours_whatever_their_parent(monkeypatch):
    monkeypatch.setenv(processes.RUN_VARIABLE, "this run")
    command = [sys.executable, "-Sc", STRANGER.format(seconds=30)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        stranger = psutil.Process(int(child.stdout.readline()))
        child.wait()  # until then the stranger is a descendant of this process
        try:
            assert stranger.pid in {process.pid for process in processes.own()}
            monkeypatch.setenv(processes.RUN_VARIABLE, "another run")
            assert stranger.pid not in {process.pid for process in processes.own()}
        finally:
            stranger.kill()


def test_the_time_that_is_looked_at_ends_with_the_block():
    with watch_machine() as watch:
        time.sleep(0.1)
        assert watch.result().seconds >= 0.1
    first = watch.result().seconds
    time.sleep(0.1)
    assert watch.result().seconds == first
    assert 0.3 <= sample_machine(0.3).seconds < 10


QUIET = Busy(load_average=0.3, cores=2, others_share=0.02, steal_share=0.0, seconds=2)


@pytest.mark.parametrize(
    ("change", "disturbed"),
    [
        ({}, False),
        ({"others_share": 0.5}, True),
        ({"steal_share": 0.05}, True),
        ({"load_average": 9}, False),
    ],
)
def test_what_it_does_to_the_figures_is_said(change, disturbed):
    found = QUIET.model_copy(update=change)
    assert is_busy(found) is disturbed
    assert ("longer latencies" in in_words(found)) is disturbed
    assert "on 2 cores" in in_words(found) and "% of the CPU" in in_words(found)
