"""Serves the plain endpoints: one prompt, a batch, a stream, and the same prompts to vLLM."""

import os
import uuid
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving_from_scratch.api.openai import encode_all
from serving_from_scratch.api.schemas import GenerateBody
from serving_from_scratch.api.sse import Here, Json, Service, Shape, respond
from serving_from_scratch.core.errors import InvalidRequest, PredictorFailed, Unavailable
from serving_from_scratch.engine.llm_engine import Job
from serving_from_scratch.engine.workload import Delta

router = APIRouter()
HINT = "Start `vllm serve <folder>` and name its address with --vllm."


class PlainShape(Shape):
    """Answers with text, token ids and finish reason.

    Args:
        single: whether there is one answer, which needs no list.
    """

    def __init__(self, model: str, single: bool) -> None:
        self.model, self.single, self.id = model, single, uuid.uuid4().hex

    def whole(self, answers: list[Delta]) -> dict[str, Any]:
        worded = [self.chunk(answer) for answer in answers]
        return {"model": self.model, **(worded[0] if self.single else {"answers": worded})}

    def chunk(self, delta: Delta) -> dict[str, Any]:
        return {
            "id": f"{self.id}-{delta.job}",
            "text": delta.text,
            "token_ids": list(delta.tokens),
            "finish_reason": delta.finish_reason,
        }


@router.post("/basic_generate")
async def basic_generate(body: GenerateBody, request: Request) -> Response:
    """Answers one prompt."""
    return await answer(body, request, single=True)


@router.post("/generate")
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answers one or more prompts side by side."""
    return await answer(body, request)


@router.post("/generate_stream")
async def generate_stream(body: GenerateBody, request: Request) -> Response:
    """Streams the answer to one prompt, one event per token."""
    return await answer(body, request, single=True, stream=True)


@router.post("/predict")
async def predict(model: str, body: GenerateBody, request: Request) -> Response:
    """Answers one prompt; the address names the model, so that a proxy can route by it."""
    body.model = model
    return await answer(body, request, single=True)


@router.post("/stream")
async def stream(model: str, body: GenerateBody, request: Request) -> Response:
    """Streams the answer of /predict."""
    body.model = model
    return await answer(body, request, single=True, stream=True)


@router.post("/generate_vllm")
async def generate_vllm(body: GenerateBody, service: Here) -> Response:
    """Asks vLLM, and answers in the form of /generate."""
    service.check_model(body.model)
    if not service.vllm:
        raise Unavailable(f"No vLLM runs beside this server. {HINT}", 60)
    wanted = body.model_dump(exclude_none=True, exclude={"model", "timeout", "user"})
    try:
        completion = await ask_vllm(service.vllm, wanted)
        answers = [
            Delta(
                job=place,
                text=choice["text"],
                tokens=tuple(choice.get("token_ids") or ()),
                finish_reason=choice["finish_reason"],
            )
            for place, choice in enumerate(completion["choices"])
        ]
    except httpx.ConnectError as error:
        raise Unavailable(f"vLLM does not answer at {service.vllm}. {HINT}", 60) from error
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise PredictorFailed(f"vLLM at {service.vllm} failed: {error!r}.") from error
    return Json(PlainShape(completion["model"], single=False).whole(answers))


async def ask_vllm(url: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Asks vLLM for a greedy completion, with the key from vLLM's own variable."""
    wanted = {"max_tokens": 16, "temperature": 0, **wanted, "return_token_ids": True}
    headers = {"Authorization": f"Bearer {os.environ.get('VLLM_API_KEY', '')}"}
    client = httpx.AsyncClient(base_url=url, headers=headers, timeout=600, trust_env=False)
    async with client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        reply = await client.post("/v1/completions", json={**wanted, "model": model})
        return {**reply.raise_for_status().json(), "model": model}


async def answer(
    body: GenerateBody, request: Request, single: bool = False, stream: bool = False
) -> Response:
    """Answers with this server's own engine."""
    service: Service = request.app.state.door
    service.check_model(body.model)
    prompts = encode_all(service.engine.text, body.prompt)
    if single and len(prompts) > 1:
        problem = f"prompt has {len(prompts)} texts; the limit is 1."
        raise InvalidRequest(problem, "prompt", "/generate takes several.")
    sampling = body.sampling(max_tokens=16, temperature=0.0)
    jobs = [Job(prompt, sampling) for prompt in prompts]
    return await respond(request, jobs, PlainShape(service.name, single), stream, body.timeout)
