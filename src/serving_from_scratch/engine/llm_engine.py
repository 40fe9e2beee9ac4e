"""Answers the API's prompts with pieces of text, without blocking the event loop."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from serving_from_scratch.core.batching import BatchingStrategy
from serving_from_scratch.core.limits import Limits
from serving_from_scratch.core.proposers import Proposer
from serving_from_scratch.core.request import (
    FinishReason,
    Request,
    SamplingParameters,
    TokenLogprob,
)
from serving_from_scratch.core.scheduler import NO_PROPOSER, Scheduler
from serving_from_scratch.core.stopping import StopTexts
from serving_from_scratch.engine.executor import Executor, WorkerProcess
from serving_from_scratch.engine.messages import ModelFacts, ModelOptions
from serving_from_scratch.engine.text import Detokenizer, Text
from serving_from_scratch.engine.workload import News, Ticket, WorkloadManager


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        model: how the model is loaded.
        strategy: decides who computes next.
        prefixes: whether equal beginnings of texts are computed once.
        proposer: guesses tokens of running answers.
        step_tokens: how many tokens a step should compute.
        step_seconds: a worker that is silent for longer is killed.
        max_waiting: how many requests may wait.
        request_seconds: the longest time of a request.
    """

    model: ModelOptions
    strategy: BatchingStrategy
    prefixes: bool = False
    proposer: Proposer = NO_PROPOSER
    step_tokens: int = 8192
    step_seconds: float = 30.0
    max_waiting: int = 256
    request_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Job:
    """One wanted answer: a prompt and how to continue it; with `embed`, its embedding instead."""

    prompt: list[int]
    sampling: SamplingParameters
    embed: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of one answer.

    Attributes:
        job: the number of its job.
        text: the new text; may be empty until a character or a stop text is complete.
        tokens: the new token ids.
        finish_reason: in the last piece: "stop" or "length".
    """

    job: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    finish_reason: FinishReason | None = None


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
            self.limits = Limits(
                vocabulary=self.facts.vocabulary,
                max_length=min(self.facts.max_length, self.memory.capacity, options.model.length),
                max_waiting=options.max_waiting,
            )
            places, tokens = options.model.places, options.step_tokens
            scheduler = Scheduler(
                options.strategy, self.memory, places, tokens, self.facts.eos, options.proposer
            )
        except BaseException:
            if executor is not None:
                executor.close()
            raise
        self.workload = WorkloadManager(scheduler, executor, self.limits)

    async def generate(
        self, jobs: list[Job], stream: bool = False, seconds: float | None = None
    ) -> AsyncIterator[Delta]:
        """Answers all jobs side by side; closing the iterator ends the jobs that still run.

        Args:
            jobs: the wanted answers.
            stream: whether the caller shows every piece at once.
            seconds: the caller's time limit.

        Raises:
            Refusal: the jobs are refused or cannot be completed.
        """
        news: asyncio.Queue[tuple[int, News]] = asyncio.Queue()
        tickets = [self._ticket(*pair, news, stream, seconds) for pair in enumerate(jobs)]
        writers = [Writer(self.text, job.sampling.stop) for job in jobs]
        self.workload.submit(*tickets)
        try:
            running = set(range(len(jobs)))
            while running:
                place, item = await news.get()
                if item.error:
                    raise item.error
                if place not in running:  # its stop text was found during a step
                    continue
                delta = writers[place].write(place, item)
                if delta.finish_reason:
                    running.remove(place)
                    self.abort(tickets[place].request.id, delta.finish_reason)
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
        self,
        place: int,
        job: Job,
        news: asyncio.Queue,
        stream: bool,
        seconds: float | None,
    ) -> Ticket:
        now = time.monotonic()
        deadline = now + min(seconds or self.options.request_seconds, self.options.request_seconds)
        id = uuid.uuid4().hex
        request = Request(id, tuple(job.prompt), job.sampling, now, deadline, job.embed)
        return Ticket(request, into(news, place), stream)


class Writer:
    """Turns the news of one request into text, up to its first stop text."""

    def __init__(self, text: Text, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(text.tokenizer)
        self._stops = StopTexts(stops)

    def write(self, job: int, news: News) -> Delta:
        text, taken = "", 0
        # Right guesses may come after a stop text; they do not count.
        while taken < len(news.tokens) and self._stops.stopped is None:
            text += self._stops.feed(self._detokenizer.feed(news.tokens[taken]))
            taken += 1
        if news.finish_reason:
            text += self._stops.feed(self._detokenizer.end()) + self._stops.end()
        met = self._stops.stopped is not None
        return Delta(
            job=job,
            text=text,
            tokens=news.tokens[:taken],
            logprobs=news.logprobs[:taken],
            prompt_logprobs=news.prompt_logprobs,
            embedding=news.embedding,
            finish_reason=FinishReason.STOP if met else news.finish_reason,
        )


def into(news: asyncio.Queue, place: int) -> Callable[[News], None]:
    """Makes a function with which other threads put news into a queue of this event loop."""
    loop = asyncio.get_running_loop()

    def deliver(item: News) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended, so no client waits
            loop.call_soon_threadsafe(news.put_nowait, (place, item))

    return deliver
