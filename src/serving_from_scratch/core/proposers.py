"""Guesses next tokens, so that one step checks several of them (speculative decoding)."""

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Guesses how a text continues.

    A wrong guess costs the arithmetic of one token and never changes an answer. The model chooses
    every token; a guess counts only if it equals the model's choice.
    """

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the likely next tokens of a text; may be empty."""


class NoProposer:
    """Guesses nothing."""

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        return ()
