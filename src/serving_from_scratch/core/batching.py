"""Decides who computes next: five batching strategies behind one method.

A new strategy needs one method:

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
Plan = dict[Sequence, int]  # tokens of each sequence that the next step computes


@dataclass(frozen=True, slots=True)
class Budget:
    """What the next step may use.

    Attributes:
        places: how many more sequences may run.
        tokens: how many tokens a step should compute; a single longer prompt is allowed.
        now: seconds of the clock of `Request.arrived`.
    """

    places: int
    tokens: int
    now: float = 0.0


class BatchingStrategy(Protocol):
    """Plans one step.

    - `waiting` and `running` are in the order of arrival.
    - A planned sequence that waits is admitted, in the plan's order.
    - A running sequence that is not planned pauses. An empty plan waits.
    - `chunks`: whether prompts are split; the cache must then keep what was computed.
    - A strategy may have `tokens`: the most that a step computes, guesses included.
    """

    @property
    def chunks(self) -> bool: ...

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan: ...


class OneByOne:
    """Serves one request from its first to its last token, then the next."""

    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        return whole([*running, *waiting][:1])


@dataclass(frozen=True)
class Static:
    """Starts up to `size` requests together; none joins until all have ended."""

    size: int
    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        return whole(running or waiting[: min(self.size, budget.places)])


@dataclass(frozen=True)
class Dynamic:
    """Waits for a full batch, but at most `max_wait` seconds; then works like `Static`."""

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
    """Lets requests join and leave at every step; a prompt is computed in one step."""

    chunks = False

    def plan(self, waiting: Sequences, running: Sequences, budget: Budget) -> Plan:
        plan = whole(running)
        room = budget.tokens - sum(plan.values())
        for joined, sequence in enumerate(waiting[: budget.places]):
            # The first joins at any length: otherwise a long prompt would wait forever.
            if joined and sequence.pending > room:
                break
            plan[sequence] = sequence.pending
            room -= sequence.pending
        return plan


@dataclass(frozen=True)
class ChunkedPrefill:
    """Works like `Continuous`, but cuts prompts so that a step computes at most `tokens` tokens.

    Decoding sequences come first: a long prompt delays their next token by one chunk only.
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
    """Plans all pending tokens of each sequence."""
    return {sequence: sequence.pending for sequence in sequences}


def make_strategy(
    name: str, size: int = 8, chunk: int = 256, max_wait: float = 0.05
) -> BatchingStrategy:
    """Makes a strategy by its name.

    Raises:
        ServingError: lists the known names.
    """
    known: dict[str, BatchingStrategy] = {
        "one-by-one": OneByOne(),
        "static": Static(size),
        "dynamic": Dynamic(size, max_wait),
        "continuous": Continuous(),
        "chunked": ChunkedPrefill(chunk),
    }
    if name not in known:
        raise ServingError(f"strategy is {name!r}.", f"Choose one of {', '.join(known)}.")
    return known[name]
