"""Computes steps: chunks of tokens in, new tokens out."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from serving_from_scratch.core.errors import InvalidRequest, ServingError
from serving_from_scratch.core.options import ModelFacts
from serving_from_scratch.core.request import TokenLogprob
from serving_from_scratch.core.step import Chunk, Outcome, Step
from serving_from_scratch.model.attention import AttentionBackend
from serving_from_scratch.model.kv_cache import KVCache
from serving_from_scratch.model.llama import Llama
from serving_from_scratch.model.row import Row
from serving_from_scratch.model.sampling import choose, logprob

if TYPE_CHECKING:
    from serving_from_scratch.model.grammar import Grammars

ROWS = 128  # prompt tokens whose logits are in memory at once: 25 MB for 49,152 token ids


class ModelRunner:
    """A model with its cache and its attention, as an executor runs it.

    Args:
        folder: the checkpoint, whose tokens grammars need.
    """

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        backend: AttentionBackend,
        facts: ModelFacts,
        folder: str,
    ) -> None:
        self.model = model
        self.cache = cache
        self.backend = backend
        self.facts = facts
        self.folder = Path(folder)

    @cached_property
    def grammars(self) -> "Grammars":
        # Imported here, because xgrammar imports transformers: seconds that few requests need.
        from serving_from_scratch.model.grammar import Grammars

        return Grammars(self.folder, self.facts.vocabulary, self.facts.eos)

    def run(self, step: Step) -> tuple[Outcome, ...]:
        """Computes a step; returns one outcome per chunk, in the step's order."""
        for copy in step.copies:
            self.cache.copy(copy)
        row = Row(step)
        hidden = self.model.forward(row, self.cache, self.backend)
        if not self.model.leads:  # another rank has the last hidden states
            return ()
        chosen = self._choose(row, hidden)
        outcomes: list[Outcome] = [Outcome()] * len(step.chunks)
        for place, (chunk, index) in enumerate(zip(row.chunks, row.order, strict=True)):
            end = row.ends[place] + 1
            states = hidden[end - len(chunk.tokens) : end]
            outcomes[index] = replace(
                chosen.get(place, Outcome()),
                prompt_logprobs=self._prompt_logprobs(chunk, states),
                embedding=unit(states[-1]) if chunk.embed else None,
            )
        return tuple(outcomes)

    def _choose(self, row: Row, hidden: Tensor) -> dict[int, Outcome]:
        """Chooses the next tokens of each chunk with `sample`, by the chunk's index in the row."""
        places = [place for place, chunk in enumerate(row.chunks) if chunk.sample]
        if not places:
            return {}
        rows: list[int] = []
        for place in places:
            last = row.ends[place]
            rows.extend(range(last - row.chunks[place].guesses, last + 1))
        logits = self.model.logits(hidden[rows])
        if not torch.isfinite(logits).all():
            raise ServingError("The model's scores are not finite.", "Load the checkpoint again.")
        scores = logits.split([row.chunks[place].guesses + 1 for place in places])
        found = zip(places, scores, strict=True)
        return {place: self._next(row.chunks[place], scores) for place, scores in found}

    def _next(self, chunk: Chunk, scores: Tensor) -> Outcome:
        """Chooses tokens up to the first wrong guess.

        Each is the token that would be chosen without guesses, sampled or greedy.

        Args:
            scores: (1 + guesses) x vocabulary.
        """
        first = chunk.end - chunk.guesses
        guesses = chunk.tokens[len(chunk.tokens) - chunk.guesses :]
        tokens: list[int] = []
        try:
            matcher = self.grammars.matcher(chunk) if chunk.sampling.grammar else None
            for place, logits in enumerate(scores):
                allowed = matcher.allowed(logits) if matcher else logits
                tokens.append(choose(allowed, chunk.sampling, chunk.seed, first + place))
                if matcher:
                    matcher.accept(tokens[-1])
                if tokens != list(guesses[: place + 1]):
                    break
        except InvalidRequest as error:
            return Outcome(error=error.problem)
        wanted = chunk.sampling.logprobs
        if wanted is None:
            return Outcome(tuple(tokens))
        pairs = zip(scores, tokens, strict=False)
        return Outcome(tuple(tokens), tuple(logprob(*pair, wanted) for pair in pairs))

    def _prompt_logprobs(self, chunk: Chunk, hidden: Tensor) -> tuple[TokenLogprob, ...]:
        found = []
        for start in range(0, len(chunk.targets), ROWS):
            targets = chunk.targets[start : start + ROWS]
            logits = self.model.logits(hidden[start : start + len(targets)])
            wanted = chunk.sampling.prompt_logprobs or 0
            found += [logprob(*pair, wanted) for pair in zip(logits, targets, strict=True)]
        return tuple(found)


def unit(hidden: Tensor) -> tuple[float, ...]:
    """Scales a hidden state to length one."""
    return tuple((hidden.float() / hidden.float().norm()).tolist())
