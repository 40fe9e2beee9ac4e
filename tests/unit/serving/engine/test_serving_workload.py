"""The workload thread: one queue, and what happens to requests when the executor fails."""

import queue
import time

import pytest
from support.spelling import VOCABULARY, Speller, spelled

from serving_from_scratch.core.batching import Continuous, OneByOne
from serving_from_scratch.core.errors import DeadlinePassed, QueueFull, Unavailable
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.memory import Slots
from serving_from_scratch.core.request import FinishReason, Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import WorkerDied
from serving_from_scratch.engine.workload import Ticket, WorkloadManager


class Fragile(Speller):
    """A model without arithmetic that fails at chosen steps."""

    def __init__(self, failures=(), seconds=0.0):
        super().__init__()
        self.failures, self.seconds = list(failures), seconds
        self.steps, self.restarts = [], 0

    def step(self, step):
        time.sleep(self.seconds)
        self.steps.append(step)
        if self.failures and len(self.steps) == self.failures[0][0]:
            raise self.failures.pop(0)[1]
        return super().step(step)

    def ready(self, seconds):
        return True

    def restart(self):
        self.restarts += 1
        self.cells.clear()


class Client:
    """Collects the news of one request."""

    def __init__(self, prompt, max_tokens=5, streams=False, **other):
        sampling = SamplingParameters(max_tokens=max_tokens)
        self.news = queue.Queue()
        request = Request(str(id(self)), tuple(prompt), sampling, **other)
        self.ticket = Ticket(request, self.news.put, streams)

    def tokens(self):
        """Waits for the answer; raises the error that it was given instead."""
        found = []
        while True:
            item = self.news.get(timeout=10)
            found += item.tokens
            if item.error:
                raise item.error
            if item.finish_reason:
                return found


@pytest.fixture
def begin():
    managers = []

    def make(executor, strategy=None, places=4, **limits):
        memory = Slots(places, 100)
        scheduler = Scheduler(strategy or Continuous(), memory, places)
        limits = Limits(VOCABULARY, 100, **limits)
        managers.append(WorkloadManager(scheduler, executor, limits))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def test_answers_are_those_of_each_prompt_alone(begin):
    manager = begin(Fragile())
    clients = [Client([n, n + 1], 8, streams=n % 2 == 0) for n in range(20)]
    manager.submit(*(client.ticket for client in clients))
    assert [c.tokens() for c in clients] == [spelled([n, n + 1], 8) for n in range(20)]
    assert manager.held == 0 and manager.counts.generated_tokens == 160


def test_a_long_whole_request_delays_no_stream_by_more_than_one_step(begin):
    executor = Fragile(seconds=0.001)
    manager = begin(executor)
    stream, whole = Client([1], 40, streams=True), Client(range(50), 40)
    manager.submit(stream.ticket)
    stream.news.get(timeout=10)
    manager.submit(whole.ticket)
    assert len(stream.tokens()) == 39
    name = stream.ticket.request.id
    last = max(n for n, step in enumerate(executor.steps) if name in requests(step))
    assert all(name in requests(step) for step in executor.steps[:last])
    assert len(whole.tokens()) == 40


def requests(step):
    return {chunk.request for chunk in step.chunks}


def test_a_dead_worker_fails_streams_and_repeats_the_rest(begin):
    executor = Fragile([(3, WorkerDied("gone"))])
    manager = begin(executor)
    stream, whole = Client([1], streams=True), Client([2])
    manager.submit(stream.ticket, whole.ticket)
    with pytest.raises(Unavailable, match="gone"):
        stream.tokens()
    assert whole.tokens() == spelled([2], 5)
    assert executor.restarts == 1 and manager.unavailable == ""


def test_a_stream_that_has_sent_nothing_is_repeated(begin):
    manager = begin(Fragile([(1, WorkerDied("gone"))]))
    stream = Client([1], streams=True)
    manager.submit(stream.ticket)
    assert stream.tokens() == spelled([1], 5)


def test_a_request_under_which_two_workers_died_is_refused(begin):
    manager = begin(Fragile([(2, WorkerDied("one")), (3, WorkerDied("two"))]))
    client = Client([1])
    manager.submit(client.ticket)
    with pytest.raises(Unavailable, match="two"):
        client.tokens()


@pytest.mark.parametrize(
    "failures",
    [
        [(1, WorkerDied("gone")), (2, WorkerDied("gone")), (3, WorkerDied("gone"))],
        [(2, ValueError("gone"))],
    ],
    ids=["three deaths", "a fault of ours"],
)
def test_what_is_down_refuses_everything_and_says_why(begin, failures, capsys):
    manager = begin(Fragile(failures), OneByOne())
    clients = [Client([n], 20) for n in range(2)]
    manager.submit(*(client.ticket for client in clients))
    for client in clients:
        with pytest.raises(Unavailable, match="gone"):
            client.tokens()
    with pytest.raises(Unavailable, match=r"stays down.*gone"):
        manager.submit(Client([1]).ticket)
    assert manager.held == 0


def test_a_deadline_that_passes_in_the_queue_starts_nothing(begin):
    executor = Fragile(seconds=0.01)
    manager = begin(executor, OneByOne(), places=1)
    now = time.monotonic()
    first, late = Client([1], 30), Client([2], arrived=now, deadline=now + 0.05)
    manager.submit(first.ticket, late.ticket)
    with pytest.raises(DeadlinePassed, match=r"0\.05 seconds"):
        late.tokens()
    assert first.tokens() == spelled([1], 30)
    assert not any(late.ticket.request.id in requests(step) for step in executor.steps)


def test_a_full_queue_takes_all_or_none(begin):
    manager = begin(Fragile(seconds=0.01), OneByOne(), places=1, max_waiting=2)
    taken = [Client([n], 20) for n in range(3)]  # one finds the free place, two wait
    manager.submit(*(client.ticket for client in taken[:2]))
    with pytest.raises(QueueFull, match="limit is 2"):
        manager.submit(*(Client([n]).ticket for n in range(2)))
    manager.submit(taken[2].ticket)
    assert [client.tokens() for client in taken] == [spelled([n], 20) for n in range(3)]


def test_a_finished_request_hears_nothing_more_and_its_place_is_free(begin):
    manager = begin(Fragile(seconds=0.005))
    client = Client([1], 90, streams=True)
    manager.submit(client.ticket)
    client.news.get(timeout=10)
    manager.finish(client.ticket.request.id, FinishReason.ABORT)
    assert manager.held == 0 and not manager.scheduler.running
    assert manager.scheduler.memory.free_tokens == 400


def test_the_end_fails_what_does_not_end_in_time(begin):
    manager = begin(Fragile(seconds=0.02))
    client = Client([1], 90)
    manager.submit(client.ticket)
    manager.close(drain_seconds=0.05)
    with pytest.raises(Unavailable, match="The server ends"):
        client.tokens()
    with pytest.raises(Unavailable, match="The server ends"):
        manager.submit(Client([1]).ticket)
