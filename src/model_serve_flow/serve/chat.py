"""Asks a served model questions; returns answers whole or piece by piece.

A chat model is asked through `/v1/chat/completions`. A base model has no chat template, so its
endpoint refuses chats; it is asked to continue a text through `/v1/completions`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from model_serve_flow.errors import FlowError
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.files import read_json

# Files with a template of their own, or (Mistral's tokenizer) with a chat format built in.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tekken.json")
LONGEST_REFUSAL = 500  # characters of a server's message that are shown
REASONING = ("reasoning", "reasoning_content")  # text before the answer, in vLLM's names of it


@dataclass(frozen=True)
class Way:
    """A way of asking: the path of the requests, and what goes in and out.

    Attributes:
        name: what it is called in a check.
        path: path of the requests.
        chats: whether a request is a conversation.
    """

    name: str
    path: str
    chats: bool

    def body(self, model: str, question: str, max_tokens: int) -> dict[str, Any]:
        """Builds the request body of one question at temperature 0."""
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": question}]}
            if self.chats
            else {"prompt": question}
        )
        return {"model": model, **asked, "max_tokens": max_tokens, "temperature": 0}

    def text(self, document: Any) -> str:
        """Returns the text of an answer, or of one chunk of a stream.

        A model that reasons may spend all tokens on its reasoning, which then counts as the text.

        Raises:
            ValueError: the document is neither.
        """
        try:
            choices = document["choices"]
            if not choices:
                return ""
            if not self.chats:
                return choices[0]["text"]
            part = choices[0]["delta" if "delta" in choices[0] else "message"]
            return next(filter(None, map(part.get, ("content", *REASONING))), "")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a {self.name} answer: {json.dumps(document)}") from error


CHAT = Way("chat", "/v1/chat/completions", chats=True)
COMPLETION = Way("completion", "/v1/completions", chats=False)


def way_of(folder: Path) -> Way:
    """Returns how the model of this checkpoint is asked."""
    settings = folder / "tokenizer_config.json"
    named = read_json(settings).get("chat_template") if settings.is_file() else None
    return CHAT if named or any((folder / name).is_file() for name in TEMPLATES) else COMPLETION


def _require_accepted(endpoint: Endpoint, response: httpx.Response) -> None:
    """Checks that the server took the question.

    Raises:
        FlowError: it refused; shows the status and the start of what the server said.
    """
    if response.is_error:
        said = response.read().decode(errors="replace").strip()
        raise FlowError(
            f"The server of {endpoint.model_name} refused a question with status "
            f"{response.status_code}: {said[:LONGEST_REFUSAL]}",
            "If it is too long for the server, raise engine.max_model_len.",
        )


def ask(endpoint: Endpoint, question: str, max_tokens: int = 48) -> str:
    """Asks one question at temperature 0 and returns the answer.

    Raises:
        FlowError: the server refused the question.
    """
    way = way_of(endpoint.folder)
    body = way.body(endpoint.model_name, question, max_tokens)
    with endpoint.client() as client:
        response = client.post(way.path, json=body)
    _require_accepted(endpoint, response)
    return way.text(response.json()).strip()


def stream(endpoint: Endpoint, question: str, max_tokens: int = 48) -> Iterator[str]:
    """Asks one question and yields the answer in pieces, as server-sent events arrive.

    Raises:
        FlowError: the server refused the question.
    """
    way = way_of(endpoint.folder)
    body = {**way.body(endpoint.model_name, question, max_tokens), "stream": True}
    with endpoint.client() as client, client.stream("POST", way.path, json=body) as response:
        _require_accepted(endpoint, response)
        for event in server_sent_events(response):
            if event != "[DONE]":
                yield way.text(json.loads(event))


def server_sent_events(response: httpx.Response) -> Iterator[str]:
    """Yields the data of each event of a streamed response; the last event is `[DONE]`."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()
