"""Asks predictors: OpenAI-compatible servers, LitServe, and functions in the gateway itself."""

import asyncio
import contextlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from serving_from_scratch.core.errors import (
    InvalidRequest,
    PredictorFailed,
    ServingError,
    UnknownModel,
)
from serving_from_scratch.gateway.registry import SOURCES, ModelSpec

CONNECT_SECONDS = 3.0
HEALTH_SECONDS = 2.0
Answer = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """What a predictor is asked; `stream` in its body asks for pieces."""

    path: str
    body: dict[str, Any]

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True


class PredictorRefused(ServingError):
    """A predictor's own refusal, which the client gets unchanged."""

    def __init__(self, status: int, content: Any, retry_after: str | None) -> None:
        super().__init__(f"The predictor answered {status}.")
        self.status, self.content = status, content
        self.headers = {"Retry-After": retry_after} if retry_after else None


class Predictor(ABC):
    """Something that answers calls.

    Attributes:
        name: for messages.
        healthy: whether it answered when it was asked last; None if nobody has asked.
        requests: that it was given so far.
        in_flight: that it answers now.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.healthy: bool | None = None
        self.requests = self.in_flight = 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Counts one request."""
        self.requests += 1
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @abstractmethod
    def ask(self, call: Call) -> AsyncGenerator[Answer, None]:
        """Yields the answer, or the pieces of a stream.

        Raises:
            PredictorFailed: it is dead, silent, answers nonsense, or ends a stream too early.
        """

    @abstractmethod
    async def check(self) -> None:
        """Asks for its health."""

    async def close(self) -> None:  # noqa: B027 - not every predictor has something to close
        """Closes the connections."""


class LocalPredictor(Predictor):
    """Answers in the gateway's own process."""

    def __init__(self, name: str, source: Any) -> None:
        super().__init__(name)
        self.source = source

    async def ask(self, call: Call) -> AsyncGenerator[Answer, None]:
        check_image(call, self.source)
        yield await asyncio.to_thread(self.source.predict, call.body)

    async def check(self) -> None:
        if self.healthy is None:
            self.healthy = True
            # So that the first request need not wait.
            self.loading = asyncio.create_task(asyncio.to_thread(self.source.model))


class OpenAIPredictor(Predictor):
    """Asks an OpenAI-compatible server.

    Args:
        url: its address.
        key: its API key; "" for none.
    """

    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

    def __init__(self, spec: ModelSpec, url: str, key: str) -> None:
        super().__init__(f"{spec.name} at {url}")
        self.spec, self._silent = spec, 0
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(spec.seconds, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )

    async def ask(self, call: Call) -> AsyncGenerator[Answer, None]:
        self.check_call(call)
        content = json.dumps(call.body)  # in ASCII, so that it can quote any text
        try:
            async with self.client.stream("POST", call.path, content=content) as reply:
                if reply.status_code != 200:
                    raise await self._refusal(reply)
                pieces = self._events(reply) if call.stream else self._whole(reply)
                async with contextlib.aclosing(pieces):
                    async for piece in pieces:
                        yield piece
        except httpx.ConnectError as error:
            self.healthy = False
            raise PredictorFailed(f"{self.name} does not answer.") from error
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise PredictorFailed(f"{self.name} failed: {type(error).__name__}.") from error

    def check_call(self, call: Call) -> None:
        """Checks what must not reach the predictor."""
        check_path(call, self.paths)

    async def check(self) -> None:
        try:
            reply = await self.client.get("/health", timeout=HEALTH_SECONDS)
            self.healthy, self._silent = reply.status_code < 500, 0
        except httpx.TimeoutException:  # once is a busy machine, twice is a dead predictor
            self._silent += 1
            self.healthy = self.healthy if self._silent < 2 else False
        except httpx.HTTPError:
            self.healthy = False

    async def close(self) -> None:
        await self.client.aclose()

    async def _whole(self, reply: httpx.Response) -> AsyncGenerator[Answer, None]:
        yield as_object(await reply.aread())

    async def _events(self, reply: httpx.Response) -> AsyncGenerator[Answer, None]:
        """Yields the events of a stream that ends in [DONE]; refuses any other end."""
        begun = False
        async for line in reply.aiter_lines():
            if not line.startswith("data:"):
                continue  # empty, or a comment that keeps the connection open
            data = line.removeprefix("data:").strip()
            if data == "[DONE]" and begun:
                return
            piece = as_object(data)
            if "error" in piece:
                raise PredictorFailed(f"{self.name} failed: {str(piece['error'])[:300]}")
            begun = True
            yield piece
        raise PredictorFailed(f"{self.name} ended its answer too early.")

    async def _refusal(self, reply: httpx.Response) -> ServingError:
        status, text = reply.status_code, await reply.aread()
        if status < 400 or status >= 500 or status in (401, 403):
            shown = text[:200].decode(errors="replace")
            return PredictorFailed(f"{self.name} answered {status}: {shown}")
        return PredictorRefused(status, as_object(text), reply.headers.get("retry-after"))


class LitServePredictor(OpenAIPredictor):
    """Asks LitServe, which answers 500 to bad input: the input is checked here first."""

    paths = ("/predict",)

    def check_call(self, call: Call) -> None:
        check_image(call, SOURCES[self.spec.source])


def make_predictors(spec: ModelSpec, urls: list[str], key: str = "") -> list[Predictor]:
    """Makes the predictors of a model, one per address."""
    if spec.kind == "local":
        return [LocalPredictor(f"{spec.name} in the gateway", SOURCES[spec.source])]
    kind = OpenAIPredictor if spec.kind == "openai" else LitServePredictor
    key = key or os.environ.get(spec.key, "")
    return [kind(spec, url, key) for url in urls]


def check_path(call: Call, paths: tuple[str, ...]) -> None:
    """Refuses a path that this kind of predictor does not have."""
    if call.path not in paths:
        known = ", ".join(paths)
        raise UnknownModel(f"This model has no {call.path!r}.", "", f"It has {known}.")


def check_image(call: Call, source: Any) -> None:
    """Refuses an image that the classifier cannot read."""
    check_path(call, LitServePredictor.paths)
    if problem := source.problem(call.body.get("image")):
        raise InvalidRequest(problem, "image")


def as_object(text: bytes | str) -> Answer:
    """Parses a JSON object; raises ValueError for anything else."""
    if not isinstance(content := json.loads(text), dict):
        raise ValueError("no JSON object")
    return content
