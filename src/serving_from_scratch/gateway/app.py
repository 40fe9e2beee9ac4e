"""Builds the gateway: one public door in front of several models."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.exceptions import HTTPException

from serving_from_scratch.api.app import LOCKED, has_key, open_door
from serving_from_scratch.api.sse import Door, EventStream, Json, door_of, unless_gone
from serving_from_scratch.core.errors import InvalidRequest, PredictorFailed
from serving_from_scratch.gateway.lifecycle import ModelPool
from serving_from_scratch.gateway.predictors import Answer, Call, PredictorRefused, check_path
from serving_from_scratch.gateway.registry import GatewayFile, Model, ModelSpec, ModelStore
from serving_from_scratch.gateway.routing import BALANCERS, Balancer, ask_one

PREFIX = "gateway_"
Show = Callable[[Answer], Answer | None]  # what clients see of an answer or a piece
router, admin = APIRouter(), APIRouter(prefix="/admin/models")


@dataclass(eq=False, kw_only=True)
class Gateway(Door):
    """What the routes share.

    Attributes:
        admin_key: that the admin routes want; "" closes them.
    """

    store: ModelStore
    pool: ModelPool
    admin_key: str = ""
    body_bytes: int = 12_000_000
    balancers: dict[str, Balancer] = field(default_factory=dict)

    async def ask(
        self, model: Model, call: Call, show: Show | None
    ) -> AsyncGenerator[Answer, None]:
        """Yields the answer of one of the model's predictors, or its pieces, as `show` has it."""
        spec = model.spec
        body = {**call.body, "model": spec.upstream or spec.name}
        balancer = self.balancers.setdefault(spec.name, BALANCERS[spec.balance]())
        async with self.pool.use(model) as predictors:
            pieces = ask_one(predictors, balancer, Call(call.path, body))
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    if shown := show(piece) if show else piece:
                        yield shown

    def collect(self) -> Iterator[Metric]:
        """Yields the numbers of all predictors for Prometheus."""
        labels = ["model", "predictor"]
        total = CounterMetricFamily(PREFIX + "requests", "by predictor", labels=labels)
        running = GaugeMetricFamily(PREFIX + "in_flight", "by predictor", labels=labels)
        healthy = GaugeMetricFamily(PREFIX + "healthy", "by predictor", labels=labels)
        for name, model in list(self.store.models.items()):
            for predictor in model.predictors:
                total.add_metric([name, predictor.name], predictor.requests)
                running.add_metric([name, predictor.name], predictor.in_flight)
                healthy.add_metric([name, predictor.name], bool(predictor.healthy))
        yield from (total, running, healthy)


TheGateway = Annotated[Gateway, Depends(door_of)]


def create_gateway(file: GatewayFile, key: str = "", admin_key: str = "") -> FastAPI:
    """Makes the application; its shutdown ends the predictors that it started."""
    store = ModelStore(file)
    pool = ModelPool(store, file.limit)
    gateway = Gateway(store=store, pool=pool, key=key, admin_key=admin_key)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(pool.watch())
        yield
        watching.cancel()
        await pool.close()

    app = open_door(gateway, gateway, lifespan, PREFIX)
    app.get("/")(front)
    app.get("/health")(health)
    app.include_router(admin, dependencies=[Depends(require_admin_key)])
    app.include_router(router, dependencies=LOCKED)
    app.add_exception_handler(PredictorRefused, pass_refusal)
    return app


async def require_admin_key(request: Request) -> None:
    """Checks the admin key; without one the admin routes are closed."""
    key = request.app.state.door.admin_key
    if not key or not has_key(request, key):
        raise HTTPException(401, "The admin key is missing or wrong.")


async def front(gateway: TheGateway) -> Response:
    """Says what this is."""
    paths = {name: model.spec.path for name, model in gateway.store.models.items()}
    return Json({"service": "serving-from-scratch gateway", "models": paths})


async def health(gateway: TheGateway) -> Response:
    """Says that the gateway runs, and which predictors answer."""
    states = {
        name: {predictor.name: predictor.healthy for predictor in model.predictors}
        for name, model in gateway.store.models.items()
    }
    return Json({"status": "ok", "models": states})


async def pass_refusal(request: Request, error: PredictorRefused) -> Response:
    """Gives a client the predictor's own refusal."""
    return Json(error.content, error.status, error.headers)


@router.get("/v1/models")
async def models(gateway: TheGateway) -> Response:
    """Lists the models."""
    specs = [model.spec for model in gateway.store.models.values()]
    fixed = {"object": "model", "created": 0}
    listed = [{"id": spec.name, **fixed, "owned_by": spec.kind} for spec in specs]
    return Json({"object": "list", "data": listed})


@router.post("/predict")
async def predict(model: str, request: Request, gateway: TheGateway) -> Response:
    """Answers one prompt, or names one image."""
    return await plain(gateway.store.by_name(model), request, stream=False)


@router.post("/stream")
async def stream(model: str, request: Request, gateway: TheGateway) -> Response:
    """Streams the answer of /predict."""
    return await plain(gateway.store.by_name(model), request, stream=True)


@router.post("/v1/{rest:path}")
async def by_name(request: Request, gateway: TheGateway) -> Response:
    """Sends a request to the model that its body names."""
    body = await read_body(request)
    model = gateway.store.by_name(body.get("model"))
    return await answer(model, Call(request.url.path, body), request)


@router.post("/{path:path}")
async def by_path(request: Request, gateway: TheGateway) -> Response:
    """Sends a request to the model whose path begins its address."""
    model, rest = gateway.store.by_path(request.url.path)
    if rest in ("/predict", "/stream"):
        return await plain(model, request, stream=rest == "/stream")
    return await answer(model, Call(rest, await read_body(request)), request)


@admin.get("")
async def list_models(gateway: TheGateway) -> Response:
    """Lists the models with what runs for them."""
    return Json([describe(gateway, model) for model in gateway.store.models.values()])


@admin.post("")
async def register(spec: ModelSpec, gateway: TheGateway) -> Response:
    """Adds a model, until the gateway ends: models.yaml is not written."""
    model = gateway.store.add(spec)
    gateway.pool.connect(model)
    return Json(describe(gateway, model), 201)


@admin.delete("/{name:path}")
async def unregister(name: str, gateway: TheGateway) -> Response:
    """Removes a model: new requests get 404, running ones may end, then its process ends."""
    model = gateway.store.remove(name)
    gateway.balancers.pop(name, None)
    await gateway.pool.remove(model)
    return Json({"removed": name})


def describe(gateway: Gateway, model: Model) -> dict[str, Any]:
    """Shows a model to an admin, without keys."""
    process = model.process.child.pid if model.process else None
    state = {"loaded": model.spec.name in gateway.pool.loaded, "process": process}
    return {**model.spec.model_dump(), **state, "in_flight": model.in_flight}


async def plain(model: Model, request: Request, stream: bool) -> Response:
    """Answers /predict and /stream: of a language model by a greedy completion."""
    body = await read_body(request)
    if model.spec.kind != "openai":
        check_path(Call("/stream" if stream else "/predict", {}), ("/predict",))
        return await answer(model, Call("/predict", body), request)
    if not isinstance(body.get("prompt"), str) or not body["prompt"]:
        raise InvalidRequest("prompt must be a text that is not empty.", "prompt")
    body = {"max_tokens": 16, "temperature": 0, **body, "stream": stream}
    return await answer(model, Call("/v1/completions", body), request, first_choice)


def first_choice(completion: Answer) -> Answer | None:
    """Takes out of a completion what /predict answers; None if it has no choice."""
    if not completion.get("choices"):
        return None
    choice = completion["choices"][0]
    shown = {"text": choice.get("text", ""), "finish_reason": choice.get("finish_reason")}
    return {"model": completion.get("model"), **shown}


async def answer(model: Model, call: Call, request: Request, show: Show | None = None) -> Response:
    """Asks a model; ends the request when the client leaves."""
    gateway: Gateway = request.app.state.door
    pieces = gateway.ask(model, call, show)
    first = await unless_gone(request, anext(pieces, None))
    if first is None:
        raise PredictorFailed(f"{model.spec.name} answered without a choice.")
    if call.stream:
        return EventStream(first, pieces, gateway.write_seconds)
    await pieces.aclose()
    return Json(first)


async def read_body(request: Request) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is no JSON.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body
