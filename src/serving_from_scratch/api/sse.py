"""Makes a response from the pieces of answers: whole, or as server-sent events."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from serving_from_scratch.core.errors import ServingError, UnknownModel
from serving_from_scratch.engine.llm_engine import Job, LLMEngine
from serving_from_scratch.engine.workload import Delta

Result = TypeVar("Result")
Content = dict[str, Any]  # of a response, or of one chunk of a stream


@dataclass(eq=False, kw_only=True)
class Door:
    """What our server and the gateway ask of clients.

    Attributes:
        key: that clients must send; "" for none.
        write_seconds: a stream ends if its client reads nothing for this long.
        body_bytes: the longest body.
        body_seconds: the longest time to receive a body.
    """

    key: str = ""
    write_seconds: float = 30.0
    body_bytes: int = 2_000_000
    body_seconds: float = 30.0


@dataclass(eq=False, kw_only=True)
class Service(Door):
    """What the endpoints share.

    Attributes:
        engine: answers prompts.
        name: of the model.
        vllm: the address of a vLLM beside this server; "" for none.
    """

    engine: LLMEngine
    name: str
    vllm: str = ""

    def check_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            problem = f"The model {name!r} is not served here."
            raise UnknownModel(problem, "model", f"This server has {self.name!r}.")


async def door_of(request: Request) -> Any:
    """Returns what the application of a request was made with."""
    return request.app.state.door


Here = Annotated[Service, Depends(door_of)]  # the service that got the request


class Shape(Protocol):
    """The form of an endpoint's answers."""

    def whole(self, answers: list[Delta]) -> Content:
        """Makes the response from the complete answers, one per job."""

    def chunk(self, delta: Delta) -> Content | None:
        """Makes a chunk from a piece of one answer; None if the piece shows nothing."""

    def last(self) -> Content | None:
        """Makes the chunk after all pieces; None if there is none."""
        return None


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
        self, first: Content, others: AsyncGenerator[Content, None], write_seconds: float
    ) -> None:
        self.first, self.others, self.write_seconds = first, others, write_seconds
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
            await self.others.aclose()

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            yield event(self.first)
            async for content in self.others:
                yield event(content)
            yield b"data: [DONE]\n\n"
        except ServingError as error:
            yield event(error_body(error))


def event(content: Content) -> bytes:
    """Makes a server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


async def respond(
    request: Request, jobs: list[Job], shape: Shape, stream: bool, seconds: float | None
) -> Response:
    """Answers jobs; ends them as soon as the client leaves.

    A stream begins with its first token. An error before it becomes an ordinary error response.
    """
    service: Service = request.app.state.door
    deltas = service.engine.generate(jobs, stream, seconds)
    if stream:
        chunks = shaped(deltas, shape)
        first = await unless_gone(request, anext(chunks))
        return EventStream(first, chunks, service.write_seconds)
    return Json(shape.whole(await unless_gone(request, collect(deltas, len(jobs)))))


async def shaped(
    deltas: AsyncGenerator[Delta, None], shape: Shape
) -> AsyncGenerator[Content, None]:
    """Makes the chunks of a stream."""
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            if chunk := shape.chunk(delta):
                yield chunk
    if last := shape.last():
        yield last


async def collect(deltas: AsyncIterator[Delta], jobs: int) -> list[Delta]:
    """Joins the pieces of each answer."""
    pieces: list[list[Delta]] = [[] for _ in range(jobs)]
    async for delta in deltas:
        pieces[delta.job].append(delta)
    return [
        replace(
            some[-1],
            text="".join(delta.text for delta in some),
            tokens=tuple(token for delta in some for token in delta.tokens),
            logprobs=tuple(entry for delta in some for entry in delta.logprobs),
            prompt_logprobs=some[0].prompt_logprobs,
        )
        for some in pieces
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


def error_body(error: ServingError, kind: str = "", code: int | None = None) -> Content:
    """Makes an error in OpenAI's format."""
    field = getattr(error, "field", "") or None
    kind = kind or type(error).__name__
    return {"error": {"message": str(error), "type": kind, "param": field, "code": code}}
