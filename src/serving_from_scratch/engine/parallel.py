"""Runs steps in several worker processes: tensor, pipeline and data parallel."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelFacts, ModelOptions, Rank
from serving_from_scratch.core.step import Step, StepResult
from serving_from_scratch.engine.executor import WorkerDied, WorkerProcess


class Ranks:
    """Computes each step with several workers, each on its own cores.

    If one of them dies, all are killed: alone, none can compute.

    Args:
        options: of the model; `threads` 0 shares the cores.
        ranks: number of workers.
        step_seconds: as of WorkerProcess.

    Raises:
        ServingError: there are fewer cores than ranks, or ranks that share a model have a draft.
    """

    kind = ""  # in which way a model is split; "": each has all of it
    facts: ModelFacts

    def __init__(self, options: ModelOptions, ranks: int = 2, step_seconds: float = 30.0) -> None:
        cores = len(os.sched_getaffinity(0))
        if not 1 <= ranks <= cores:
            problem = f"{ranks} ranks need as many cores; this process may use {cores}."
            raise ServingError(problem, f"Start 1 to {cores} ranks.")
        if options.draft and self.kind:
            problem = f"{type(self).__name__} has no draft model."
            raise ServingError(problem, "Take another proposer, or data parallel.")
        self.options = replace(options, threads=options.threads or cores // ranks)
        self.ranks, self.step_seconds = ranks, step_seconds
        self._start()

    def step(self, step: Step) -> StepResult:
        with self._all_or_none():
            for worker in self.workers:
                worker.send(step)
            results = self._receive(self.workers)
        (outcomes,) = (result.outcomes for result in results if result.outcomes)  # of one rank
        return replace(slowest(results), outcomes=outcomes)

    def ready(self, seconds: float) -> bool:
        with self._all_or_none():
            loaded = [worker.ready(seconds / self.ranks) for worker in self.workers]
        if all(loaded):
            self.facts = self.workers[0].facts
        return all(loaded)

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """Kills all workers and waits until they have ended."""
        for worker in self.workers:
            worker.close()
        self._folder.cleanup()

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Kills all workers if one has died."""
        try:
            yield
        except WorkerDied:
            self.close()
            raise

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        meeting = (Path(self._folder.name) / "meeting").as_uri()
        ranks = [Rank(number, self.ranks, self.kind, meeting) for number in range(self.ranks)]
        options = [replace(self.options, rank=rank if self.kind else None) for rank in ranks]
        self.workers = [WorkerProcess(each, self.step_seconds) for each in options]

    def _receive(self, workers: list[WorkerProcess]) -> list[StepResult]:
        """Waits for one result of each worker; the first worker that dies ends the wait."""
        results: dict[WorkerProcess, StepResult] = {}
        while missing := [worker for worker in workers if worker not in results]:
            spoke = wait([worker.pipe for worker in missing], self.step_seconds)
            for worker in missing:
                if worker.pipe in spoke or not spoke:  # a silent one dies when it is asked
                    results[worker] = worker.receive()
        return [results[worker] for worker in workers]


class TensorParallel(Ranks):
    """Every worker computes some heads and a part of the MLP of every layer."""

    kind = "tensor"


class PipelineParallel(Ranks):
    """Every worker computes some layers; one step runs at a time, so the others wait."""

    kind = "pipeline"


class DataParallel(Ranks):
    """Every worker has the whole model and computes its own sequences, by their slots.

    A step waits for the slowest worker. Caches are not shared: no copies, no pages.
    """

    def step(self, step: Step) -> StepResult:
        if step.copies:
            raise ServingError("Workers share no beginnings.", "Switch prefixes off.")
        parts = {
            worker: tuple(c for c in step.chunks if c.slot % self.ranks == number)
            for number, worker in enumerate(self.workers)
        }
        busy = [worker for worker in self.workers if parts[worker]]
        with self._all_or_none():
            for worker in busy:
                worker.send(Step(parts[worker]))
            results = self._receive(busy)
        pairs = (
            zip(parts[worker], result.outcomes, strict=True)
            for worker, result in zip(busy, results, strict=True)
        )
        found = {chunk.request: outcome for part in pairs for chunk, outcome in part}
        outcomes = tuple(found[chunk.request] for chunk in step.chunks)
        return replace(slowest(results), outcomes=outcomes)

    def _start(self) -> None:
        if self.options.cache == "paged":
            raise ServingError("Workers share no pages.", 'Choose cache "slots" or "none".')
        super()._start()


def slowest(results: list[StepResult]) -> StepResult:
    """Returns the result of the slowest worker, with the bytes that all of them sent."""
    last = max(results, key=lambda result: result.seconds)
    return replace(last, sent=sum(result.sent for result in results))
