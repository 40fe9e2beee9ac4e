"""Plans how log-likelihoods are asked: with as few tokens as the engine answers exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Tokens = tuple[int, ...]
Answer = tuple[float, bool]  # log-likelihood; whether greedy decoding writes the continuation

MOST_LABELS = 128  # vLLM takes no more `logprob_token_ids` in a request
PROMPT_TOKENS = 16  # what one more prompt costs beside its own tokens, counted in tokens


@dataclass(frozen=True)
class Wanted:
    """One log-likelihood that lm-eval asks for: a continuation of a context, as tokens."""

    context: Tokens
    continuation: Tokens

    @property
    def tokens(self) -> int:
        """Prompt tokens that an echo computes."""
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class Step:
    """A prompt, and the next tokens (labels) whose log-probabilities are asked."""

    prompt: Tokens
    labels: Tokens


@dataclass(frozen=True)
class NextToken:
    """The answer to a step: the labels' log-probabilities, and that of the likeliest token."""

    logprobs: Mapping[int, float]
    likeliest: float


@dataclass(frozen=True)
class Question:
    """Continuations of one context that are read from next tokens.

    Attributes:
        continuations: place among the wanted log-likelihoods -> tokens.
    """

    context: Tokens
    continuations: Mapping[int, Tokens]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The context, then the context with one, two, ... tokens of its longer continuations."""
        labels: dict[Tokens, set[int]] = defaultdict(set)
        for tokens in self.continuations.values():
            for length, token in enumerate(tokens):
                labels[tokens[:length]].add(token)
        ordered = sorted(labels, key=lambda tokens: (len(tokens), tokens))
        return tuple(Step(self.context + begun, tuple(sorted(labels[begun]))) for begun in ordered)

    def answers(self, found: Mapping[Tokens, NextToken]) -> dict[int, Answer]:
        """Place -> answer, from what was answered to each prompt of the steps."""
        answers = {}
        for place, tokens in self.continuations.items():
            begun = [self.context + tokens[:length] for length in range(len(tokens))]
            steps = [(found[prompt], token) for prompt, token in zip(begun, tokens, strict=True)]
            greedy = all(step.logprobs[token] >= step.likeliest for step, token in steps)
            answers[place] = sum(step.logprobs[token] for step, token in steps), greedy
        return answers

    def computed(self, block: int) -> int:
        """Prompt tokens computed where a cache holds the whole blocks of the prompts before."""
        first, *others = self.steps
        return len(first.prompt) + sum((len(step.prompt) - 1) % block + 1 for step in others)


def plan(wanted: Sequence[Wanted], block: int | None) -> list[Question]:
    """Chooses the log-likelihoods that are read from next tokens; the others are to be echoed.

    One prompt answers all continuations of a context that have one token. Longer ones are read
    token by token where that computes fewer tokens than their echoes, which bypass the prefix
    cache.

    Args:
        wanted: the log-likelihoods.
        block: tokens of a block of the prefix cache; None if the engine has none.

    Returns:
        Questions in the order of their tokens: contexts that begin alike follow each other, and
        meet in the cache.
    """
    contexts: dict[Tokens, list[int]] = defaultdict(list)
    for place, one in enumerate(wanted):
        contexts[one.context].append(place)
    questions = []
    for context, places in sorted(contexts.items()):
        chosen = _cheapest(wanted, places, block) if context else []
        question = Question(context, {place: wanted[place].continuation for place in chosen})
        if chosen and max(len(step.labels) for step in question.steps) <= MOST_LABELS:
            questions.append(question)
    return questions


def _cheapest(wanted: Sequence[Wanted], places: Sequence[int], block: int | None) -> list[int]:
    """Which continuations of one context are cheapest to read from next tokens.

    Those of one token always; of the longer ones none, the shortest, the two shortest, ... or all.
    """
    readable = [place for place in places if wanted[place].continuation]
    by_length = sorted(readable, key=lambda place: wanted[place].tokens)
    single = sum(len(wanted[place].continuation) == 1 for place in by_length)
    if block is None:
        return by_length[:single]

    def cost(number: int) -> int:
        echoes = sum(wanted[place].tokens + PROMPT_TOKENS for place in by_length[number:])
        if number == 0:
            return echoes
        read = {place: wanted[place].continuation for place in by_length[:number]}
        question = Question(wanted[by_length[0]].context, read)
        return echoes + question.computed(block) + PROMPT_TOKENS * len(question.steps)

    return by_length[: min(range(single, len(by_length) + 1), key=cost)]


def batches(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Runs of whole questions with at least `size` steps, the last one excepted."""
    batch: list[Question] = []
    for question in questions:
        batch.append(question)
        if sum(len(one.steps) for one in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def requests(steps: Sequence[Step], size: int) -> Iterator[list[Step]]:
    """Runs of at most `size` steps, with no more different labels than a request may have."""
    request: list[Step] = []
    labels: set[int] = set()
    for step in steps:
        if request and (len(request) == size or len(labels.union(step.labels)) > MOST_LABELS):
            yield request
            request, labels = [], set()
        request.append(step)
        labels.update(step.labels)
    if request:
        yield request
