"""Builds the gateway: one public door in front of several models."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving_from_scratch.api.app import (
    Border,
    client_left,
    http_error,
    invalid,
    refused,
    require_key,
)
from serving_from_scratch.api.generate import PredictorFailed
from serving_from_scratch.api.sse import EventStream, Json, unless_gone
from serving_from_scratch.core.errors import InvalidRequest, ServingError
from serving_from_scratch.gateway.lifecycle import ModelPool
from serving_from_scratch.gateway.predictors import Answer, Call, PredictorRefused, check_path
from serving_from_scratch.gateway.registry import GatewayFile, Model, ModelSpec, ModelStore
from serving_from_scratch.gateway.routing import BALANCERS, Balancer, ask_one

PREFIX = "gateway_"
router, admin = APIRouter(), APIRouter(prefix="/admin/models")


@dataclass(eq=False)
class Gateway:
    """What the routes share.

    Attributes:
        key: that clients must send; "" for none.
        admin_key: that the admin routes want; "" closes them.
        body_bytes: the longest body.
        body_seconds: the longest time to receive a body.
        write_seconds: a stream ends if its client reads nothing for this long.
    """

    store: ModelStore
    pool: ModelPool
    key: str = ""
    admin_key: str = ""
    body_bytes: int = 12_000_000
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    balancers: dict[str, Balancer] = field(default_factory=dict)

    async def ask(self, model: Model, call: Call) -> AsyncGenerator[Answer, None]:
        """Yields the answer of one of the model's predictors, or its pieces."""
        spec = model.spec
        body = {**call.body, "model": spec.upstream or spec.name}
        balancer = self.balancers.setdefault(spec.name, BALANCERS[spec.balance]())
        async with self.pool.use(model) as predictors:
            pieces = ask_one(predictors, balancer, Call(call.path, body))
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    def collect(self) -> Iterator[Metric]:
        """Yields the numbers of all predictors for Prometheus."""
        labels = ["model", "predictor"]
        total = CounterMetricFamily(PREFIX + "requests", "by predictor", labels=labels)
        running = GaugeMetricFamily(PREFIX + "in_flight", "by predictor", labels=labels)
        healthy = GaugeMetricFamily(PREFIX + "healthy", "by predictor", labels=labels)
        for name, model in list(self.store.models.items()):
            for predictor in model.predictors:
                total.add_metric([name, predictor.name], predictor.load.requests)
                running.add_metric([name, predictor.name], predictor.load.in_flight)
                healthy.add_metric([name, predictor.name], bool(predictor.healthy))
        yield from (total, running, healthy)


def create_gateway(file: GatewayFile, key: str = "", admin_key: str = "") -> FastAPI:
    """Makes the application; its shutdown ends the predictors that it started."""
    store = ModelStore(file)
    gateway = Gateway(store, ModelPool(store, file.limit), key, admin_key)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(gateway.pool.watch())
        yield
        watching.cancel()
        await gateway.pool.close()

    app = FastAPI(title="gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service, app.state.registry = gateway, CollectorRegistry()
    app.state.registry.register(gateway)
    responses = Counter(PREFIX + "responses", "by status", ["status"], registry=app.state.registry)
    app.get("/")(front)
    app.get("/health")(health)
    app.include_router(admin, dependencies=[Depends(require_admin_key)])
    app.include_router(router, dependencies=[Depends(require_key)])
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    app.add_middleware(Border, service=gateway, responses=responses)
    return app


def require_admin_key(request: Request) -> None:
    """Checks the admin key in constant time; without one the admin routes are closed."""
    key = request.app.state.service.admin_key
    sent = request.headers.get("authorization", "").encode()
    if not key or not hmac.compare_digest(sent, f"Bearer {key}".encode()):
        raise HTTPException(401, "The admin key is missing or wrong.")


async def front(request: Request) -> Response:
    """Says what this is."""
    models = request.app.state.service.store.models.values()
    paths = {model.spec.name: model.spec.path for model in models}
    return Json({"service": "serving-from-scratch gateway", "models": paths})


async def health(request: Request) -> Response:
    """Says that the gateway runs, and which predictors answer."""
    models = request.app.state.service.store.models.items()
    states = {
        name: {predictor.name: predictor.healthy for predictor in model.predictors}
        for name, model in models
    }
    return Json({"status": "ok", "models": states})


async def pass_refusal(request: Request, error: PredictorRefused) -> Response:
    """Gives a client the predictor's own refusal."""
    return Json(error.content, error.status, error.headers)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Lists the models."""
    specs = [model.spec for model in request.app.state.service.store.models.values()]
    fixed = {"object": "model", "created": 0}
    listed = [{"id": spec.name, **fixed, "owned_by": spec.kind} for spec in specs]
    return Json({"object": "list", "data": listed})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Returns the numbers for Prometheus."""
    content = generate_latest(request.app.state.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.post("/predict")
async def predict(model: str, request: Request) -> Response:
    """Answers one prompt, or names one image."""
    gateway: Gateway = request.app.state.service
    return await plain(gateway.store.by_name(model), request, stream=False)


@router.post("/stream")
async def stream(model: str, request: Request) -> Response:
    """Streams the answer of /predict."""
    gateway: Gateway = request.app.state.service
    return await plain(gateway.store.by_name(model), request, stream=True)


@router.post("/v1/{rest:path}")
async def by_name(request: Request) -> Response:
    """Sends a request to the model that its body names."""
    body = await read_body(request)
    model = request.app.state.service.store.by_name(body.get("model"))
    return await answer(model, Call(request.url.path, body), request, Unchanged())


@router.post("/{path:path}")
async def by_path(request: Request) -> Response:
    """Sends a request to the model whose path begins its address."""
    model, rest = request.app.state.service.store.by_path(request.url.path)
    if rest in ("/predict", "/stream"):
        return await plain(model, request, stream=rest == "/stream")
    return await answer(model, Call(rest, await read_body(request)), request, Unchanged())


@admin.get("")
async def list_models(request: Request) -> Response:
    """Lists the models with what runs for them."""
    gateway: Gateway = request.app.state.service
    return Json([describe(gateway, model) for model in gateway.store.models.values()])


@admin.post("")
async def register(spec: ModelSpec, request: Request) -> Response:
    """Adds a model, until the gateway ends: models.yaml is not written."""
    gateway: Gateway = request.app.state.service
    model = gateway.store.add(spec)
    try:
        gateway.pool.connect(model)
    except ServingError:
        gateway.store.remove(spec.name)
        raise
    return Json(describe(gateway, model), 201)


@admin.delete("/{name:path}")
async def unregister(name: str, request: Request) -> Response:
    """Removes a model: new requests get 404, running ones may end, then its process ends."""
    gateway: Gateway = request.app.state.service
    model = gateway.store.remove(name)
    gateway.balancers.pop(name, None)
    await gateway.pool.remove(model)
    return Json({"removed": name})


def describe(gateway: Gateway, model: Model) -> dict[str, Any]:
    """Shows a model to an admin, without keys."""
    process = model.process.child.pid if model.process else None
    state = {"loaded": model.spec.name in gateway.pool.loaded, "process": process}
    return {**model.spec.model_dump(), **state, "in_flight": model.in_flight}


HANDLERS: dict[type[Exception], Any] = {
    ServingError: refused,
    PredictorRefused: pass_refusal,
    RequestValidationError: invalid,
    HTTPException: http_error,
    ClientDisconnect: client_left,
}


class Unchanged:
    """Leaves a predictor's answer as it is."""

    def chunk(self, delta: Answer) -> Answer | None:
        return delta

    def last(self) -> Answer | None:
        """Returns nothing."""


class Plain(Unchanged):
    """Takes out of a completion what /predict answers."""

    def chunk(self, delta: Answer) -> Answer | None:
        if not delta.get("choices"):
            return None
        choice = delta["choices"][0]
        shown = {"text": choice.get("text", ""), "finish_reason": choice.get("finish_reason")}
        return {"model": delta.get("model"), **shown}


async def plain(model: Model, request: Request, stream: bool) -> Response:
    """Answers /predict and /stream: of a language model by a greedy completion."""
    body = await read_body(request)
    if model.spec.kind != "openai":
        check_path(Call("/stream" if stream else "/predict", {}), ("/predict",))
        return await answer(model, Call("/predict", body), request, Unchanged())
    if not isinstance(body.get("prompt"), str) or not body["prompt"]:
        raise InvalidRequest("prompt must be a text that is not empty.", "prompt")
    body = {"max_tokens": 16, "temperature": 0, **body, "stream": stream}
    return await answer(model, Call("/v1/completions", body), request, Plain())


async def answer(model: Model, call: Call, request: Request, shape: Unchanged) -> Response:
    """Asks a model, and gives its answer a shape; ends the request when the client leaves."""
    gateway: Gateway = request.app.state.service
    pieces = gateway.ask(model, call)
    first = await unless_gone(request, anext(pieces))
    if call.stream:
        return EventStream(first, pieces, shape, gateway.write_seconds)
    await pieces.aclose()
    if (content := shape.chunk(first)) is None:
        raise PredictorFailed(f"{model.spec.name} answered without a choice.")
    return Json(content)


async def read_body(request: Request) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is no JSON.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body
