"""Checks what a server accepts. A refusal names the field, the value and the limit."""

import math
from dataclasses import dataclass

from serving_from_scratch.core.errors import InvalidRequest, QueueFull
from serving_from_scratch.core.request import Request, SamplingParameters


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server.

    Attributes:
        vocabulary: number of token ids.
        max_length: the longest prompt and answer together, in tokens; limited by model and cache.
        max_waiting: how many requests may wait.
        retry_after: seconds after which a refused sender may try again.
        max_stops: how many stop texts a request may have.
        max_logprobs: how many of the likeliest tokens are reported at most.
    """

    vocabulary: int
    max_length: int
    max_waiting: int = 256
    retry_after: float = 1.0
    max_stops: int = 4
    max_logprobs: int = 20

    def check(self, request: Request) -> None:
        """Checks that this server can serve a request; raises InvalidRequest otherwise."""
        self._check_prompt(request)
        self._check_sampling(request.sampling)
        total = len(request.prompt) + request.sampling.max_tokens
        if total > self.max_length:
            raise InvalidRequest(
                f"prompt ({len(request.prompt)} tokens) and max_tokens "
                f"({request.sampling.max_tokens}) make {total} tokens; the limit is "
                f"{self.max_length}.",
                "max_tokens",
                "Shorten the prompt or lower max_tokens.",
            )

    def check_queue(self, waiting: int) -> None:
        """Checks that one more request may wait; raises QueueFull otherwise."""
        if waiting >= self.max_waiting:
            problem = f"{waiting} requests wait; the limit is {self.max_waiting}."
            raise QueueFull(problem, self.retry_after)

    def _check_prompt(self, request: Request) -> None:
        if not request.prompt:
            raise InvalidRequest("prompt has no tokens; the limit is at least 1.", "prompt")
        foreign = next((id for id in request.prompt if not 0 <= id < self.vocabulary), None)
        if foreign is not None:
            problem = f"prompt has the token id {foreign}; ids are 0 to {self.vocabulary - 1}."
            raise InvalidRequest(problem, "prompt")

    def _check_sampling(self, sampling: SamplingParameters) -> None:
        def check(field: str, fine: bool, limit: str) -> None:
            if not fine:
                value = getattr(sampling, field)
                raise InvalidRequest(f"{field} is {value!r}; the limit is {limit}.", field)

        alternatives = range(self.max_logprobs + 1)
        temperature = sampling.temperature
        check("max_tokens", sampling.max_tokens >= 0, "at least 0")
        check("temperature", math.isfinite(temperature) and temperature >= 0, "at least 0")
        check("top_k", sampling.top_k >= 0, "at least 0")
        check("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1")
        check("seed", 0 <= (sampling.seed or 0) < 2**63, "0 to 2^63 - 1")
        check("stop", len(sampling.stop) <= self.max_stops, f"{self.max_stops} texts")
        check("stop", all(sampling.stop), "texts of at least one character")
        for field in ("logprobs", "prompt_logprobs"):
            value = getattr(sampling, field)
            check(field, value is None or value in alternatives, f"0 to {self.max_logprobs}")
