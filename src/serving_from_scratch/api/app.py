"""Builds the FastAPI application: API key, limits, errors, health, facts and metrics.

`open_door` is the part that the gateway shares.
"""

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
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving_from_scratch.api import generate, openai
from serving_from_scratch.api.metrics import PREFIX, EngineNumbers
from serving_from_scratch.api.sse import Door, Here, Json, Service, error_body
from serving_from_scratch.core import errors

STATUS = {
    errors.InvalidRequest: 400,
    errors.UnknownModel: 404,
    errors.DeadlinePassed: 408,
    errors.QueueFull: 429,
    errors.PredictorFailed: 502,
    errors.Unavailable: 503,
}


def create_app(service: Service) -> FastAPI:
    """Makes the application; its shutdown closes the engine."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    app = open_door(service, EngineNumbers(service.engine), lifespan, PREFIX)
    app.get("/health")(health)
    app.get("/facts", dependencies=LOCKED)(facts)
    for router in (openai.router, generate.router):
        app.include_router(router, dependencies=LOCKED)
    return app


def open_door(door: Door, numbers: Any, lifespan: Any, prefix: str) -> FastAPI:
    """Makes an application that knows keys, limits and errors, and has only /metrics.

    Args:
        numbers: gives Prometheus the metrics, by its method `collect`.
        prefix: of the metrics' names.
    """
    app = FastAPI(title="serving from scratch", lifespan=lifespan, redoc_url=None)
    app.state.door, app.state.registry = door, CollectorRegistry()
    app.state.registry.register(numbers)
    app.get("/metrics", dependencies=LOCKED)(metrics)
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    responses = Counter(f"{prefix}responses", "by status", ["status"], registry=app.state.registry)
    app.add_middleware(Border, door=door, responses=responses)
    return app


class Border:
    """Limits the size and the time of request bodies, and counts responses by status."""

    def __init__(self, app: Any, door: Door, responses: Counter) -> None:
        self.app, self.door, self.responses = app, door, responses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body = Body(receive, self.door)

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.responses.labels(message["status"]).inc()
            await send(message)

        return await self.app(scope, body.receive, counted)


class Body:
    """Reads one request's body; a body that is too long is read to its end, but not kept."""

    def __init__(self, receive: Any, door: Door) -> None:
        self._receive, self._limit = receive, door.body_bytes
        self._seconds, self._size, self._complete = door.body_seconds, 0, False

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


async def require_key(request: Request) -> None:
    """Checks the API key, if there is one."""
    key = request.app.state.door.key
    if key and not has_key(request, key):
        raise HTTPException(401, "The API key is missing or wrong.")


def has_key(request: Request, key: str) -> bool:
    """Compares the key of a request in constant time."""
    sent = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(sent, f"Bearer {key}".encode())


async def health(service: Here) -> Response:
    """Says whether requests are served; if not, why."""
    problem = service.engine.health()
    body = {"status": "unavailable" if problem else "ok", "problem": problem or None}
    return Json(body, 503 if problem else 200, {"Retry-After": "1"} if problem else None)


async def facts(service: Here) -> Response:
    """Reports the model, the engine and its options."""
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


async def refused(request: Request, error: errors.ServingError) -> Response:
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
    problem = errors.InvalidRequest(f"{field}: {first['msg']}; it was {value}.", field)
    return Json(error_body(problem, code=400), 400)


async def http_error(request: Request, error: HTTPException) -> Response:
    """Answers what the framework refuses: unknown addresses, broken bodies, wrong keys."""
    body = error_body(errors.ServingError(str(error.detail)), "HTTPError", error.status_code)
    return Json(body, error.status_code, error.headers)


async def client_left(request: Request, error: ClientDisconnect) -> Response:
    """Ends the request of a client that has left; nobody reads this answer."""
    return Response(status_code=499)


LOCKED = [Depends(require_key)]
HANDLERS: dict[type[Exception], Any] = {
    errors.ServingError: refused,
    RequestValidationError: invalid,
    HTTPException: http_error,
    ClientDisconnect: client_left,
}
