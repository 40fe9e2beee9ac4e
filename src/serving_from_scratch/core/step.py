"""One step of computation: what goes to the model and what comes back. Plain values only."""

from dataclasses import dataclass

from serving_from_scratch.core.request import GREEDY, SamplingParameters, TokenLogprob


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence that one step computes: a prompt, a part of it, or one new token.

    Attributes:
        request: the id of the request.
        slot: the sequence's place in the cache.
        start: the position of the first token.
        tokens: token ids at the positions start, start + 1, ...
        sample: whether the token after the last one is wanted.
        sampling: how to choose it.
        seed: of the request's own random numbers.
        targets: the tokens that follow each of `tokens`, where their log probabilities are wanted.
        blocks: the sequence's pages, where the cache has pages.
        embed: whether the hidden state of the last token is wanted.
        guesses: how many of the last tokens are guesses; they are checked one after the other.
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
    """One forward pass over chunks of several sequences; the copies come first, in order."""

    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...] = ()

    @property
    def tokens(self) -> int:
        """The length of the row that the model computes."""
        return sum(len(chunk.tokens) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step found for one chunk.

    Attributes:
        tokens: the new tokens: none in mid-prompt, one, or more where guesses were right.
        logprobs: one entry a new token, where they were asked for.
        prompt_logprobs: one entry a target.
        embedding: the hidden state of the last token, of length one.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """One outcome a chunk, in the order of the step, and the seconds that the step took."""

    outcomes: tuple[Outcome, ...]
    seconds: float
