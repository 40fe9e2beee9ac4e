"""Asks a served model questions; returns answers whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx

from model_serve_flow.serve.endpoint import Endpoint


def ask(endpoint: Endpoint, question: str, max_tokens: int = 48) -> str:
    """Asks one chat question at temperature 0 and returns the answer."""
    with endpoint.client() as client:
        response = client.post(
            "/v1/chat/completions", json=chat_body(endpoint.model_name, question, max_tokens)
        )
    response.raise_for_status()
    return chat_content(response.json(), "message").strip()


def stream(endpoint: Endpoint, question: str, max_tokens: int = 48) -> Iterator[str]:
    """Asks one chat question and yields the answer in pieces, as server-sent events arrive."""
    body = {**chat_body(endpoint.model_name, question, max_tokens), "stream": True}
    with (
        endpoint.client() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        response.raise_for_status()
        for event in server_sent_events(response):
            if event != "[DONE]":
                yield chat_content(json.loads(event), "delta")


def chat_body(model: str, question: str, max_tokens: int) -> dict[str, Any]:
    """Builds the request body of a chat completion of one question, at temperature 0."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def server_sent_events(response: httpx.Response) -> Iterator[str]:
    """Yields the data of each event of a streamed response; the last event is `[DONE]`."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def chat_content(document: Any, part: Literal["message", "delta"]) -> str:
    """Returns the text of a chat completion, or of one chunk of a stream.

    Raises:
        ValueError: the document is neither.
    """
    try:
        choices = document["choices"]
        return (choices[0][part].get("content") or "") if choices else ""
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {json.dumps(document)}") from error
