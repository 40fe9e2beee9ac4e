"""A model without arithmetic: its next token depends on every token before it, read from a cache.

It keeps the tokens themselves where a real model keeps keys and values. A wrong slot, page, copy or
position gives a wrong answer at once, without torch.
"""

import hashlib

from serving_from_scratch.core.request import TokenLogprob
from serving_from_scratch.core.step import Chunk, Outcome, Step, StepResult

VOCABULARY = 997


def next_token(text) -> int:
    digest = hashlib.blake2b(repr(list(text)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCABULARY


def spelled(prompt, tokens: int) -> list[int]:
    """What the model answers to one prompt alone."""
    text = list(prompt)
    for _ in range(tokens):
        text.append(next_token(text))
    return text[len(prompt) :]


class Speller:
    """An executor. Where chunks name blocks, it keeps pages; otherwise slots."""

    facts = None

    def __init__(self, block_tokens: int = 4) -> None:
        self.block_tokens = block_tokens
        self.cells: dict[tuple[int, int], int] = {}

    def step(self, step: Step) -> StepResult:
        for copy in step.copies:
            for position in range(copy.tokens):
                self.cells[copy.target, position] = self.cells[copy.source, position]
        for chunk in step.chunks:
            for position, token in enumerate(chunk.tokens, chunk.start):
                self.cells[self._cell(chunk, position)] = token
        return StepResult(tuple(self._outcome(chunk) for chunk in step.chunks), 0.0)

    def close(self) -> None:
        self.cells.clear()

    def _cell(self, chunk: Chunk, position: int) -> tuple[int, int]:
        if not chunk.blocks:
            return chunk.slot, position
        return chunk.blocks[position // self.block_tokens], position % self.block_tokens

    def _outcome(self, chunk: Chunk) -> Outcome:
        end = chunk.end - chunk.guesses
        text = [self.cells[self._cell(chunk, position)] for position in range(end)]
        targets = tuple(TokenLogprob(target, -1.0) for target in chunk.targets)
        embedding = (float(next_token(text)),) if chunk.embed else None
        tokens = self._chosen(chunk, text) if chunk.sample else ()
        wanted = chunk.sampling.logprobs is not None
        logprobs = tuple(TokenLogprob(token, -1.0) for token in tokens) if wanted else ()
        return Outcome(tokens, logprobs, targets, embedding)

    def _chosen(self, chunk: Chunk, text: list[int]) -> tuple[int, ...]:
        """The tokens up to the first that was not guessed."""
        end, tokens = len(text), []
        for position in range(end, chunk.end + 1):
            tokens.append(next_token([*text, *tokens]))
            if position == chunk.end or self.cells[self._cell(chunk, position)] != tokens[-1]:
                break
        return tuple(tokens)
