"""A child that does jobs: answers, what it prints, and how it ends."""

import os
import signal
import sys
import uuid

import pytest

from model_serve_flow.system import processes
from model_serve_flow.system.worker import Ended, JobProcess

VARIABLE = "MODEL_SERVE_FLOW_TEST_JOBS"
CHILD = """
import os, subprocess, sys, time
from pathlib import Path
from model_serve_flow.system.worker import answer_jobs, take_streams, written_to

def do(action, log=None):
    if action == "die":
        os._exit(7)
    if action == "start":
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    if action == "wait":
        time.sleep(60)
    with written_to(Path(log)):
        print(action)
        subprocess.run(["echo", "from a child"], check=True)
    print("after")
    return [action, sys.stdin.read()]

streams = take_streams()
print("before")
answer_jobs(*streams, do)
"""


@pytest.fixture
def jobs(tmp_path):
    variables = {**os.environ, VARIABLE: uuid.uuid4().hex}
    process = JobProcess((sys.executable, "-c", CHILD), tmp_path / "own.log", variables, VARIABLE)
    yield process
    process.stop()
    assert process.marked() == []


def nothing():
    pass


def interrupted():
    raise KeyboardInterrupt  # not by a signal: what starts the tests may have it ignored


def test_what_a_job_prints_goes_to_its_log_and_the_rest_to_the_process_s(jobs, tmp_path):
    for number in (1, 2):
        log = tmp_path / f"{number}.log"
        assert jobs.do({"action": f"job {number}", "log": str(log)}, 0.1, nothing) == [
            f"job {number}",
            "",
        ]
        assert log.read_text() == f"job {number}\nfrom a child\n"
    jobs.stop(patience=10)
    assert (tmp_path / "own.log").read_text() == "before\nafter\nafter\n"


def test_a_process_that_ends_in_a_job_has_a_status_and_takes_no_more(jobs):
    for action in ("die", "start"):
        with pytest.raises(Ended) as ended:
            jobs.do({"action": action}, 0.1, nothing)
        assert ended.value.status == 7


def test_a_killed_process_has_the_signal_as_its_status(jobs):
    with pytest.raises(Ended) as ended:
        jobs.do({"action": "wait"}, 0.1, lambda: os.kill(jobs.pid, signal.SIGKILL))
    assert ended.value.status == -signal.SIGKILL


def test_what_is_raised_meanwhile_comes_through_and_stopping_ends_all_that_was_started(jobs):
    pid = jobs.do({"action": "start"}, 0.1, nothing)
    assert [process.pid for process in jobs.started()] == [pid]
    with pytest.raises(KeyboardInterrupt):
        jobs.do({"action": "wait"}, 0.1, interrupted)
    jobs.stop()
    assert processes.marked(VARIABLE, jobs.mark.__eq__) == []
    jobs.stop()
    with pytest.raises(Ended):
        jobs.do({"action": "start"}, 0.1, nothing)
