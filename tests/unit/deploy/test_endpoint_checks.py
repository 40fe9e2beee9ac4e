"""The endpoint checks, against a server that answers as told."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model_serve_flow.deploy.endpoint_checks import check_endpoint, require_checks
from model_serve_flow.errors import FlowError
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.endpoint import Endpoint

KEY = "sk-very-secret-key"
MODEL = "w8a8-int8"
LIMIT = 64


class StubHandler(BaseHTTPRequestHandler):
    """As vLLM answers, but for the faults in `self.server.faults`."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def reply(self, status: int, body: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def refused(self) -> bool:
        return (
            "no key check" not in self.server.faults
            and self.headers.get("Authorization") != f"Bearer {KEY}"
        )

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.reply(503 if "sick" in self.server.faults else 200, "")
        if self.refused():
            return self.reply(401, "{}")
        if "html" in self.server.faults:
            return self.reply(200, "<html>welcome</html>", "text/html")
        return self.reply(
            200,
            json.dumps(
                {"data": [{"id": "other" if "other model" in self.server.faults else MODEL}]}
            ),
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        faults = self.server.faults
        if self.refused():
            return self.reply(
                401, json.dumps({"error": f"bad key {self.headers.get('Authorization')}"})
            )
        if body["model"] != MODEL and "any model" not in faults:
            return self.reply(404, '{"error": "no such model"}')
        chats = self.path == "/v1/chat/completions"
        if chats and "no template" in faults:
            return self.reply(400, '{"error": "a chat template must be given"}')
        asked = body["messages"][0]["content"] if chats else body["prompt"]
        if len(asked.split()) >= LIMIT and "any length" not in faults:
            return self.reply(400, '{"error": "too long"}')
        if body.get("stream"):
            return self.stream(faults, chats)
        text = (
            ""
            if "silent" in faults
            else "x" * 150 + KEY
            if "echo key" in faults
            else "Red, green, blue."
        )
        return self.reply(200, json.dumps(answer(text, "message", faults, chats)))

    def stream(self, faults: set[str], chats: bool) -> None:
        pieces = ["Red, green, blue."] if "one chunk" in faults else ["Red, ", "green, ", "blue."]
        events = [json.dumps(answer(piece, "delta", faults, chats)) for piece in pieces]
        events += [] if "no end" in faults else ["[DONE]"]
        self.reply(200, "".join(f"data: {event}\n\n" for event in events), "text/event-stream")


def answer(text: str, part: str, faults: set[str], chats: bool) -> dict[str, object]:
    """An answer in vLLM's form; with a reasoning parser, text goes where no reader looked."""
    if not chats:
        return {"choices": [{"text": text}]}
    content = {"content": None, "reasoning": text} if "reasons" in faults else {"content": text}
    return {"choices": [{part: content}]}


@contextlib.contextmanager
def stub(*faults: str) -> Iterator[Endpoint]:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), StubHandler) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        settings = {} if "no template" in faults else {"chat_template": "{{ messages }}"}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        server.faults = set(faults)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Endpoint(f"http://127.0.0.1:{server.server_port}", MODEL, KEY, Path(folder))
        finally:
            server.shutdown()
            thread.join()


def test_a_good_endpoint_passes_every_check():
    with stub() as server:
        checks = check_endpoint(server, LIMIT)
    require_checks(checks)
    assert [c.name for c in checks] == [
        *(
            "health",
            "model list",
            "chat",
            "streaming",
            "missing key",
            "wrong key",
            "wrong model",
            "prompt too long",
        ),
    ]
    assert checks[3].got == "3 chunks, then [DONE]" and "first token after" in checks[3].detail
    assert all(c.milliseconds > 0 for c in checks)


@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        ("sick", {"health"}),
        ("no key check", {"missing key", "wrong key"}),
        ("other model", {"model list"}),
        ("html", {"model list"}),
        ("any model", {"wrong model"}),
        ("any length", {"prompt too long"}),
        ("silent", {"chat"}),
        ("one chunk", {"streaming"}),
        ("no end", {"streaming"}),
    ],
)
def test_each_fault_fails_its_check(fault, failed):
    with stub(fault) as server:
        checks = check_endpoint(server, LIMIT)
    assert {c.name for c in checks if not c.ok} == failed
    with pytest.raises(FlowError, match="must not be deployed") as caught:
        require_checks(checks)
    assert all(name in str(caught.value) for name in failed)


@pytest.mark.parametrize(("kind", "name"), [("no template", "completion"), ("reasons", "chat")])
def test_a_base_model_and_a_model_that_reasons_pass_as_what_they_are(kind, name):
    with stub(kind) as server:
        checks = check_endpoint(server, LIMIT)
        said, pieces = ask(server, "Name three colours."), list(stream(server, "And more?"))
    require_checks(checks)
    assert checks[2].name == name and said == "Red, green, blue."
    assert pieces == ["Red, ", "green, ", "blue."]


def test_a_dead_endpoint_fails_every_check():
    with stub() as server:
        pass
    checks = check_endpoint(server, LIMIT)
    assert [c.got for c in checks] == ["no answer"] * 8 and not any(c.ok for c in checks)


def test_the_key_never_reaches_a_check():
    with stub("echo key") as server:
        checks = check_endpoint(server, LIMIT)
    # nor half of it, where a long answer is cut
    assert KEY[:9] not in repr(checks) and "***" in checks[2].detail


def test_no_checks_are_not_enough():
    with pytest.raises(FlowError, match="not checked"):
        require_checks(())
