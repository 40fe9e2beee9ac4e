"""Holds the requests of a server: one queue, one computing thread, and recovery from faults."""

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from serving_from_scratch.core.errors import (
    DeadlinePassed,
    InvalidRequest,
    ServingError,
    Unavailable,
)
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.request import FinishReason, Request, Sequence, TokenLogprob
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Step, StepResult
from serving_from_scratch.engine.executor import Executor, WorkerDied

IDLE_SECONDS = 0.1  # between two checks of an idle worker
PATIENCE_SECONDS = 0.005  # before a strategy that waits for more requests is asked again
DEATHS, DEATHS_SECONDS = 3, 60.0  # after this many deaths in this time, the worker stays down


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one answer: tokens, its end, or an error.

    Attributes:
        tokens: the new token ids.
        finish_reason: in the last piece.
        job: the number of its job; `LLMEngine.generate` gives it, and the text.
        text: the new text; may be empty until a character or a stop text is complete.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    finish_reason: FinishReason | None = None
    error: ServingError | None = None
    job: int = 0
    text: str = ""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request, and who receives its answer.

    Attributes:
        deliver: takes a piece of the answer; called by the computing thread.
        streams: whether the client sees every token at once; then it cannot be run again.
        sent: number of delivered tokens.
        retried: whether a worker died while it ran.
    """

    request: Request
    deliver: Callable[[Delta], None]
    streams: bool = False
    sent: int = 0
    retried: bool = False


@dataclass(slots=True)
class Counts:
    """What a server has done since its start; each number becomes a metric."""

    steps: int = 0
    step_seconds: float = 0.0
    step_tokens: int = 0
    generated_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    worker_deaths: int = 0


class WorkloadManager:
    """Holds the requests of a server and drives the scheduler in its own thread.

    Any thread may call `submit` and `finish`. Streams and whole requests wait in the same queue, in
    the order of arrival.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, limits: Limits) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.limits = limits
        self.counts = Counts()
        self.finished = Counter[str]()  # finish reason -> requests
        self.unavailable = ""  # why no request is served now; "" if requests are
        self.draining = False
        self._tickets: dict[str, Ticket] = {}
        self._deaths: list[float] = []
        self._lost = self._down = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="workload")
        self._thread.start()

    @property
    def held(self) -> int:
        """Number of requests that wait or run."""
        return len(self._tickets)

    def submit(self, *tickets: Ticket) -> None:
        """Takes all requests or none.

        Raises:
            InvalidRequest: this server cannot serve one of them.
            QueueFull: too many requests wait.
            Unavailable: the worker is down, or the server is ending.
        """
        for ticket in tickets:
            self.limits.check(ticket.request)
        with self._changed:
            if self.unavailable or self.draining:
                problem = self.unavailable or "The server ends."
                raise Unavailable(problem, self.limits.retry_after)
            places = self.scheduler.places - len(self.scheduler.running)
            waiting = len(self.scheduler.waiting) - places  # a free place means no wait
            self.limits.check_queue(waiting + len(tickets) - 1)
            for ticket in tickets:
                self.scheduler.submit(ticket.request)
                self._tickets[ticket.request.id] = ticket
            self._changed.notify()

    def finish(self, request_id: str, reason: FinishReason) -> None:
        """Ends a request unless it has ended; its place is free from the next step."""
        with self._changed:
            if self._tickets.pop(request_id, None):
                self.scheduler.finish(request_id, reason)
                self.finished[reason] += 1

    def close(self, drain_seconds: float = 0.0) -> None:
        """Refuses new requests, waits at most `drain_seconds` for the others, then ends all."""
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
            except Exception as error:  # a fault of ours: no client may wait forever
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
            self.counts.guessed_tokens += sum(chunk.guesses for chunk in step.chunks)
            self.counts.right_guesses += sum(max(0, len(o.tokens) - 1) for o in result.outcomes)
            for sequence in self.scheduler.update(step, result):
                self._tell(sequence)

    def _look(self) -> None:
        """Checks an idle worker: it may have died, need a restart, or have become ready."""
        if self._lost:
            self._lost = False
            self.executor.restart()
        elif not self._down and self.executor.ready(0):
            self.unavailable = ""

    def _recover(self, error: Exception, final: bool = False) -> None:
        """Ends the requests that cannot be run again; the others wait for the next worker."""
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
            self._end(self._tickets[request.id], Delta(error=error), FinishReason.DEADLINE)

    def _fail(self, tickets: Iterable[Ticket]) -> None:
        problem = self.unavailable or "The server ends."
        for ticket in list(tickets):
            self.scheduler.finish(ticket.request.id, FinishReason.ERROR)
            error = Unavailable(problem, self.limits.retry_after)
            self._end(ticket, Delta(error=error), FinishReason.ERROR)

    def _tell(self, sequence: Sequence) -> None:
        """Delivers what is new of a sequence."""
        ticket = self._tickets[sequence.request.id]
        tokens = tuple(sequence.tokens[len(sequence.request.prompt) + ticket.sent :])
        delta = Delta(
            tokens=tokens,
            logprobs=tuple(sequence.logprobs[ticket.sent :]),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if not ticket.sent else (),
            embedding=sequence.embedding,
            finish_reason=sequence.finish_reason,
            error=InvalidRequest(sequence.error) if sequence.error else None,
        )
        ticket.sent += len(tokens)
        self.counts.generated_tokens += len(tokens)
        if sequence.finish_reason is not None:
            self._end(ticket, delta, sequence.finish_reason)
        else:
            ticket.deliver(delta)

    def _end(self, ticket: Ticket, delta: Delta, reason: FinishReason) -> None:
        """Forgets a request that the scheduler has ended, and delivers its last piece."""
        del self._tickets[ticket.request.id]
        self.finished[reason] += 1
        ticket.deliver(delta)
