"""Connects lm-eval to the endpoint; this module imports lm-eval, so import it late."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tqdm import tqdm

from model_serve_flow.errors import FlowError
from model_serve_flow.measure.next_tokens import NextTokenReader, not_whole
from model_serve_flow.measure.scoring import Answer, Question, Wanted, batches, plan
from model_serve_flow.system import live

NAME = "whole-completions"

# Largest accepted difference, in nats per token, between an echo and a next token of one prompt.
# Twice the largest difference that was seen (BF16, where sums depend on what is computed together).
MOST_DIFFERENCE = 1.0

# How lm-eval's requests were answered: the names in the result.
ONE_TOKEN, TOKEN_BY_TOKEN, ECHO = "one token", "token by token", "echo"
NO_LABELS = "echo: the engine gives no label probabilities"
TEXT, WRITTEN, EARLIER = "whole text", "written", "before an interruption"
CUT = "cut"  # prompts that lost their beginning; they count in one of the ways above too

# lm-eval's request: ((context, continuation) as text, or None for a window of a text; context and
# continuation as tokens)
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class KeyedHook(CacheHook):
    """Passes answers with a key to lm-eval's request cache, and drops answers without a key.

    A text that is scored as a whole is split into windows, and windows have no key. With several
    requests at a time, lm-eval 0.4.13 fails on answers without a key. The whole text has a key, and
    its answer is cached when all its windows are answered.
    """

    def __init__(self, hook: CacheHook) -> None:
        self.dbdict = hook.dbdict

    def add_partial(self, attr: str, req: Iterable[Any] | None, res: Any) -> None:
        if req is not None:
            super().add_partial(attr, req, res)


class Count:
    """Counts the answered requests for the runner's live line.

    The count belongs to the measurement that was reported last.
    """

    def __init__(self, unit: str, total: int) -> None:
        self.unit, self.total, self.done = unit, total, 0
        self.add(0)

    def add(self, number: int) -> None:
        """Adds answered requests; requests that are repeated as a check do not count."""
        self.done = min(self.done + number, self.total)
        live.report(None, self.done, self.total, self.unit)


@register_model(NAME)
class WholeCompletions(LocalCompletionsAPI):
    """lm-eval's `local-completions` with fewer prompt tokens and with complete answers only.

    Log-likelihoods of one context are read from the probabilities of its next token where this is
    exact and cheaper (`scoring.plan`). The others are echoed, as `local-completions` does. If the
    engine does not give these probabilities, all are echoed. Whole texts are asked as in
    `local-completions`.

    Every answer can be cached, so incomplete answers are refused. If an answer lacked a prompt,
    lm-eval would assign its scores to the wrong prompts. If an answer lacked text, lm-eval would
    score a text of its own.

    A prompt begins with the token that the endpoint would put before the same text: a BOS where the
    tokenizer writes one, and nothing before a chat template, which writes its own.

    Args:
        client: carries the server's address and key.
        cache_block: the engine's reader of its own metrics (`Engine.cache_block`).
        ways: counts lm-eval's requests by how they were asked.
        templated: whether prompts go through the chat template.
    """

    _progress: Count | None = None  # counts log-likelihoods and written answers
    _texts: Count | None = None  # counts whole texts; a text needs one or more requests

    def __init__(
        self,
        *,
        client: httpx.Client,
        cache_block: Callable[[str], int | None],
        ways: Counter[str],
        templated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ways = ways
        self.add_bos_token = not templated and writes_bos(self.tokenizer)
        self.reader = NextTokenReader(
            client,
            self.model,
            concurrency=max(1, self._concurrent),
            size=self._batch_size,
            seed=self._seed,
            attempts=self.max_retries,
            cache_block=cache_block,
        )

    async def amodel_call(self, *args: Any, messages: list[Any], **kwargs: Any) -> Any:
        answers = await super().amodel_call(*args, messages=messages, **kwargs)
        self._add(len(messages))
        return answers

    def model_call(self, messages: list[Any], **kwargs: Any) -> Any:
        answer = super().model_call(messages, **kwargs)
        self._add(len(messages))
        return answer

    def _add(self, answers: int) -> None:
        if self._progress is not None:
            self._progress.add(answers)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        super().set_cache_hook(KeyedHook(cache_hook))
        if kept := len(cache_hook.dbdict or ()):
            self.ways[EARLIER] += kept

    def loglikelihood_rolling(self, requests: list[Any], **kwargs: Any) -> list[float]:
        self.ways[TEXT] += len(requests)
        self._progress, self._texts = None, Count("texts", len(requests))
        begins, self.add_bos_token = self.add_bos_token, False  # each window gets one of lm-eval
        try:
            return super().loglikelihood_rolling(requests, **kwargs)
        finally:
            self.add_bos_token = begins

    def generate_until(self, requests: list[Any], **kwargs: Any) -> list[str]:
        self.ways[WRITTEN] += len(requests)
        self._count_cut(requests)
        self._progress = Count("requests", len(requests))
        return super().generate_until(requests, **kwargs)

    def _count_cut(self, requests: list[Any]) -> None:
        """Counts the prompts whose beginning lm-eval drops to leave room for the answer.

        Raises:
            FlowError: the answers that a task allows leave no room for any prompt.
        """
        for prompt, settings in (request.args for request in requests):
            answer = int(settings.get("max_gen_toks", self._max_gen_toks))
            room = self.max_length - answer
            if room < 1:
                raise FlowError(
                    f"A task allows answers of {answer} tokens, but only {self.max_length} fit "
                    "into engine.max_model_len: no token is left for the question.",
                    "Raise engine.max_model_len, or take another task.",
                )
            if len(self.tok_encode(prompt)) > room:
                self.ways[CUT] += 1

    def _create_payload(self, messages: Any, generate: bool = False, **kwargs: Any) -> Any:
        payload = super()._create_payload(messages, generate=generate, **kwargs)
        return payload | {"cache_salt": self.reader.salt} if generate else payload

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[Answer]:
        if any(key is None for key, _, _ in requests):  # windows of a text
            found = super()._loglikelihood_tokens(requests, **kwargs)
            assert self._texts is not None
            self._texts.add(1)
            return found
        self._progress = Count("requests", len(requests))
        wanted, block = self._wanted(requests), self.reader.block()
        questions = plan(wanted, block)
        answers: dict[int, Answer] = {}
        for found in self._read(requests, wanted, questions, block):
            answers |= found
            self._add(len(found))
            for place, answer in found.items():
                self.cache_hook.add_partial("loglikelihood", requests[place][0], answer)
        self._count(wanted, questions, answers)
        rest = [place for place in range(len(requests)) if place not in answers]
        if rest:
            echoed = super()._loglikelihood_tokens([requests[place] for place in rest], **kwargs)
            answers |= zip(rest, echoed, strict=True)
        return [answers[place] for place in range(len(requests))]

    def _wanted(self, requests: Sequence[Request]) -> list[Wanted]:
        """Cuts requests that are too long, as lm-eval does; equal contexts share one object."""
        wanted, contexts = [], {}
        for request in requests:
            if len(request[1]) + len(request[2]) > self.max_length:
                self.ways[CUT] += 1
            (tokens,), (length,), _ = self.batch_loglikelihood_requests([[request]])
            context = tuple(tokens[: max(0, length)])
            context = contexts.setdefault(context, context)
            wanted.append(Wanted(context, tuple(tokens[max(0, length) :])))
        return wanted

    def _read(
        self,
        requests: Sequence[Request],
        wanted: Sequence[Wanted],
        questions: Sequence[Question],
        block: int | None,
    ) -> Iterator[dict[int, Answer]]:
        """Yields place -> answer of the questions as they arrive; nothing without label support."""
        if not questions or not self.reader.knows_labels(questions[0].context[0]):
            return

        first, *others = batches(questions, self._batch_size)
        found = self.reader.ask(first)
        extremes = _extremes(first, found) if found else ()
        places = [place for question in questions for place in question.continuations]
        computed = sum(question.computed(block or sys.maxsize) for question in questions)
        saved = _tokens(wanted, places) - computed
        if _tokens(wanted, extremes) <= saved:  # the check must not cost more than the labels save
            self._require_agreement(requests, wanted, {place: found[place] for place in extremes})
        yield found

        progress = {"desc": "Requesting next tokens", "total": len(others)}
        yield from tqdm(self.reader.ask_all(others), **progress)

    def _require_agreement(
        self, requests: Sequence[Request], wanted: Sequence[Wanted], found: Mapping[int, Answer]
    ) -> None:
        """Checks that an echo gives the same log-likelihoods as the labels.

        Raises:
            FlowError: a log-likelihood differs by more than `MOST_DIFFERENCE` nats per token.
        """
        if not found:
            return
        echoed = super()._loglikelihood_tokens([requests[place] for place in found])
        for (place, (read, _)), (echo, _) in zip(found.items(), echoed, strict=True):
            if abs(read - echo) > MOST_DIFFERENCE * len(wanted[place].continuation):
                raise FlowError(
                    f"The engine contradicts itself: a log-likelihood is {read:.4g} by its "
                    f"`logprob_token_ids` and {echo:.4g} by an echo of the same tokens.",
                    "Its scores cannot be trusted: serve with the version that the lock names.",
                )

    def _count(
        self, wanted: Sequence[Wanted], questions: Sequence[Question], answers: Mapping[int, Answer]
    ) -> None:
        planned = {place for question in questions for place in question.continuations}
        for place, one in enumerate(wanted):
            read = ONE_TOKEN if len(one.continuation) == 1 else TOKEN_BY_TOKEN
            self.ways[read if place in answers else NO_LABELS if place in planned else ECHO] += 1

    @staticmethod
    def parse_logprobs(
        outputs: Any,
        tokens: list[list[int]] | None = None,
        ctxlens: list[int] | None = None,
        **kwargs: Any,
    ) -> list[Answer]:
        """Reads one (log-likelihood, greedy) per prompt.

        Raises:
            FlowError: an answer is missing or not finite.
        """
        try:
            document = outputs[0] if isinstance(outputs, list) else outputs
            answered = sorted(choice["index"] for choice in document["choices"])
            found = LocalCompletionsAPI.parse_logprobs(
                outputs, tokens=tokens, ctxlens=ctxlens, **kwargs
            )
            finite = all(math.isfinite(logprob) for logprob, _ in found)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise not_whole(f"{type(error).__name__}: {error}") from error
        assert tokens is not None
        if answered != list(range(len(tokens))) or not finite:
            share = f"{len(answered)} of {len(tokens)} prompts"
            raise not_whole(f"{share}, {'all' if finite else 'not all'} finite")
        return found

    @staticmethod
    def parse_generations(outputs: Any, **kwargs: Any) -> list[str]:
        """Reads one text per prompt.

        Raises:
            FlowError: a text is missing.
        """
        try:
            found = LocalCompletionsAPI.parse_generations(outputs, **kwargs)
        except (LookupError, TypeError, AttributeError) as error:
            raise not_whole(f"{type(error).__name__}: {error}") from error
        if not all(isinstance(text, str) for text in found):
            raise not_whole("a prompt without text")
        return found


def writes_bos(tokenizer: Any) -> bool:
    """Checks whether the tokenizer puts a BOS before a text, as the endpoint then does too."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _tokens(wanted: Sequence[Wanted], places: Iterable[int]) -> int:
    """Counts the prompt tokens that echoes of these log-likelihoods would compute."""
    return sum(wanted[place].tokens for place in places)


def _extremes(questions: Sequence[Question], found: Mapping[int, Answer]) -> tuple[int, ...]:
    """Returns the likeliest and the least likely continuation of one question.

    The question is the one in which these two differ most.
    """

    def ends(question: Question) -> tuple[int, int]:
        ranked = sorted(question.continuations, key=lambda place: found[place][0])
        return ranked[-1], ranked[0]

    pairs = [ends(question) for question in questions if len(question.continuations) > 1]
    return max(pairs, key=lambda pair: found[pair[0]][0] - found[pair[1]][0], default=())
