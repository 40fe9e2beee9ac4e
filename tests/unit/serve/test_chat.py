"""A question that the server refuses is told with the server's own words."""

import http.server
import threading

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.serve.chat import ask, stream
from model_serve_flow.serve.endpoint import Endpoint


class Refuses(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"error": {"message": "max_tokens is 48; the limit is 20."}}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def endpoint(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever).start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}", "base", "key", tmp_path)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("way", [ask, lambda *asked: list(stream(*asked))])
def test_the_servers_reason_is_shown(endpoint, way):
    with pytest.raises(FlowError, match=r"status 400: .*the limit is 20") as refused:
        way(endpoint, "Why?")
    assert "engine.max_model_len" in refused.value.hint
