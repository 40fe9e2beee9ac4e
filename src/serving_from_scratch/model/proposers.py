"""Guesses tokens with a second, cheaper model."""

from dataclasses import replace

from serving_from_scratch.core.batching import make_strategy
from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.memory import Memory
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Outcome, Step, StepResult
from serving_from_scratch.model.runner import ModelRunner


class DraftRunner(ModelRunner):
    """A model that checks what a draft model says, greedily.

    The draft model answers like any other: each text is a request for its guesses, and all texts
    of a step are answered together. A memory with prefixes finds the beginnings of the texts from
    the last time, so only new tokens are computed.

    Args:
        runner: the model.
        draft: the draft model.
        memory: of the draft's cache; `options.memory(prefixes=True)` of its options.
        places: how many texts the draft's cache holds.

    Raises:
        ServingError: the models have other numbers of tokens.
    """

    def __init__(
        self, runner: ModelRunner, draft: ModelRunner, memory: Memory, places: int
    ) -> None:
        model, folder = runner.model, str(runner.folder)
        super().__init__(model, runner.cache, runner.backend, runner.facts, folder)
        self.draft = draft
        self._scheduler = Scheduler(make_strategy("continuous"), memory, places)
        own, other = draft.facts.vocabulary, runner.facts.vocabulary
        if own != other:
            problem = f"The draft model has {own} tokens; the model has {other}."
            raise ServingError(problem, "Choose a draft model of the same family.")

    def run(self, step: Step) -> tuple[Outcome, ...]:
        """Guesses the unknown tokens of a step, then computes it."""
        texts = {c.request: self._scheduler.submit(wanted(c)) for c in step.chunks if c.text}
        while following := self._scheduler.schedule():
            outcomes = self.draft.run(following)
            self._scheduler.update(following, StepResult(outcomes, seconds=0.0))
        chunks = (
            with_guesses(chunk, texts[chunk.request].generated) if chunk.text else chunk
            for chunk in step.chunks
        )
        return super().run(replace(step, chunks=tuple(chunks)))


def wanted(chunk: Chunk) -> Request:
    """Makes the draft model's request for the guesses of a chunk."""
    sampling = SamplingParameters(max_tokens=chunk.guesses, ignore_eos=True)
    return Request(chunk.request, chunk.text, sampling)


def with_guesses(chunk: Chunk, guesses: list[int]) -> Chunk:
    """Replaces the unknown tokens of a chunk."""
    return replace(chunk, tokens=(*chunk.tokens[: -chunk.guesses], *guesses))
