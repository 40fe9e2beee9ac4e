"""Serves requests at their arrival times, in the caller's thread, and records every step."""

import itertools
import statistics
import time
from dataclasses import dataclass, field

from serving_from_scratch.core.request import Request, Sequence
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Step
from serving_from_scratch.engine.executor import Executor


@dataclass(frozen=True)
class Moment:
    """One step; it began and ended at these seconds from the start."""

    step: Step
    started: float
    ended: float


@dataclass
class Timeline:
    """When each request computed. All times are seconds from the start.

    Attributes:
        moments: the steps in order.
        sequences: the sequences, by the request's id.
        tokens: when each token was ready, by the request's id.
    """

    moments: list[Moment] = field(default_factory=list)
    sequences: dict[str, Sequence] = field(default_factory=dict)
    tokens: dict[str, list[float]] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, list[int]]:
        return {id: sequence.generated for id, sequence in self.sequences.items()}

    @property
    def output_tokens_per_second(self) -> float:
        return sum(map(len, self.tokens.values())) / self.moments[-1].ended

    def ttft(self) -> list[float]:
        """Returns the seconds from each request's arrival to its first token."""
        return [self.tokens[id][0] - s.request.arrived for id, s in self.sequences.items()]

    def gaps(self) -> list[float]:
        """Returns the seconds between each two tokens of the same answer."""
        pairs = itertools.chain.from_iterable(map(itertools.pairwise, self.tokens.values()))
        return [later - earlier for earlier, later in pairs]

    def row_length(self) -> float:
        """Computes the mean number of tokens per step."""
        return statistics.fmean(moment.step.tokens for moment in self.moments)


def replay(scheduler: Scheduler, executor: Executor, requests: list[Request]) -> Timeline:
    """Serves all requests; `Request.arrived` counts from the start."""
    timeline, start = Timeline(), time.perf_counter()
    coming = sorted(requests, key=lambda request: request.arrived)
    while coming or scheduler.waiting or scheduler.running:
        now = time.perf_counter() - start
        while coming and coming[0].arrived <= now:
            sequence = scheduler.submit(coming.pop(0))
            timeline.sequences[sequence.request.id] = sequence
            timeline.tokens[sequence.request.id] = []
        if step := scheduler.schedule(now):
            result = executor.step(step)
            ended = time.perf_counter() - start
            timeline.moments.append(Moment(step, now, ended))
            for sequence in scheduler.update(step, result):
                timeline.tokens[sequence.request.id].append(ended)
        else:  # no request has arrived, or the strategy waits for more
            time.sleep(0.001)
    return timeline
