"""Builds the FastAPI application: API key, limits, errors, health, facts and metrics."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving_from_scratch.api import generate, openai
from serving_from_scratch.api.metrics import make_metrics
from serving_from_scratch.api.sse import Json, Service, UnknownModel, error_body
from serving_from_scratch.core.errors import (
    DeadlinePassed,
    InvalidRequest,
    QueueFull,
    ServingError,
    Unavailable,
)

STATUS = {
    InvalidRequest: 400,
    UnknownModel: 404,
    DeadlinePassed: 408,
    QueueFull: 429,
    generate.PredictorFailed: 502,
    Unavailable: 503,
}


def create_app(service: Service) -> FastAPI:
    """Makes the application; its shutdown closes the engine."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="serving from scratch", lifespan=lifespan, redoc_url=None)
    app.state.service = service
    app.state.registry, responses = make_metrics(service.engine)
    locked = [Depends(require_key)]
    for router in (openai.router, generate.router):
        app.include_router(router, dependencies=locked)
    app.get("/health")(health)
    app.get("/facts", dependencies=locked)(facts)
    app.get("/metrics", dependencies=locked)(metrics)
    app.add_exception_handler(ServingError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, client_left)
    app.add_middleware(Border, service=service, responses=responses)
    return app


class Border:
    """Limits the size and the time of request bodies, and counts responses by status."""

    def __init__(self, app: Any, service: Service, responses: Any) -> None:
        self.app, self.service, self.responses = app, service, responses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = Body(receive, self.service)

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.responses.labels(message["status"]).inc()
            await send(message)

        return await self.app(scope, body.receive, counted)


class Body:
    """Reads one request's body; a body that is too long is read to its end, but not kept."""

    def __init__(self, receive: Any, service: Service) -> None:
        self._receive, self._limit = receive, service.body_bytes
        self._seconds, self._size, self._complete = service.body_seconds, 0, False

    async def receive(self) -> Any:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._next()
                while self._size > self._limit and message.get("more_body"):
                    message = await self._next()
        except TimeoutError as error:
            raise HTTPException(408, f"No body after {self._seconds:g} seconds.") from error
        self._complete = not message.get("more_body")
        if self._size > self._limit:
            raise HTTPException(413, f"The body is too long; the limit is {self._limit} bytes.")
        return message

    async def _next(self) -> Any:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        return message


def require_key(request: Request) -> None:
    """Checks the API key in constant time."""
    key = request.app.state.service.key
    sent = request.headers.get("authorization", "").encode()
    if key and not hmac.compare_digest(sent, f"Bearer {key}".encode()):
        raise HTTPException(401, "The API key is missing or wrong.")


async def health(request: Request) -> Response:
    """Says whether requests are served; if not, why."""
    problem = request.app.state.service.engine.health()
    body = {"status": "unavailable" if problem else "ok", "problem": problem or None}
    return Json(body, 503 if problem else 200, {"Retry-After": "1"} if problem else None)


async def facts(request: Request) -> Response:
    """Reports the model, the engine and its options."""
    service: Service = request.app.state.service
    options = asdict(service.engine.options)
    options["model"].pop("folder")
    for name in ("strategy", "proposer"):
        options[name] = type(getattr(service.engine.options, name)).__name__
    engine = {"engine": "serving-from-scratch", "version": version("model-serve-flow")}
    model = {"model": service.name, "max_length": service.engine.limits.max_length}
    return Json({**engine, **model, "facts": asdict(service.engine.facts), "options": options})


async def metrics(request: Request) -> Response:
    """Returns the numbers for Prometheus."""
    content = generate_latest(request.app.state.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def refused(request: Request, error: ServingError) -> Response:
    """Answers a refused request with its status."""
    status = STATUS.get(type(error), 500)
    wait = getattr(error, "retry_after", None)
    headers = None if wait is None else {"Retry-After": str(max(1, round(wait)))}
    return Json(error_body(error, code=status), status, headers)


async def invalid(request: Request, error: RequestValidationError) -> Response:
    """Answers a body with a wrong field; names the field, the value and the limit."""
    first = error.errors()[0]
    places = [str(place) for place in first["loc"] if place not in ("body", "query", "str")]
    field = ".".join(place for place in places if "[" not in place) or "body"
    value = repr(first.get("input"))[:80]
    problem = InvalidRequest(f"{field}: {first['msg']}; it was {value}.", field)
    return Json(error_body(problem, code=400), 400)


async def http_error(request: Request, error: HTTPException) -> Response:
    """Answers what the framework refuses: unknown addresses, broken bodies, wrong keys."""
    body = error_body(ServingError(str(error.detail)), "HTTPError", error.status_code)
    return Json(body, error.status_code, error.headers)


async def client_left(request: Request, error: ClientDisconnect) -> Response:
    """Ends the request of a client that has left; nobody reads this answer."""
    return Response(status_code=499)
