"""WorkerProcess and ModelWorker without a server: the same outcomes, and how a worker ends."""

import psutil
import pytest

from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import InProcess, WorkerDied, WorkerProcess
from serving_from_scratch.model.loading import ModelManager

STEP = Step((Chunk("a", 0, 0, (5, 6, 7), sample=True), Chunk("b", 1, 0, (9,), sample=True)))


def load(executor):
    while not executor.ready(1):
        pass
    return executor


@pytest.fixture
def options(tiny_model):
    return ModelOptions(str(tiny_model), "float32", length=1024)


@pytest.fixture
def worker(options, monkeypatch):
    monkeypatch.setenv("SERVING_FROM_SCRATCH_API_KEY", "secret")
    executor = load(WorkerProcess(options))
    yield executor
    executor.close()


def test_a_worker_computes_what_this_process_computes(worker, options):
    here = InProcess(ModelManager().runner(options))
    assert worker.facts == here.facts
    assert worker.step(STEP).outcomes == here.step(STEP).outcomes
    assert "secret" not in psutil.Process(worker.pid).environ().values()


def test_a_step_that_fails_says_why_and_the_next_worker_computes(worker):
    with pytest.raises(WorkerDied, match="The worker failed: IndexError"):
        worker.step(Step((Chunk("a", 0, 0, (10**6,), sample=True),)))
    first = worker.pid
    worker.restart()
    assert load(worker).step(STEP).outcomes and worker.pid != first


def test_nothing_is_left_of_a_closed_worker(options):
    files = psutil.Process().num_fds()
    executor = WorkerProcess(options)
    executor.close()
    executor.close()
    assert not psutil.pid_exists(executor.pid)
    assert psutil.Process().num_fds() == files


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    executor = WorkerProcess(ModelOptions(str(tmp_path)))
    with pytest.raises(WorkerDied, match=r"no config\.json"):
        load(executor)
    executor.close()
