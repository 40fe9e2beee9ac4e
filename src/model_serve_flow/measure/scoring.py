"""Plans how to read log-likelihoods with as few prompt tokens as an exact answer allows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Tokens = tuple[int, ...]
Answer = tuple[float, bool]  # (log-likelihood, whether greedy decoding writes the continuation)

MOST_LABELS = 128  # the most `logprob_token_ids` that an engine accepts in a request
PROMPT_TOKENS = 16  # overhead of one more prompt, in tokens


@dataclass(frozen=True)
class Wanted:
    """A log-likelihood that lm-eval asks for: of a continuation after a context, as tokens."""

    context: Tokens
    continuation: Tokens

    @property
    def tokens(self) -> int:
        """Returns the prompt tokens that the engine computes for an echo."""
        return len(self.context) + len(self.continuation)


@dataclass(frozen=True)
class Step:
    """A prompt, and the next tokens (labels) whose log-probabilities are asked for."""

    prompt: Tokens
    labels: Tokens


@dataclass(frozen=True)
class NextToken:
    """The answer to a `Step`: log-probabilities of the labels and of the likeliest token."""

    logprobs: Mapping[int, float]
    likeliest: float


@dataclass(frozen=True)
class Question:
    """Continuations of one context whose log-likelihoods are read from next tokens.

    Attributes:
        context: the tokens before the continuations.
        continuations: place in the list of wanted log-likelihoods -> tokens.
    """

    context: Tokens
    continuations: Mapping[int, Tokens]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Lists the prompts: the context alone, and the context with the begun continuations.

        Of a continuation of n tokens, the prompts contain the first 0, 1, ... n - 1 tokens.
        """
        labels: dict[Tokens, set[int]] = defaultdict(set)
        for tokens in self.continuations.values():
            for length, token in enumerate(tokens):
                labels[tokens[:length]].add(token)
        ordered = sorted(labels, key=lambda tokens: (len(tokens), tokens))
        return tuple(Step(self.context + begun, tuple(sorted(labels[begun]))) for begun in ordered)

    def answers(self, found: Mapping[Tokens, NextToken]) -> dict[int, Answer]:
        """Computes place -> answer.

        Args:
            found: prompt of a `Step` -> its answer.
        """
        answers = {}
        for place, tokens in self.continuations.items():
            begun = [self.context + tokens[:length] for length in range(len(tokens))]
            steps = [(found[prompt], token) for prompt, token in zip(begun, tokens, strict=True)]
            greedy = all(step.logprobs[token] >= step.likeliest for step, token in steps)
            answers[place] = sum(step.logprobs[token] for step, token in steps), greedy
        return answers

    def computed(self, block: int) -> int:
        """Counts the prompt tokens that the engine computes with a prefix cache.

        The cache holds the whole blocks of earlier prompts.

        Args:
            block: tokens in a block of the cache.
        """
        first, *others = self.steps
        return len(first.prompt) + sum((len(step.prompt) - 1) % block + 1 for step in others)


def plan(wanted: Sequence[Wanted], block: int | None) -> list[Question]:
    """Chooses the log-likelihoods that are read from next tokens; the others are echoed.

    One prompt answers all continuations of a context that have one token. Longer continuations are
    read token by token if their prompts need fewer tokens than their echoes. Echoes bypass the
    prefix cache.

    Args:
        wanted: the log-likelihoods.
        block: tokens in a block of the prefix cache; None if the engine has no prefix cache.

    Returns:
        Questions sorted by their tokens, so that contexts with the same beginning follow each other
        and share the cache.
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
    """Chooses the continuations of one context that are cheaper to read from next tokens.

    Continuations of one token are always chosen. Of the longer continuations the function chooses
    none, the shortest, the two shortest, ... or all.
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
    """Yields groups of whole questions with at least `size` steps; the last may have fewer."""
    batch: list[Question] = []
    for question in questions:
        batch.append(question)
        if sum(len(one.steps) for one in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def requests(steps: Sequence[Step], size: int) -> Iterator[list[Step]]:
    """Yields groups of at most `size` steps, with no more labels than a request may have."""
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
