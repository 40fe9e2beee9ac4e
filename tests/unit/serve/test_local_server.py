"""A server by its command line: its address, its end, and why it did not start."""

import sys

import httpx
import psutil
import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.serve.local_server import LocalServer

SERVE = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.headers["Authorization"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(os.environ["GREETING"], f"at http://127.0.0.1:{server.server_port}")
server.serve_forever()
"""


def test_a_server_is_found_asked_with_its_key_and_ended():
    server = LocalServer([sys.executable, "-c", SERVE], {"GREETING": "Here"}, api_key="a-key")
    assert server.client.get("/").text == "Bearer a-key" and server.output().startswith("Here at ")
    assert server.stop() == -15 and not psutil.pid_exists(server.process.pid)
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url, trust_env=False)


@pytest.mark.parametrize("code", ["import sys; sys.exit('no model')", "print('no model'); input()"])
def test_what_does_not_start_shows_its_output_and_is_ended(code):
    with pytest.raises(FlowError, match=r"did not start.*\n.*no model"):
        LocalServer([sys.executable, "-c", f"import time\n{code}\ntime.sleep(60)"], seconds=1)
    assert not [p for p in psutil.Process().children() if "no model" in " ".join(p.cmdline())]
