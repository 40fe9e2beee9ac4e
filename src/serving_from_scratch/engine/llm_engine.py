"""Answers the API's prompts with pieces of text, without blocking the event loop."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serving_from_scratch.core.batching import BatchingStrategy
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.options import ModelFacts, ModelOptions
from serving_from_scratch.core.proposers import Proposer
from serving_from_scratch.core.request import FinishReason, Request, SamplingParameters
from serving_from_scratch.core.scheduler import NO_PROPOSER, Scheduler
from serving_from_scratch.core.stopping import StopTexts
from serving_from_scratch.engine.executor import Executor, WorkerProcess
from serving_from_scratch.engine.text import Detokenizer, Text
from serving_from_scratch.engine.workload import Delta, Ticket, WorkloadManager


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        model: how the model is loaded.
        strategy: decides who computes next.
        prefixes: whether equal beginnings of texts are computed once.
        proposer: guesses tokens of running answers.
        step_seconds: a worker that is silent for longer is killed.
        max_waiting: how many requests may wait.
        request_seconds: the longest time of a request.
    """

    model: ModelOptions
    strategy: BatchingStrategy
    prefixes: bool = False
    proposer: Proposer = NO_PROPOSER
    step_seconds: float = 30.0
    max_waiting: int = 256
    request_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One wanted answer: a prompt and how to continue it; with `embed`, its embedding instead."""

    prompt: list[int]
    sampling: SamplingParameters
    embed: bool = False


class LLMEngine:
    """Answers prompts.

        async for delta in engine.generate([Job(prompt, sampling)]):
            print(delta.text, end="")

    Args:
        executor: computes the steps; None: a worker process.

    Raises:
        ServingError: the model cannot be loaded.
    """

    def __init__(self, options: EngineOptions, executor: Executor | None = None) -> None:
        self.options = options
        try:
            self.text = Text(Path(options.model.folder), options.model.length)
            if options.model.draft:
                self.text.check_same(Path(options.model.draft))
            self.memory = options.model.memory(options.prefixes)
            executor = executor or WorkerProcess(options.model, options.step_seconds)
            while not executor.ready(1):
                pass
            self.facts: ModelFacts = executor.facts
            longest = min(self.facts.max_length, self.memory.capacity)
            self.limits = Limits(self.facts.vocabulary, longest, options.max_waiting)
            scheduler = Scheduler(
                strategy=options.strategy,
                memory=self.memory,
                places=options.model.places,
                eos=self.facts.eos,
                proposer=options.proposer,
            )
        except BaseException:
            if executor is not None:
                executor.close()
            raise
        self.workload = WorkloadManager(scheduler, executor, self.limits)

    async def generate(
        self, jobs: list[Job], stream: bool = False, seconds: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Answers all jobs side by side; closing the iterator ends the jobs that still run.

        Args:
            jobs: the wanted answers.
            stream: whether the caller shows every piece at once.
            seconds: the caller's time limit.

        Raises:
            Refusal: the jobs are refused or cannot be completed.
        """
        deltas: asyncio.Queue[Delta] = asyncio.Queue()
        tickets = [self._ticket(*pair, deltas, stream, seconds) for pair in enumerate(jobs)]
        writers = [Writer(self.text, job.sampling.stop) for job in jobs]
        self.workload.submit(*tickets)
        try:
            running = set(range(len(jobs)))
            while running:
                delta = await deltas.get()
                if delta.error:
                    raise delta.error
                if delta.job not in running:  # its stop text was found during a step
                    continue
                delta = writers[delta.job].write(delta)
                if delta.finish_reason:
                    running.remove(delta.job)
                    self.abort(tickets[delta.job].request.id, delta.finish_reason)
                yield delta
        finally:
            for ticket in tickets:
                self.abort(ticket.request.id)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> None:
        """Ends a request; does nothing if it has ended."""
        self.workload.finish(request_id, reason)

    def health(self) -> str:
        """Says why no request is served now; "" if requests are served."""
        return self.workload.unavailable or ("The server ends." if self.workload.draining else "")

    def close(self, drain_seconds: float = 0.0) -> None:
        """Waits at most `drain_seconds` for running requests, then ends the worker; blocks."""
        self.workload.close(drain_seconds)

    def _ticket(
        self, number: int, job: Job, deltas: asyncio.Queue, stream: bool, seconds: float | None
    ) -> Ticket:
        now = time.monotonic()
        deadline = now + min(seconds or self.options.request_seconds, self.options.request_seconds)
        id = uuid.uuid4().hex
        request = Request(id, tuple(job.prompt), job.sampling, now, deadline, job.embed)
        return Ticket(request, into(deltas, number), stream)


class Writer:
    """Gives the pieces of one answer their text, up to the first stop text."""

    def __init__(self, text: Text, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(text.tokenizer)
        self._stops = StopTexts(stops)

    def write(self, delta: Delta) -> Delta:
        text, taken = "", 0
        # Right guesses may come after a stop text; they do not count.
        while taken < len(delta.tokens) and self._stops.stopped is None:
            text += self._stops.feed(self._detokenizer.feed(delta.tokens[taken]))
            taken += 1
        if delta.finish_reason:
            text += self._stops.feed(self._detokenizer.end()) + self._stops.end()
        met = self._stops.stopped is not None
        return replace(
            delta,
            text=text,
            tokens=delta.tokens[:taken],
            logprobs=delta.logprobs[:taken],
            finish_reason=FinishReason.STOP if met else delta.finish_reason,
        )


def into(deltas: asyncio.Queue, job: int) -> Callable[[Delta], None]:
    """Makes a function with which other threads put pieces into a queue of this event loop."""
    loop = asyncio.get_running_loop()

    def deliver(delta: Delta) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so no client waits
            loop.call_soon_threadsafe(deltas.put_nowait, replace(delta, job=job))

    return deliver
