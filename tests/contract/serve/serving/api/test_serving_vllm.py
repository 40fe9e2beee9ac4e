"""/generate_vllm: the same words from another server, and what is said when that one fails.

The other server answers as vLLM 0.32 does; vLLM itself takes minutes to start.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUESTION = {"prompt": ["a", "b"], "max_tokens": 2}
GOOD = {
    "choices": [
        {"index": 0, "text": " x", "token_ids": [5, 6], "finish_reason": "length"},
        {"index": 1, "text": " y", "token_ids": [7], "finish_reason": "stop"},
    ]
}


@contextmanager
def another(status, answer):
    """A server that gives one answer; yields its address and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(200, b'{"data": [{"id": "other-name"}]}')

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            self.reply(status, answer)

        def reply(self, status, content):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_vllm_answers_in_the_words_of_generate(start, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "its-key")
    with another(200, json.dumps(GOOD).encode()) as (url, asked), start("--vllm", url) as server:
        own, other = (server.post(path, **QUESTION) for path in ("/generate", "/generate_vllm"))
        assert own.json().keys() == other.json().keys()
        assert own.json()["answers"][0].keys() == other.json()["answers"][0].keys()
        assert [a["token_ids"] for a in other.json()["answers"]] == [[5, 6], [7]]
        assert server.post("/generate_vllm", prompt="a", max_tokens="x").status_code == 400
    [(path, key, body)] = asked
    assert path == "/v1/completions" and key == "Bearer its-key"
    assert body["model"] == "other-name" and body["prompt"] == ["a", "b"]
    assert body["temperature"] == 0


def test_a_vllm_that_fails_is_named(start):
    with another(200, b"nonsense") as (url, _), start("--vllm", url) as server:
        reply = server.post("/generate_vllm", **QUESTION)
        assert reply.status_code == 502 and url in reply.json()["error"]["message"]
    with another(500, b"{}") as (url, _), start("--vllm", url) as server:
        assert server.post("/generate_vllm", **QUESTION).status_code == 502
