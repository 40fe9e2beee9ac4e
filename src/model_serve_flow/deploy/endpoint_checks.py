"""Checks that a served model answers what a production endpoint must, and refuses the rest."""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.serve.chat import Way, server_sent_events, way_of
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.records import NonNegative, Record

QUESTION = "Name three colours."
ANSWER_TOKENS = 32
REQUEST_SECONDS = 120.0


class EndpointCheck(Record):
    """One request to the endpoint: the expected and the actual answer."""

    name: str
    expected: str
    got: str
    ok: bool
    detail: str
    milliseconds: NonNegative


@dataclass(frozen=True)
class _StreamedAnswer:
    """An answer received as server-sent events."""

    text: str
    chunks: int
    first_token_ms: float | None
    finished: bool  # whether the last event was [DONE]


@dataclass(frozen=True)
class _Outcome:
    got: str
    ok: bool
    detail: str = ""


def check_endpoint(server: Endpoint, max_model_len: int) -> tuple[EndpointCheck, ...]:
    """Sends a running server the requests that it must answer and those that it must refuse.

    A failed check raises nothing; `require_checks` does.

    Args:
        server: the endpoint of the running server.
        max_model_len: the longest context of the server, in tokens.
    """
    key, model, way = server.api_key, server.model_name, way_of(server.folder)
    right, wrong = (
        {"Authorization": f"Bearer {token}"} for token in (key, secrets.token_urlsafe(32))
    )
    body = way.body(model, QUESTION, ANSWER_TOKENS)
    too_long = way.body(model, "one " * max_model_len, ANSWER_TOKENS)

    def refusal(name: str, headers: dict[str, str], body: dict[str, Any], status: int) -> Any:
        asked = functools.partial(_refusal, client, way, headers, body, status)
        return _check(name, str(status), key, asked)

    with httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS, trust_env=False) as client:
        return (
            _check("health", "200", key, lambda: _health(client)),
            _check("model list", f"names {model}", key, lambda: _model_list(client, right, model)),
            _check(way.name, "200 and an answer", key, lambda: _answer(client, way, right, body)),
            _check(
                "streaming",
                "chunks, then [DONE]",
                key,
                lambda: _streaming(client, way, right, model),
            ),
            refusal("missing key", {}, body, 401),
            refusal("wrong key", wrong, body, 401),
            refusal("wrong model", right, {**body, "model": f"not-{model}"}, 404),
            refusal("prompt too long", right, too_long, 400),
        )


def require_checks(checks: tuple[EndpointCheck, ...]) -> None:
    """Checks that every check passed.

    Raises:
        FlowError: names every failed check, or says that there are none.
    """
    failed = [
        f"{c.name}: expected {c.expected}, got {c.got}. {c.detail}".strip()
        for c in checks
        if not c.ok
    ]
    if failed or not checks:
        raise FlowError(
            "The endpoint must not be deployed:\n  "
            + "\n  ".join(failed or ["it was not checked"]),
            f"\nLook into the server's log. {RERUN}",
        )


def _streamed_answer(
    client: httpx.Client, way: Way, headers: dict[str, str], model: str
) -> _StreamedAnswer:
    """Asks for a streamed answer; returns its text, its pieces, the time of the first, its end."""
    pieces, first, data, started = [], None, None, time.perf_counter()
    body = {**way.body(model, QUESTION, ANSWER_TOKENS), "stream": True}
    with client.stream("POST", way.path, headers=headers, json=body) as response:
        if response.is_error:
            response.read()
        response.raise_for_status()
        for data in server_sent_events(response):
            piece = "" if data == "[DONE]" else way.text(json.loads(data))
            if piece:
                first = first or 1000 * (time.perf_counter() - started)
                pieces.append(piece)
    return _StreamedAnswer("".join(pieces), len(pieces), first, finished=data == "[DONE]")


def _check(name: str, expected: str, key: str, probe: Callable[[], _Outcome]) -> EndpointCheck:
    """Runs one probe and returns its result.

    An error of the request is a result too. The API key is never shown.
    """
    started = time.perf_counter()
    try:
        outcome = probe()
    except httpx.HTTPStatusError as error:
        outcome = _Outcome(str(error.response.status_code), False, error.response.text)
    except httpx.HTTPError as error:
        outcome = _Outcome("no answer", False, f"{type(error).__name__}: {error}")
    except ValueError as error:
        outcome = _Outcome("an answer of another form", False, str(error))
    return EndpointCheck(
        name=name,
        expected=expected,
        got=outcome.got.replace(key, "***"),
        ok=outcome.ok,
        # Remove the key before shortening, so that no half of it remains.
        detail=_short(outcome.detail.replace(key, "***")),
        milliseconds=round(1000 * (time.perf_counter() - started), 1),
    )


def _health(client: httpx.Client) -> _Outcome:
    status = client.get("/health").status_code
    return _Outcome(str(status), status == httpx.codes.OK)


def _model_list(client: httpx.Client, headers: dict[str, str], model: str) -> _Outcome:
    response = client.get("/v1/models", headers=headers).raise_for_status()
    document = response.json()
    try:
        names = [entry["id"] for entry in document["data"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a model list: {response.text}") from error
    return _Outcome(", ".join(map(str, names)) or "no model", model in names)


def _answer(
    client: httpx.Client, way: Way, headers: dict[str, str], body: dict[str, Any]
) -> _Outcome:
    response = client.post(way.path, headers=headers, json=body).raise_for_status()
    answer = way.text(response.json()).strip()
    return _Outcome(
        str(response.status_code) if answer else "an empty answer", bool(answer), answer
    )


def _streaming(client: httpx.Client, way: Way, headers: dict[str, str], model: str) -> _Outcome:
    answer = _streamed_answer(client, way, headers, model)
    # A single chunk means that the server, or a proxy before it, waits for the whole answer.
    ok = answer.finished and answer.chunks > 1
    got = f"{answer.chunks} chunks, {'then' if answer.finished else 'without'} [DONE]"
    first = "none" if answer.first_token_ms is None else f"after {answer.first_token_ms:.0f} ms"
    return _Outcome(got, ok, f"first token {first}: {answer.text.strip()}")


def _refusal(
    client: httpx.Client, way: Way, headers: dict[str, str], body: dict[str, Any], status: int
) -> _Outcome:
    response = client.post(way.path, headers=headers, json=body)
    return _Outcome(str(response.status_code), response.status_code == status, response.text)


def _short(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
