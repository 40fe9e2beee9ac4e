"""Which requests a server holds: one queue, one thread that computes, and what faults mean."""

import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from serving_from_scratch.core.errors import DeadlinePassed, ServingError, Unavailable
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.request import FinishReason, Request, Sequence, TokenLogprob
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import Executor, WorkerDied
from serving_from_scratch.engine.messages import Step, StepResult

IDLE_SECONDS = 0.1  # how often an idle worker is looked at
PATIENCE_SECONDS = 0.005  # how often a strategy that waits for more requests is asked again
DEATHS, DEATHS_SECONDS = 3, 60.0  # so many deaths in so many seconds, and the worker stays down


@dataclass(frozen=True, slots=True)
class News:
    """What is new of one request: tokens, its end, or why it failed."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    finish_reason: FinishReason | None = None
    error: ServingError | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A request, and who wants its news.

    Attributes:
        deliver: takes the news; called by the thread that computes.
        streams: whether the client sees every token at once: then nothing can be run again.
        sent: how many tokens were delivered.
        retried: whether a worker died under it.
    """

    request: Request
    deliver: Callable[[News], None]
    streams: bool = False
    sent: int = 0
    retried: bool = False
    sequence: Sequence | None = None


@dataclass(slots=True)
class Counts:
    """What a server has done since its start."""

    steps: int = 0
    step_seconds: float = 0.0
    step_tokens: int = 0
    generated_tokens: int = 0
    worker_deaths: int = 0
    finished: dict[str, int] = field(default_factory=dict)  # requests by their end


class WorkloadManager:
    """Holds the requests of a server and drives the scheduler in a thread of its own.

    `submit` and `finish` may be called from any thread. Streams and whole requests wait in the
    same queue, in the order of their arrival.

    Args:
        scheduler: decides what is computed next.
        executor: computes it.
        limits: what is accepted.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, limits: Limits) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.limits = limits
        self.counts = Counts()
        self.unavailable = ""  # why no request is served at the moment
        self.draining = False
        self._tickets: dict[str, Ticket] = {}
        self._deaths: list[float] = []
        self._lost = self._down = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="workload")
        self._thread.start()

    @property
    def held(self) -> int:
        """How many requests wait or run."""
        return len(self._tickets)

    def submit(self, *tickets: Ticket) -> None:
        """Takes requests, all or none.

        Raises:
            InvalidRequest: this server cannot serve one of them.
            QueueFull: too many wait.
            Unavailable: the worker is not there, or the server ends.
        """
        for ticket in tickets:
            self.limits.check(ticket.request)
        with self._changed:
            if self.unavailable or self.draining:
                problem = self.unavailable or "The server ends."
                raise Unavailable(problem, self.limits.retry_after)
            places = self.scheduler.places - len(self.scheduler.running)
            waiting = len(self.scheduler.waiting) - places  # who gets a free place does not wait
            self.limits.check_queue(waiting + len(tickets) - 1)
            for ticket in tickets:
                ticket.sequence = self.scheduler.submit(ticket.request)
                self._tickets[ticket.request.id] = ticket
            self._changed.notify()

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """Ends a request, if it has not ended: its place is free from the next step on."""
        with self._changed:
            if self._tickets.pop(request_id, None):
                self.scheduler.finish(request_id, reason)
                self._count(reason)

    def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no more requests, lets those it holds end for so long, then ends everything."""
        self.draining = True
        deadline = time.monotonic() + drain_seconds
        while self._tickets and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.02)
        self._closed = True
        self._thread.join(timeout=1)
        self.executor.close()  # also ends a step that hangs
        self._thread.join()
        with self._changed:
            self._fail(self._tickets.values())

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except WorkerDied as death:
                self._recover(death)
            except Exception as error:  # a fault of ours: nobody may wait for ever because of it
                traceback.print_exc()
                self._recover(error, final=True)

    def _turn(self) -> None:
        """Computes one step, or waits a moment."""
        with self._changed:
            self._expire()
            step = None if self.unavailable else self.scheduler.schedule(time.monotonic())
            if step is None:
                waits = self.scheduler.waiting and not self.unavailable
                self._changed.wait(PATIENCE_SECONDS if waits else IDLE_SECONDS)
        if step is None:
            self._look()
        else:
            self._take(step, self.executor.step(step))

    def _take(self, step: Step, result: StepResult) -> None:
        with self._changed:
            self.counts.steps += 1
            self.counts.step_seconds += result.seconds
            self.counts.step_tokens += step.tokens
            for sequence in self.scheduler.update(step, result):
                self._tell(sequence)

    def _look(self) -> None:
        """Looks after an idle worker: it may have died, need a restart, or have become ready."""
        if self._lost:
            self._lost = False
            self.executor.restart()
        elif not self._down and self.executor.ready(0):
            self.unavailable = ""

    def _recover(self, error: Exception, final: bool = False) -> None:
        """Ends what cannot be run again; everything else waits for the next worker."""
        now = time.monotonic()
        with self._changed:
            self._deaths = [then for then in self._deaths if now - then < DEATHS_SECONDS] + [now]
            self._down = final or len(self._deaths) >= DEATHS
            self._lost = not self._down
            kind = f"stays down, after {len(self._deaths)} faults" if self._down else "is restarted"
            self.unavailable = f"The worker {kind}: {error}"
            self.counts.worker_deaths += 1
            running = [self._tickets[sequence.request.id] for sequence in self.scheduler.running]
            self.scheduler.restart()
            lost = [t for t in running if t.retried or (t.streams and t.sent)]
            for ticket in running:
                ticket.retried = True
            self._fail(self._tickets.values() if self._down else lost)

    def _expire(self) -> None:
        """Ends the requests whose deadline has passed."""
        for sequence in self.scheduler.expire(time.monotonic()):
            request = sequence.request
            seconds = request.deadline - request.arrived
            error = DeadlinePassed(f"The answer was not complete after {seconds:g} seconds.")
            self._end(self._tickets[request.id], News(error=error), FinishReason.DEADLINE)

    def _fail(self, tickets: Iterable[Ticket]) -> None:
        problem = self.unavailable or "The server ends."
        for ticket in list(tickets):
            self.scheduler.finish(ticket.request.id, FinishReason.ERROR)
            error = Unavailable(problem, self.limits.retry_after)
            self._end(ticket, News(error=error), FinishReason.ERROR)

    def _tell(self, sequence: Sequence) -> None:
        """Delivers what is new of a sequence."""
        ticket = self._tickets[sequence.request.id]
        tokens = tuple(sequence.tokens[len(sequence.request.prompt) + ticket.sent :])
        news = News(
            tokens=tokens,
            logprobs=tuple(sequence.logprobs[ticket.sent :]),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if not ticket.sent else (),
            embedding=sequence.embedding,
            finish_reason=sequence.finish_reason,
        )
        ticket.sent += len(tokens)
        self.counts.generated_tokens += len(tokens)
        if sequence.finished:
            self._end(ticket, news, sequence.finish_reason)
        else:
            ticket.deliver(news)

    def _end(self, ticket: Ticket, news: News, reason: FinishReason) -> None:
        """Forgets a request that the scheduler has ended, and delivers its last news."""
        del self._tickets[ticket.request.id]
        self._count(reason)
        ticket.deliver(news)

    def _count(self, reason: FinishReason) -> None:
        self.counts.finished[reason] = self.counts.finished.get(reason, 0) + 1
