"""Who computes next: five batching strategies behind one method.

A reader adds a strategy in ten lines:

    class ShortestFirst(Continuous):
        def plan(self, waiting, running, budget):
            by_length = sorted(waiting, key=lambda sequence: sequence.pending)
            return super().plan(by_length, running, budget)
"""

import collections.abc as abc
from dataclasses import dataclass
from typing import Protocol

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.request import Sequence

Sequences = abc.Sequence[Sequence]
Plan = dict[Sequence, int]  # how many tokens of each sequence the next step computes


@dataclass(frozen=True, slots=True)
class Budget:
    """What the next step may use.

    Attributes:
        places: how many more sequences may run.
        tokens: how many tokens one step should compute; a single longer prompt is allowed.
        now: seconds of the clock that `Request.arrived` uses.
    """

    places: int
    tokens: int
    now: float = 0.0


class BatchingStrategy(Protocol):
    """Plans one step.

    `waiting` and `running` are in the order of arrival. A planned sequence that waits is admitted,
    in the plan's order; one that runs and is not planned pauses. An empty plan waits.
    `chunks` says whether prompts are split: the cache must then remember what was computed.
    """

    chunks: bool

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan: ...


class OneByOne:
    """Serves one request from its first to its last token, then the next."""

    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        return whole([*running, *waiting][:1])


@dataclass(frozen=True)
class Static:
    """Takes up to `size` requests together; nobody joins until the last of them has ended."""

    size: int
    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        return whole(running or waiting[: min(self.size, budget.places)])


@dataclass(frozen=True)
class Dynamic:
    """Waits for a full batch, though no request longer than `max_wait` seconds; then as static."""

    size: int
    max_wait: float
    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        size = min(self.size, budget.places)
        patient = waiting and budget.now - waiting[0].request.arrived < self.max_wait
        if not running and patient and len(waiting) < size:
            return {}
        return Static(self.size).plan(waiting, running, budget)


class Continuous:
    """Lets requests join and leave at every step; a prompt is computed whole."""

    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        plan = whole(running)
        room = budget.tokens - sum(plan.values())
        for joined, sequence in enumerate(waiting[: budget.places]):
            # The first one joins at any length: it would wait for ever otherwise.
            if joined and sequence.pending > room:
                break
            plan[sequence] = sequence.pending
            room -= sequence.pending
        return plan


@dataclass(frozen=True)
class ChunkedPrefill:
    """As continuous, but a step computes at most `tokens` tokens: a long prompt is cut into chunks.

    Sequences that decode come first, so that a long prompt delays their next token by one chunk.
    """

    tokens: int
    chunks = True

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        plan: Plan = {}
        room = min(self.tokens, budget.tokens)
        decode_first = sorted(running, key=lambda sequence: sequence.pending > 1)
        for sequence in [*decode_first, *waiting[: budget.places]]:
            if room == 0:
                break
            plan[sequence] = min(sequence.pending, room)
            room -= plan[sequence]
        return plan


def whole(sequences: abc.Iterable[Sequence]) -> Plan:
    """Plans everything that each sequence lacks for its next token."""
    return {sequence: sequence.pending for sequence in sequences}


def make_strategy(
    name: str,
    size: int = 8,
    chunk: int = 256,
    max_wait: float = 0.05,
) -> BatchingStrategy:
    """Makes a strategy by its name; raises ServingError that lists the known ones."""
    known = {
        "one-by-one": OneByOne(),
        "static": Static(size),
        "dynamic": Dynamic(size, max_wait),
        "continuous": Continuous(),
        "chunked": ChunkedPrefill(chunk),
    }
    if name not in known:
        raise ServingError(f"strategy is {name!r}.", f"Choose one of {', '.join(known)}.")
    return known[name]
