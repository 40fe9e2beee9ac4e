"""Guesses tokens with a second, cheaper model."""

from collections.abc import Sequence

from serving_from_scratch.core.batching import make_strategy
from serving_from_scratch.core.memory import Memory
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import StepResult
from serving_from_scratch.model.runner import ModelRunner


class Draft:
    """Guesses what a draft model would say, greedily.

    The draft model answers like any other: the text is a request for k tokens. A memory with
    prefixes finds the text's beginning from the last time, so only new tokens are computed.

    Args:
        runner: the draft model; it must have the tokens of the model that it guesses for.
        memory: of the runner's cache; `options.memory(prefixes=True)` of its options.
        k: how many tokens are guessed.
        cost: of one guess, in steps of the large model.
    """

    def __init__(self, runner: ModelRunner, memory: Memory, k: int, cost: float) -> None:
        self.runner = runner
        self.k = k
        self.cost = cost
        self._scheduler = Scheduler(make_strategy("one-by-one"), memory, places=1)

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        room = min(self.k, self._scheduler.memory.capacity - len(tokens))
        if room < 1:
            return ()
        sampling = SamplingParameters(max_tokens=room, ignore_eos=True)
        guess = self._scheduler.submit(Request("draft", tuple(tokens), sampling))
        while step := self._scheduler.schedule():
            self._scheduler.update(step, StepResult(self.runner.run(step), 0.0))
        return guess.generated
