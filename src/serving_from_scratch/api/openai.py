"""Serves OpenAI's endpoints; OpenAI's client, GuideLLM and lm-eval use them unchanged."""

import base64
import struct
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving_from_scratch.api.schemas import ChatBody, CompletionBody, EmbeddingBody, Ids
from serving_from_scratch.api.sse import Here, Json, Service, Shape, collect, respond, unless_gone
from serving_from_scratch.api.tools import CallReader, conversation, grammar_of, offered
from serving_from_scratch.core.errors import InvalidRequest
from serving_from_scratch.core.request import SamplingParameters, TokenLogprob
from serving_from_scratch.engine.llm_engine import Job
from serving_from_scratch.engine.text import Text
from serving_from_scratch.engine.workload import Delta

router = APIRouter(prefix="/v1")


@router.get("/models")
async def models(service: Here) -> Response:
    """Lists the one model of this server."""
    length = service.engine.limits.max_length
    model = {"id": service.name, "object": "model", "created": 0, "owned_by": "local"}
    return Json({"object": "list", "data": [{**model, "max_model_len": length}]})


@router.post("/completions")
async def completions(body: CompletionBody, request: Request, service: Here) -> Response:
    """Continues one or more prompts."""
    service.check_model(body.model)
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens is 0; the limit is at least 1 without echo.", "max_tokens")
    prompts = encode_all(service.engine.text, body.prompt)
    defaults = {"max_tokens": 16, "temperature": 1.0, "logprobs": body.logprobs}
    defaults["prompt_logprobs"] = body.logprobs if body.echo else None
    choices = [body.sampling(choice, **defaults) for choice in range(body.n)]
    jobs = [Job(prompt, sampling) for prompt in prompts for sampling in choices]
    shape = CompletionShape(service, body, prompts)
    return await respond(request, jobs, shape, body.stream, body.timeout)


@router.post("/chat/completions")
async def chat(body: ChatBody, request: Request, service: Here) -> Response:
    """Answers the last turn of a conversation."""
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true.", "top_logprobs")
    body.max_tokens = body.max_completion_tokens or body.max_tokens
    grammar = grammar_of(body)
    prompt = service.engine.text.chat(conversation(body))
    room = max(service.engine.limits.max_length - len(prompt), 1)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    defaults = {"max_tokens": room, "temperature": 1.0, "logprobs": logprobs, "grammar": grammar}
    jobs = [Job(prompt, body.sampling(choice, **defaults)) for choice in range(body.n)]
    shape = ChatShape(service, body, [prompt])
    return await respond(request, jobs, shape, body.stream, body.timeout)


@router.post("/embeddings")
async def embeddings(body: EmbeddingBody, request: Request, service: Here) -> Response:
    """Returns the last hidden state of each text, scaled to length one."""
    service.check_model(body.model)
    if body.dimensions not in (None, service.engine.facts.hidden):
        problem = f"dimensions is {body.dimensions}; this model has {service.engine.facts.hidden}."
        raise InvalidRequest(problem, "dimensions")
    prompts = encode_all(service.engine.text, body.input, "input")
    jobs = [Job(prompt, SamplingParameters(max_tokens=0), embed=True) for prompt in prompts]
    deltas = service.engine.generate(jobs, seconds=body.timeout)
    answers = await unless_gone(request, collect(deltas, len(jobs)))
    written: Any = in_base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": answer.job, "embedding": written(answer.embedding)}
        for answer in answers
    ]
    tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Json({"object": "list", "model": service.name, "data": data, "usage": usage})


class OpenAIShape(Shape):
    """Shares the frame and the usage of completions and chat completions.

    Args:
        prompts: of the request; a prompt with several choices counts once.
    """

    kind = chunk_kind = ""  # of the JSON object
    prefix = ""

    def __init__(
        self, service: Service, body: CompletionBody | ChatBody, prompts: list[Ids]
    ) -> None:
        self.service = service
        self.text: Text = service.engine.text
        self.options = body.stream_options
        self.wants_logprobs = body.logprobs not in (None, False)
        self.prompt_tokens = sum(map(len, prompts))
        self.completion_tokens = 0
        self.begun: set[int] = set()  # jobs of which a piece was sent
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, answers: list[Delta]) -> dict[str, Any]:
        self.completion_tokens = sum(len(answer.tokens) for answer in answers)
        choices = [self.choice(answer, whole=True) for answer in answers]
        return {**self._frame(self.kind, choices), "usage": self._usage()}

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        self.completion_tokens += len(delta.tokens)
        silent = not (delta.text or delta.finish_reason or self.wants_logprobs)
        if silent and delta.job in self.begun:
            return None
        frame = self._frame(self.chunk_kind, [self.choice(delta, whole=False)])
        self.begun.add(delta.job)
        if self.options and self.options.continuous_usage_stats:
            frame["usage"] = self._usage()
        return frame

    def last(self) -> dict[str, Any] | None:
        wanted = self.options and self.options.include_usage
        return {**self._frame(self.chunk_kind, []), "usage": self._usage()} if wanted else None

    def choice(self, delta: Delta, whole: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        frame = {"id": self.id, "object": kind, "created": self.created}
        return {**frame, "model": self.service.name, "choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        total = {"total_tokens": prompt + completion}
        return {"prompt_tokens": prompt, "completion_tokens": completion, **total}


class CompletionShape(OpenAIShape):
    """Answers /v1/completions; with echo, each answer begins with its prompt."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionBody, prompts: list[Ids]) -> None:
        super().__init__(service, body, prompts)
        self.echoed = [prompt for prompt in prompts for _ in range(body.n)] if body.echo else []
        self._offsets: dict[int, int] = {}  # job -> characters so far

    def choice(self, delta: Delta, whole: bool) -> dict[str, Any]:
        prompt = self.echoed[delta.job] if self.echoed and delta.job not in self.begun else []
        shown = self.text.tokenizer.decode(prompt, skip_special_tokens=False)
        return {
            "index": delta.job,
            "text": shown + delta.text,
            "logprobs": self._logprobs(delta, prompt) if self.wants_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, delta: Delta, prompt: Ids) -> dict[str, list[Any]]:
        entries = [*delta.prompt_logprobs, *delta.logprobs]
        tokens = [self.text.show(id) for id in prompt[:1] + [entry.token for entry in entries]]
        offsets = [self._offsets.get(delta.job, 0)]
        for token in tokens:
            offsets.append(offsets[-1] + len(token))
        self._offsets[delta.job] = offsets.pop()
        first = [None] * len(prompt[:1])  # the first token of a text has no probability
        return {
            "tokens": tokens,
            "token_logprobs": [*first, *(entry.logprob for entry in entries)],
            "top_logprobs": [*first, *(self._top(entry) for entry in entries)],
            "text_offset": offsets,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        likeliest = dict(entry.top) | {entry.token: entry.logprob}
        # Two tokens may have the same text: the likelier one is kept.
        by_rank = sorted(likeliest.items(), key=lambda pair: pair[1])
        return {self.text.show(token): logprob for token, logprob in by_rank}


class ChatShape(OpenAIShape):
    """Answers /v1/chat/completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, service: Service, body: ChatBody, prompts: list[Ids]) -> None:
        super().__init__(service, body, prompts)
        self.readers = [CallReader(bool(offered(body))) for _ in range(body.n)]

    def choice(self, delta: Delta, whole: bool) -> dict[str, Any]:
        said: dict[str, Any] = {} if delta.job in self.begun else {"role": "assistant"}
        said["content"], call = self.readers[delta.job].feed(delta)
        if call:
            said["content"] = said["content"] or None
            said["tool_calls"] = [call if whole else {"index": 0, **call}]
        logprobs = [self._entry(entry) for entry in delta.logprobs]
        return {
            "index": delta.job,
            "message" if whole else "delta": said,
            "logprobs": {"content": logprobs} if self.wants_logprobs else None,
            "finish_reason": "tool_calls" if call else delta.finish_reason,
        }

    def _entry(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(*pair) for pair in entry.top]
        return {**self._token(entry.token, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.text.show(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def encode_all(text: Text, prompt: str | Ids | list[str] | list[Ids], field="prompt") -> list[Ids]:
    """Turns one or more prompts, as text or as token ids, into token ids."""
    one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
    prompts: Any = [prompt] if one else prompt
    return [text.encode(p, field) if isinstance(p, str) else list(p) for p in prompts]


def in_base64(vector: tuple[float, ...]) -> str:
    """Encodes a vector as OpenAI's client expects it: 32-bit numbers, little-endian."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
