"""lm-eval's client of the endpoint; imports lm-eval, so it is imported where something is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

from model_serve_flow import live
from model_serve_flow.errors import FlowError

NAME = "whole-completions"


class KeyedHook(CacheHook):
    """Hands answers on to lm-eval's request cache, unless they have no key.

    The windows of a text that is scored as a whole have none, and with several requests at a time lm-eval 0.4.13 trips
    over that. The text's own answer has one: it is kept when all its windows are there.
    """

    def __init__(self, hook: CacheHook) -> None:
        self.dbdict = hook.dbdict

    def add_partial(self, attr: str, req: Iterable[Any] | None, res: Any) -> None:
        if req is not None:
            super().add_partial(attr, req, res)


class Count:
    """Counts what was answered, for the runner's live line.

    It belongs to the measurement that was reported last.
    """

    def __init__(self, unit: str, total: int) -> None:
        self.unit, self.total, self.done = unit, total, 0
        self.add(0)

    def add(self, number: int) -> None:
        """That many more were answered."""
        self.done += number
        live.report(None, self.done, self.total, self.unit)


@register_model(NAME)
class WholeCompletions(LocalCompletionsAPI):
    """lm-eval's `local-completions` that can keep every answer, and takes none that is not whole.

    An answer with a prompt too few would be counted, and kept, as that of another prompt; of one without text lm-eval
    would score a text of its own.
    """

    _answers: Count | None = None
    _texts: Count | None = None  # scored as a whole, each by one request or several

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._answers, self._texts = None, Count("texts", len(requests))
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self._texts = None

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        if self._texts is None:
            self._answers = Count("requests", len(requests))
            return super()._loglikelihood_tokens(requests, **kwargs)
        found = super()._loglikelihood_tokens(requests, **kwargs)  # the windows of one text
        self._texts.add(1)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._answers = Count("requests", len(requests))
        return super().generate_until(requests, disable_tqdm)

    def _count(self, answers: int) -> None:
        if self._answers is not None:
            self._answers.add(answers)

    async def amodel_call(self, *args: Any, messages: list[Any], **kwargs: Any) -> Any:
        answers = await super().amodel_call(*args, messages=messages, **kwargs)
        self._count(len(messages))
        return answers

    def model_call(self, messages: list[Any], **kwargs: Any) -> Any:
        answer = super().model_call(messages, **kwargs)
        self._count(len(messages))
        return answer

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        super().set_cache_hook(KeyedHook(cache_hook))

    @staticmethod
    def parse_logprobs(
        outputs: Any, tokens: list[list[int]] | None = None, ctxlens: list[int] | None = None, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """One (log-likelihood, greedy) per prompt; FlowError if the answer has not one finite number for each."""
        try:
            answered = sorted(
                choice["index"] for choice in (outputs[0] if isinstance(outputs, list) else outputs)["choices"]
            )
            found = LocalCompletionsAPI.parse_logprobs(outputs, tokens=tokens, ctxlens=ctxlens, **kwargs)
            finite = all(math.isfinite(logprob) for logprob, _ in found)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise _not_whole(f"{type(error).__name__}: {error}") from error
        if answered != list(range(len(tokens))) or not finite:
            raise _not_whole(f"{len(answered)} of {len(tokens)} prompts, {'all' if finite else 'not all'} finite")
        return found

    @staticmethod
    def parse_generations(outputs: Any, **kwargs: Any) -> list[str]:
        """One text per prompt; FlowError if one is missing."""
        try:
            found = LocalCompletionsAPI.parse_generations(outputs, **kwargs)
        except (LookupError, TypeError, AttributeError) as error:
            raise _not_whole(f"{type(error).__name__}: {error}") from error
        if not all(isinstance(text, str) for text in found):
            raise _not_whole("a prompt without text")
        return found


def _not_whole(what: str) -> FlowError:
    return FlowError(f"The server's answer to lm-eval is not whole: {what}.", "See lm-eval's log and the server's.")
