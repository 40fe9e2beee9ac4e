"""Chooses which replica of a model answers, and who tries next if it fails."""

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from serving_from_scratch.core.errors import PredictorFailed
from serving_from_scratch.gateway.predictors import Answer, Call, Predictor

PREFIX_CHARACTERS = 128


class Balancer(Protocol):
    """Orders the replicas of a model for one request."""

    def order(self, replicas: Sequence[Predictor], prefix: str) -> list[Predictor]:
        """Returns all replicas, the best first.

        Args:
            prefix: how the request's prompt begins.
        """


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self.turn = -1

    def order(self, replicas: Sequence[Predictor], prefix: str) -> list[Predictor]:
        self.turn += 1
        first = self.turn % len(replicas)
        return [*replicas[first:], *replicas[:first]]


class LeastBusy:
    """The one with the fewest requests in flight."""

    def order(self, replicas: Sequence[Predictor], prefix: str) -> list[Predictor]:
        return sorted(replicas, key=lambda replica: replica.in_flight)


class PrefixAffinity:
    """Prompts that begin alike go to the same replica, which has their keys and values already.

    Rendezvous hashing: if a replica leaves, only its own prompts move.
    """

    def order(self, replicas: Sequence[Predictor], prefix: str) -> list[Predictor]:
        def score(replica: Predictor) -> bytes:
            return hashlib.sha256(json.dumps([replica.name, prefix]).encode()).digest()

        return sorted(replicas, key=score)


BALANCERS = {"round-robin": RoundRobin, "least-busy": LeastBusy, "prefix": PrefixAffinity}


def beginning(call: Call) -> str:
    """Returns how a prompt or a conversation begins."""
    told = call.body.get("messages") or call.body.get("prompt") or ""
    text = told if isinstance(told, str) else json.dumps(told)
    return text[:PREFIX_CHARACTERS]


async def ask_one(
    replicas: Sequence[Predictor], balancer: Balancer, call: Call
) -> AsyncGenerator[Answer, None]:
    """Yields the answer of the first replica that gives one.

    Raises:
        PredictorFailed: all failed, or one failed after a piece, which the client has already.
    """
    usable = [replica for replica in replicas if replica.healthy is not False]
    failures = [f"{replica.name} does not answer." for replica in replicas if replica not in usable]
    for replica in balancer.order(usable, beginning(call)) if usable else ():
        begun = False
        try:
            with replica.busy():
                async with aclosing(replica.ask(call)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
            return
        except PredictorFailed as error:
            if begun:
                raise
            failures.append(str(error))
    raise PredictorFailed(" ".join(failures))
