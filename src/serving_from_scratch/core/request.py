"""Defines what a client asks for (`Request`) and the state of its answer (`Sequence`)."""

import math
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving_from_scratch.core.proposers import Guessing


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an end-of-sequence token, or a stop text
    LENGTH = "length"  # max_tokens
    ABORT = "abort"  # the client left
    DEADLINE = "deadline"
    ERROR = "error"  # the server could not complete it


class Status(StrEnum):
    """The state of a sequence."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen, and when to stop.

    Attributes:
        max_tokens: the longest answer, in tokens; 0 computes the prompt only.
        temperature: 0 takes the likeliest token.
        top_k: draws from the k likeliest tokens; 0: from all.
        top_p: draws from the likeliest tokens that together reach this probability.
        seed: the same seed gives the same text, whatever else the server computes; None: any.
        stop: texts that end the answer.
        ignore_eos: continues after an end-of-sequence token, until max_tokens.
        logprobs: how many of the likeliest tokens to report per new token; None: no report.
        prompt_logprobs: the same for the tokens of the prompt.
        grammar: what the answer must look like, as xgrammar's structural tag in JSON; "": free.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""


GREEDY = SamplingParameters()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how to answer it.

    Attributes:
        id: unique among the requests that a server holds.
        prompt: token ids.
        sampling: how to answer.
        arrived: seconds of the caller's monotonic clock.
        deadline: seconds of the same clock after which the answer is not needed.
        embed: whether to return the prompt's last hidden state instead of an answer.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParameters = GREEDY
    arrived: float = 0.0
    deadline: float = math.inf
    embed: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural logarithm of a token's probability, and the likeliest tokens at its position."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in progress: waiting -> running -> finished; when preempted, it waits again.

    Attributes:
        tokens: the prompt and the generated tokens.
        computed: how many tokens have their keys and values in the cache.
        slot: its place in the cache while it runs.
        blocks: its pages, in order, if the cache has pages.
        seed: of its random numbers.
        logprobs: one entry per generated token, if requested.
        prompt_logprobs: one entry per prompt token except the first, if requested.
        embedding: the last hidden state of the prompt, if requested.
        preemptions: how often it lost its place in the cache.
        guessing: its guessed tokens, right and wrong.
        error: why the model refuses it; "" if it does not.
    """

    request: Request
    tokens: list[int] = field(init=False)
    computed: int = 0
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None
    slot: Any = None  # an int while it runs
    blocks: list[int] = field(default_factory=list)
    seed: int = field(init=False)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    embedding: tuple[float, ...] | None = None
    preemptions: int = 0
    guessing: Guessing = field(default_factory=Guessing)
    error: str = ""

    def __post_init__(self) -> None:
        seed = self.request.sampling.seed
        self.tokens = list(self.request.prompt)
        self.seed = secrets.randbits(63) if seed is None else seed

    @property
    def pending(self) -> int:
        """How many tokens to compute before the next can be chosen; 1 in decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def decoding(self) -> bool:
        """Whether its prompt is computed and it has generated a token."""
        return len(self.tokens) > len(self.request.prompt)
