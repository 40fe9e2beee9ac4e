"""Guesses next tokens, so that one step checks several of them (speculative decoding).

One step with k guesses costs 1 + k x cost plain steps and gives 1 + k x share tokens, where `share`
is the share of right guesses. So guessing pays exactly while share > cost. `Guessing` watches the
share of each answer and pauses where guessing does not pay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serving_from_scratch.core.errors import ServingError

UNKNOWN = -1  # a token that the draft model, which runs beside the model, is to guess
CHECK = 0.1  # the cost of checking one guess of one sequence, in plain steps
MEMORY = 0.8  # how much of the recent share of right guesses stays after one more step
PAUSE = 16  # steps without guesses, after which guessing is tried again


class Proposer(Protocol):
    """Guesses how a text continues.

    A wrong guess costs the arithmetic of one token and never changes an answer. The model chooses
    every token; a guess counts only if it equals the model's choice. For a guess that is not drawn
    at random, this is the rejection sampling of Leviathan et al. (2023): the guess is accepted with
    the model's probability of it, and otherwise the token comes from the other probabilities.
    """

    @property
    def cost(self) -> float:
        """The cost of one guess, to make it and to check it, in plain steps."""

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        """Returns the likely next tokens of a text; may be empty."""


class NoProposer:
    """Guesses nothing."""

    cost = 0.0

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        return ()


@dataclass(frozen=True)
class NGram:
    """Guesses that the text repeats itself: looks for its last tokens earlier in the text.

    Args:
        n: the longest end of the text that is looked for, in tokens; ends of two are the shortest.
        k: how many tokens are guessed.
        cost: of one guess, in plain steps.
    """

    n: int = 3
    k: int = 5
    cost: float = CHECK

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        tokens = list(tokens)
        for length in range(self.n, 1, -1):
            end = tokens[-length:]
            for start in range(len(tokens) - length - 1, -1, -1):  # the latest place first
                if tokens[start : start + length] == end:
                    return tokens[start + length : start + length + self.k]
        return ()


@dataclass(frozen=True)
class Draft:
    """Leaves the guesses to a draft model, which runs where the model runs (`DraftRunner`).

    Args:
        k: how many tokens are guessed.
        cost: of one guess, in plain steps.
    """

    k: int = 5
    cost: float = 2 * CHECK

    def propose(self, tokens: Sequence[int]) -> Sequence[int]:
        return (UNKNOWN,) * self.k


@dataclass(slots=True)
class Guessing:
    """Counts the guesses of one answer, and pauses when they do not pay.

    Attributes:
        guessed: number of guesses that were checked.
        right: how many of them were right.
        share: of right guesses; recent ones count most.
        pause: for how many more steps nothing is guessed.
    """

    guessed: int = 0
    right: int = 0
    share: float = 0.5
    pause: int = 0

    def rests(self) -> bool:
        """Returns whether this step is part of a pause; counts the step."""
        if not self.pause:
            return False
        self.pause -= 1
        return True

    def learn(self, guessed: int, right: int, cost: float) -> None:
        """Takes the result of one step's guesses."""
        self.guessed += guessed
        self.right += right
        self.share = MEMORY * self.share + (1 - MEMORY) * right / guessed
        if self.share <= cost:
            self.share, self.pause = 2 * cost, PAUSE  # a short second chance after the pause


def make_proposer(name: str, guesses: int = 5, draft_cost: float = CHECK) -> Proposer:
    """Makes a proposer by its name; `draft_cost` is that of making a guess, in plain steps.

    Raises:
        ServingError: lists the known names.
    """
    known: dict[str, Proposer] = {
        "none": NoProposer(),
        "ngram": NGram(k=guesses),
        "draft": Draft(guesses, CHECK + draft_cost),
    }
    if name not in known:
        raise ServingError(f"proposer is {name!r}.", f"Choose one of {', '.join(known)}.")
    if guesses < 1:
        raise ServingError(f"guesses is {guesses}.", "Guess at least one token.")
    return known[name]


def speed_up(share: float, guesses: float, cost: float) -> float:
    """Predicts how many times faster decoding is with guesses.

    Args:
        share: of right guesses.
        guesses: per step, on average.
        cost: of one guess, in plain steps.
    """
    return (1 + share * guesses) / (1 + cost * guesses)
