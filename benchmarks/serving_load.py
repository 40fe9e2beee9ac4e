"""Sends requests to an OpenAI endpoint and notes when each token arrives.

GuideLLM measures the ladder of notebook 11. This client exists for what GuideLLM has no load for: a
long prompt among running streams, answers of different lengths, prompts that begin alike.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from model_serve_flow.serve.endpoint import Endpoint

LONGEST_SECONDS = 600
IDS = range(1_000, 20_000)  # plain tokens of the packaged model's vocabulary


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        prompt: text, or token ids.
        tokens: length of the answer; its end-of-sequence token is ignored.
        after: seconds from the start of the load to this request.
    """

    prompt: str | tuple[int, ...]
    tokens: int
    after: float = 0.0


@dataclass(frozen=True)
class Seen:
    """One answer as its reader saw it; all times are seconds of the monotonic clock."""

    asked: float
    events: tuple[float, ...]
    tokens: int

    @property
    def ttft(self) -> float:
        return self.events[0] - self.asked

    @property
    def longest_gap(self) -> float:
        return max(later - earlier for earlier, later in itertools.pairwise(self.events))


Speed = Callable[[Sequence[Ask]], float]  # requests -> output tokens/s


def random_asks(
    count: int, prompt: int, answers: Sequence[int], seed: int, shared: int = 0
) -> list[Ask]:
    """Makes requests of `prompt` random tokens; the first `shared` tokens are the same in all.

    Args:
        count: how many requests.
        prompt: tokens of each prompt.
        answers: lengths of the answers, repeated in turn.
        seed: other seeds give other prompts, so that no cache of prefixes has seen them.
        shared: how many tokens all prompts have in common.
    """
    draw = random.Random(seed)
    begin = tuple(draw.choices(IDS, k=shared))
    lengths = itertools.islice(itertools.cycle(answers), count)
    return [Ask(begin + tuple(draw.choices(IDS, k=prompt - shared)), length) for length in lengths]


def send(endpoint: Endpoint, asks: Sequence[Ask], concurrency: int) -> list[Seen]:
    """Sends the requests, at most `concurrency` at a time, and reads all streams to their ends.

    Raises:
        httpx.HTTPStatusError: the server refused a request.
        RuntimeError: a stream ended early.
    """
    return asyncio.run(_send(endpoint, asks, concurrency))


async def _send(endpoint: Endpoint, asks: Sequence[Ask], concurrency: int) -> list[Seen]:
    headers = endpoint.headers
    places = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(
        base_url=endpoint.url, headers=headers, timeout=LONGEST_SECONDS, trust_env=False
    ) as client:

        async def one(ask: Ask) -> Seen:
            await asyncio.sleep(ask.after)
            async with places:
                return await _read(client, endpoint.model_name, ask)

        return list(await asyncio.gather(*map(one, asks)))


async def _read(client: httpx.AsyncClient, model: str, ask: Ask) -> Seen:
    body = {
        "model": model,
        "prompt": ask.prompt if isinstance(ask.prompt, str) else list(ask.prompt),
        "max_tokens": ask.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    asked, events, ended = time.monotonic(), [], False
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        if reply.is_error:
            await reply.aread()
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line:
                events.append(time.monotonic())
    if not ended or not events:
        raise RuntimeError(f"{client.base_url} ended a stream early, after {len(events)} events.")
    return Seen(asked, tuple(events), ask.tokens)


def tokens_per_s(seen: Sequence[Seen]) -> float:
    """Computes output tokens/s, from the first request to the last token."""
    started = min(answer.asked for answer in seen)
    return sum(answer.tokens for answer in seen) / (max(s.events[-1] for s in seen) - started)


def ttft_p95(seen: Sequence[Seen]) -> float:
    """Computes the 95th percentile of the time to first token, in seconds."""
    return float(np.percentile([answer.ttft for answer in seen], 95))


def ttft_median(seen: Sequence[Seen]) -> float:
    """Computes the median time to first token, in seconds."""
    return float(np.median([answer.ttft for answer in seen]))


def longest_gap(seen: Sequence[Seen]) -> float:
    """Returns the longest wait between two tokens of one answer, in seconds."""
    return max(answer.longest_gap for answer in seen if len(answer.events) > 1)
