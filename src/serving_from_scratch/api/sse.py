"""Makes a response from the pieces of answers: whole, or as server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from serving_from_scratch.core.errors import Refusal, ServingError
from serving_from_scratch.engine.llm_engine import Delta, Job, LLMEngine

Result = TypeVar("Result")


class UnknownModel(Refusal):
    """This server has another model."""


@dataclass(frozen=True)
class Service:
    """What the endpoints share.

    Attributes:
        engine: answers prompts.
        name: of the model.
        key: that clients must send; "" for none.
        write_seconds: a stream ends if its client reads nothing for this long.
        body_bytes: the longest body.
        body_seconds: the longest time to receive a body.
        vllm: the address of a vLLM beside this server; "" for none.
    """

    engine: LLMEngine
    name: str
    key: str = ""
    write_seconds: float = 30.0
    body_bytes: int = 2_000_000
    body_seconds: float = 30.0
    vllm: str = ""

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            problem = f"The model {name!r} is not served here."
            raise UnknownModel(problem, "model", f"This server has {self.name!r}.")


class Chunks(Protocol):
    """The form of a stream's chunks; the gateway has pieces of its own."""

    def chunk(self, delta: Any) -> dict[str, Any] | None:
        """Makes a chunk from a piece of one answer; None if the piece shows nothing."""

    def last(self) -> dict[str, Any] | None:
        """Makes the chunk after all pieces; None if there is none."""


class Shape(Chunks, Protocol):
    """The form of an endpoint's answers."""

    def whole(self, answers: list[Delta]) -> dict[str, Any]:
        """Makes the response from the complete answers, one per job."""


class Json(Response):
    """A JSON response in ASCII, so that it can quote any text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class EventStream(StreamingResponse):
    """Sends chunks as server-sent events, and [DONE] after a complete answer.

    An error becomes an error event, without [DONE].
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Any,  # pieces of an answer, as `shape.chunk` takes them
        deltas: AsyncIterator[Any],
        shape: Chunks,
        write_seconds: float,
    ) -> None:
        self.first, self.deltas, self.shape = first, deltas, shape
        self.write_seconds = write_seconds
        super().__init__(self._events(), headers={"Cache-Control": "no-cache"})

    async def stream_response(self, send: Any) -> None:
        async def patient(message: Any) -> None:
            async with asyncio.timeout(self.write_seconds):
                await send(message)

        try:
            await super().stream_response(patient)
        except TimeoutError:
            logging.warning("A client has read nothing for %g seconds.", self.write_seconds)
        finally:
            await self.deltas.aclose()

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            yield event(self.shape.chunk(self.first))
            async for delta in self.deltas:
                yield event(self.shape.chunk(delta))
            yield event(self.shape.last()) + b"data: [DONE]\n\n"
        except ServingError as error:
            yield event(error_body(error))


def event(content: dict[str, Any] | None) -> bytes:
    """Makes a server-sent event; empty for None."""
    return b"" if content is None else f"data: {json.dumps(content)}\n\n".encode()


async def respond(
    request: Request,
    jobs: list[Job],
    shape: Shape,
    stream: bool,
    seconds: float | None,
) -> Response:
    """Answers jobs; ends them as soon as the client leaves.

    A stream begins with its first token. An error before it becomes an ordinary error response.
    """
    service: Service = request.app.state.service
    deltas = service.engine.generate(jobs, stream, seconds)
    if stream:
        first = await unless_gone(request, anext(deltas))
        return EventStream(first, deltas, shape, service.write_seconds)
    return Json(shape.whole(await unless_gone(request, collect(deltas, len(jobs)))))


async def collect(deltas: AsyncIterator[Delta], jobs: int) -> list[Delta]:
    """Joins the pieces of each answer."""
    pieces: list[list[Delta]] = [[] for _ in range(jobs)]
    async for delta in deltas:
        pieces[delta.job].append(delta)
    return [
        Delta(
            job=job,
            text="".join(delta.text for delta in some),
            tokens=tuple(token for delta in some for token in delta.tokens),
            logprobs=tuple(entry for delta in some for entry in delta.logprobs),
            prompt_logprobs=some[0].prompt_logprobs,
            embedding=some[-1].embedding,
            finish_reason=some[-1].finish_reason,
        )
        for job, some in enumerate(pieces)
    ]


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Waits for `work`; cancels it and raises ClientDisconnect when the client leaves."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def error_body(error: ServingError, kind: str = "", code: int | None = None) -> dict[str, Any]:
    """Makes an error in OpenAI's format."""
    field = getattr(error, "field", "") or None
    kind = kind or type(error).__name__
    return {"error": {"message": str(error), "type": kind, "param": field, "code": code}}
