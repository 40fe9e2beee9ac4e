"""Asks the engine for log-probabilities of given next tokens, and refuses invalid answers."""

from __future__ import annotations

import json
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import httpx

from model_serve_flow.errors import FlowError
from model_serve_flow.measure.scoring import Answer, NextToken, Question, Step, requests

# Labels of a trial request: an engine that returns neither of them, beside the token that it chose,
# does not know `logprob_token_ids`.
DECOYS = (0, 1)
ABOVE_ZERO = 1e-3  # rounding error allowed in the log-probability of a probability near 1
ABOVE_ONE = 1e-2  # rounding error allowed in a sum of probabilities
REFUSED = frozenset({400, 404, 405, 422, 501})  # status for an unknown parameter

_LABEL = re.compile(r"token_id:(\d+)")


@dataclass(frozen=True)
class NextTokenReader:
    """Reads log-probabilities of next tokens from `/v1/completions`.

    Attributes:
        http: carries the server's address and key; the caller closes it.
        model: the name under which the model is served.
        concurrency: requests at a time.
        size: prompts in a request.
        seed: seed of every request.
        attempts: how often a request is sent before its failure counts.
        cache_block: the engine's reader of its own metrics (`Engine.cache_block`).
        salt: salt of the prefix cache. Another measurement of the same server must not be answered
            from this cache. It would repeat the same rounding, and the noise floor would be too
            low.
    """

    http: httpx.Client
    model: str
    concurrency: int
    size: int
    seed: int
    attempts: int
    cache_block: Callable[[str], int | None]
    salt: str = field(default_factory=lambda: secrets.token_hex(16))

    def block(self) -> int | None:
        """Returns the tokens in a block of the engine's prefix cache; None without such a cache."""
        response = self.http.get("/metrics")
        return self.cache_block(response.text) if response.is_success else None

    def knows_labels(self, token: int) -> bool:
        """Checks whether the engine returns log-probabilities of labels.

        An engine that does not returns the likeliest token only.

        Args:
            token: any token; the request asks for the token after it.

        Raises:
            FlowError: the answer is incomplete.
        """
        if (document := self._post([Step((token,), DECOYS)])) is None:
            return False
        try:
            (choice,) = document["choices"]
            given = choice["logprobs"]["top_logprobs"][0].keys() - set(choice["logprobs"]["tokens"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise not_whole(f"{type(error).__name__}: {error}") from error
        return any(f"token_id:{decoy}" in given for decoy in DECOYS)

    def ask_all(self, batches: Sequence[Sequence[Question]]) -> Iterator[dict[int, Answer]]:
        """Asks all batches and yields each batch's answers as they arrive.

        A batch that the engine refuses has no answers. After a failure no new request is sent.
        Answers to requests already sent are still yielded.

        Yields:
            Place of a log-likelihood -> answer.

        Raises:
            FlowError: an answer is incomplete or impossible.
            httpx.HTTPError: the server did not answer.
        """
        stop, failure = threading.Event(), None

        def ask(batch: Sequence[Question]) -> dict[int, Answer]:
            try:
                return {} if stop.is_set() else self.ask(batch)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for future in as_completed([pool.submit(ask, batch) for batch in batches]):
                    if (error := future.exception()) is None:
                        yield future.result()
                    else:
                        failure = failure or error
            finally:
                stop.set()
        if failure is not None:
            raise failure

    def ask(self, batch: Sequence[Question]) -> dict[int, Answer]:
        """Asks one batch and returns place -> answer; empty if the engine refuses the batch.

        Raises:
            FlowError, httpx.HTTPError: as `ask_all`.
        """
        found: dict[tuple[int, ...], NextToken] = {}
        for request in requests([step for question in batch for step in question.steps], self.size):
            if (document := self._post(request)) is None:
                return {}
            prompts = [step.prompt for step in request]
            found |= zip(prompts, next_tokens(document, request), strict=True)
        answers: dict[int, Answer] = {}
        for question in batch:
            answers |= question.answers(found)
        return answers

    def _post(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        """Sends a request and returns the engine's answer; None if the engine refuses it."""
        for attempt in range(1, self.attempts + 1):
            try:
                response = self.http.post("/v1/completions", json=self._body(steps))
                if response.status_code in REFUSED:
                    return None
                return response.raise_for_status().json()
            except json.JSONDecodeError as error:
                raise not_whole(f"no JSON: {response.text:.80}") from error
            except httpx.HTTPError:
                if attempt == self.attempts:
                    raise
                time.sleep(1)
        raise AssertionError("at least one attempt is made")

    def _body(self, steps: Sequence[Step]) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": [list(step.prompt) for step in steps],
            "max_tokens": 1,
            "temperature": 0,
            # a checkpoint's generation config may set a penalty, which changes the likeliest token
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self.seed,
            "logprobs": 1,
            "logprob_token_ids": sorted({label for step in steps for label in step.labels}),
            "return_tokens_as_token_ids": True,
            "cache_salt": self.salt,
        }


def next_tokens(document: Any, steps: Sequence[Step]) -> list[NextToken]:
    """Reads the engine's answer to a request: one entry per step.

    Raises:
        FlowError: a prompt or label is missing, or a log-probability is impossible: not finite,
            above 0, above the likeliest token's, or part of a sum of probabilities above 1.
    """
    try:
        choices = sorted(document["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(len(steps))):
            raise not_whole(f"{len(choices)} of {len(steps)} prompts")
        found = [choice["logprobs"] for choice in choices]
        return [_next_token(one, step) for one, step in zip(found, steps, strict=True)]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise not_whole(f"{type(error).__name__}: {error}") from error


def _next_token(logprobs: Mapping[str, Any], step: Step) -> NextToken:
    (likeliest,), (top,) = logprobs["token_logprobs"], logprobs["top_logprobs"]
    names = ((_LABEL.fullmatch(name), value) for name, value in top.items())
    given = {int(match[1]): value for match, value in names if match}
    if lacking := [label for label in step.labels if label not in given]:
        share = f"{len(lacking)} of {len(step.labels)} labels"
        raise not_whole(f"no log-probability of {share}, {lacking[0]} among them")
    values = [likeliest, *given.values()]
    if not all(math.isfinite(value) for value in values):
        raise not_whole("not all log-probabilities are finite")
    if max(values) > ABOVE_ZERO:
        raise not_whole(f"a log-probability of {max(values):.4g}, which is above 0")
    if max(values) > likeliest + ABOVE_ZERO:
        above = f"{max(values):.4g} where the likeliest token has {likeliest:.4g}"
        raise not_whole(f"a log-probability of {above}")
    if (total := math.fsum(map(math.exp, given.values()))) > 1 + ABOVE_ONE:
        raise not_whole(f"the labels' probabilities sum to {total:.4g}")
    return NextToken(given, likeliest)


def not_whole(what: str) -> FlowError:
    """Builds the error for a server answer that cannot be scored."""
    return FlowError(
        f"The server's answer to lm-eval is not whole: {what}.",
        "See lm-eval's log and the server's.",
    )
