"""Defines the input and the result of one step of computation, as plain values."""

from dataclasses import dataclass

from serving_from_scratch.core.request import GREEDY, SamplingParameters, TokenLogprob


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence for one step: a prompt, a part of it, or one new token.

    Attributes:
        request: the id of the request.
        slot: the sequence's place in the cache.
        start: the position of the first token.
        tokens: token ids at the positions start, start + 1, ...
        sample: whether to choose the next token.
        sampling: how to choose it.
        seed: of the request's random numbers.
        targets: the tokens that follow each of `tokens`, if their log probabilities are wanted.
        blocks: the sequence's pages, if the cache has pages.
        embed: whether the hidden state of the last token is wanted.
        guesses: how many of the last tokens are guesses, to be checked in order.
        answer: the tokens generated so far, if the answer has a grammar.
        text: all tokens so far, if a draft model is to make the guesses.
    """

    request: str
    slot: int
    start: int
    tokens: tuple[int, ...]
    sample: bool
    sampling: SamplingParameters = GREEDY
    seed: int = 0
    targets: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    embed: bool = False
    guesses: int = 0
    answer: tuple[int, ...] = ()
    text: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last token, guesses included."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Copy:
    """Copies the keys and values of the first `tokens` tokens from one slot to another."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass over chunks of several sequences; its copies are made first, in order."""

    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...] = ()

    @property
    def tokens(self) -> int:
        """The number of tokens in the row that the model computes."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step for one chunk.

    Attributes:
        tokens: new tokens: none inside a prompt, one, or more if guesses were right.
        logprobs: one entry per new token, if requested.
        prompt_logprobs: one entry per target.
        embedding: the hidden state of the last token, scaled to length one.
        error: why this request cannot be answered; "" if it can.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step.

    Attributes:
        outcomes: one per chunk, in the order of the step.
        seconds: that the step took.
        sent: bytes that one rank gave to others, if several ranks compute together.
        exchange: seconds of `seconds` in which it sent, received and waited for the others.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float
    sent: int = 0
    exchange: float = 0.0
