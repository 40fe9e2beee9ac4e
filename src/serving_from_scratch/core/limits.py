"""Checks what a model and its queue can take. A refusal names the field, the value and the limit.

The ranges of single fields, as `temperature`, are a matter of the API: see `api.schemas`.
"""

from dataclasses import dataclass

from serving_from_scratch.core.errors import InvalidRequest, QueueFull
from serving_from_scratch.core.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server.

    Attributes:
        vocabulary: number of token ids.
        max_length: the longest prompt and answer together, in tokens; limited by model and cache.
        max_waiting: how many requests may wait.
        retry_after: seconds after which a refused sender may try again.
    """

    vocabulary: int
    max_length: int
    max_waiting: int = 256
    retry_after: float = 1.0

    def check(self, request: Request) -> None:
        """Checks that this server can serve a request; raises InvalidRequest otherwise."""
        if not request.prompt:
            raise InvalidRequest("prompt has no tokens; the limit is at least 1.", "prompt")
        foreign = next((id for id in request.prompt if not 0 <= id < self.vocabulary), None)
        if foreign is not None:
            problem = f"prompt has the token id {foreign}; ids are 0 to {self.vocabulary - 1}."
            raise InvalidRequest(problem, "prompt")
        check_length(request, self.max_length)

    def check_queue(self, waiting: int) -> None:
        """Checks that one more request may wait; raises QueueFull otherwise."""
        if waiting >= self.max_waiting:
            problem = f"{waiting} requests wait; the limit is {self.max_waiting}."
            raise QueueFull(problem, self.retry_after)


def check_length(request: Request, limit: int) -> None:
    """Checks that prompt and answer have at most `limit` tokens together."""
    prompt, answer = len(request.prompt), request.sampling.max_tokens
    if prompt + answer > limit:
        raise InvalidRequest(
            f"prompt ({prompt} tokens) and max_tokens ({answer}) make {prompt + answer} tokens; "
            f"the limit is {limit}.",
            "max_tokens",
            "Shorten the prompt or lower max_tokens.",
        )
