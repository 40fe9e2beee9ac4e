"""Ranks compute the tokens of one process, send what the formula says, and end together."""

import random
import signal
import time

import psutil
import pytest
from support.serving import Reference, save_llama, serve

from serving_from_scratch.core.batching import ChunkedPrefill, Continuous
from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelOptions, Rank
from serving_from_scratch.core.proposers import NGram
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import WorkerDied
from serving_from_scratch.engine.parallel import DataParallel, PipelineParallel, TensorParallel
from serving_from_scratch.model.sharding import share

KINDS = (TensorParallel, PipelineParallel, DataParallel)
HIDDEN, LAYERS, BYTES = 96, 3, 4


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Three layers and three KV heads: neither divides by two."""
    folder = tmp_path_factory.mktemp("model") / "odd-llama"
    return save_llama(folder, layers=LAYERS, heads=6, kv_heads=3, hidden=HIDDEN)


@pytest.fixture(scope="module")
def reference(llama):
    draw = random.Random(2)
    prompts = [tuple(draw.randrange(3, 512) for _ in range(length)) for length in (5, 90, 31, 64)]
    return Reference.of(llama, prompts, max_tokens=24)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def executor(request, llama):
    executor = request.param(options(llama), ranks=2)
    while not executor.ready(1):
        pass
    yield executor
    executor.close()


def options(llama, **other):
    return ModelOptions(str(llama), "float32", length=256, **other)


class Recorder:
    """Remembers the results of an executor."""

    def __init__(self, executor):
        self.executor, self.results = executor, []

    def step(self, step):
        self.results.append((step, self.executor.step(step)))
        return self.results[-1][1]


@pytest.mark.parametrize("strategy", [Continuous(), ChunkedPrefill(32)], ids=["whole", "chunks"])
def test_ranks_compute_the_tokens_of_one_process(executor, reference, llama, strategy):
    scheduler = Scheduler(strategy, options(llama).memory(), 8, proposer=NGram(n=2, cost=-1.0))
    recorder = Recorder(executor)
    answers = serve(scheduler, recorder, reference.requests(), seed=1).answers
    assert answers == reference.answers
    per_token = {
        "tensor": 2 * 2 * LAYERS * HIDDEN * BYTES,  # two ranks, two all-reduces a layer
        "pipeline": HIDDEN * BYTES,  # one hand-over
        "": 0,
    }[executor.kind]
    for step, result in recorder.results:
        assert result.sent == step.tokens * per_token
        assert (result.exchange > 0) == (per_token > 0)


def test_gloo_writes_as_many_bytes_as_are_counted(llama, reference):
    executor = TensorParallel(options(llama), ranks=2)
    try:
        while not executor.ready(1):
            pass
        processes = [psutil.Process(worker.pid) for worker in executor.workers]
        scheduler = Scheduler(Continuous(), options(llama).memory(), 8)
        recorder = Recorder(executor)
        before = [process.io_counters().write_chars for process in processes]
        serve(scheduler, recorder, reference.requests())
        written = [process.io_counters().write_chars for process in processes]
        sent = sum(result.sent for _, result in recorder.results)
        assert sum(written) - sum(before) == pytest.approx(sent, rel=0.25)
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("kind", "killed"),
    [(TensorParallel, 1), (PipelineParallel, 0), (DataParallel, 1)],
)
def test_a_killed_rank_ends_the_others_and_all_start_again(kind, killed, llama, reference):
    executor = kind(options(llama), ranks=2, step_seconds=10)
    try:
        while not executor.ready(1):
            pass
        processes = [psutil.Process(worker.pid) for worker in executor.workers]
        scheduler = Scheduler(Continuous(), options(llama).memory(), 8)
        for request in reference.requests():
            scheduler.submit(request)
        scheduler.update(step := scheduler.schedule(), executor.step(step))
        processes[killed].send_signal(signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(WorkerDied, match="SIGKILL"):
            while True:
                scheduler.update(step := scheduler.schedule(), executor.step(step))
        assert time.monotonic() - started < 5
        assert not any(process.is_running() for process in processes)
        executor.restart()
        scheduler.restart()
        while not executor.ready(1):
            pass
        answers = {s.request.id: s for s in scheduler.waiting}
        while step := scheduler.schedule():
            scheduler.update(step, executor.step(step))
        assert {id: s.generated for id, s in answers.items()} == reference.answers
    finally:
        executor.close()


def test_the_partner_of_a_killed_rank_says_so_without_a_traceback(llama, capfd):
    executor = TensorParallel(options(llama), ranks=2)
    try:
        while not executor.ready(1):
            pass
        partner, killed = executor.workers
        killed.close()
        partner.send(Step((Chunk("a", 0, 0, (5, 6), sample=True),)))
        with pytest.raises(WorkerDied, match=r"^Rank 0 lost another rank: .*closed"):
            partner.receive()
        assert "Traceback" not in capfd.readouterr().err
    finally:
        executor.close()


def test_a_rank_that_dies_between_steps_is_noticed(llama):
    executor = TensorParallel(options(llama), ranks=2)
    try:
        while not executor.ready(1):
            pass
        executor.workers[1]._process.kill()
        with pytest.raises(WorkerDied):
            while True:
                executor.ready(0.1)
        assert not psutil.pid_exists(executor.workers[0].pid)
    finally:
        executor.close()


@pytest.mark.parametrize("kind", KINDS)
def test_more_ranks_than_cores_are_refused_before_anything_starts(kind, llama):
    children = psutil.Process().children()
    with pytest.raises(ServingError, match=r"1000 ranks need as many cores; this process may use"):
        kind(options(llama), ranks=1000)
    assert psutil.Process().children() == children


def test_a_model_with_fewer_heads_than_ranks_is_refused():
    with pytest.raises(ServingError, match="1 KV heads, which 2 ranks cannot share"):
        share(1, Rank(0, 2, "tensor", ""), "KV heads")


@pytest.mark.parametrize("total", [2, 3, 7, 64])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_share_everything_once_and_evenly(total, ranks):
    parts = [share(total, Rank(number, ranks, "tensor", ""), "heads") for number in range(ranks)]
    assert [place for part in parts for place in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_workers_share_no_pages(llama):
    with pytest.raises(ServingError, match="share no pages"):
        DataParallel(options(llama, cache="paged"), ranks=2)
