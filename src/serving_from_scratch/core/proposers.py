"""Who guesses the next tokens: one step then checks several of them (speculative decoding)."""

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Guesses how a text goes on.

    A wrong guess costs the arithmetic of one token and never changes an answer: the model chooses
    every token itself, and guesses count as long as they are what it chose.
    """

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the likely next tokens of a text; none where it has no idea."""


class NoProposer:
    """Guesses nothing."""

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        return ()
