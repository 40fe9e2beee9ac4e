"""Any program as the engine: a few lines of Python with the endpoint that a profile describes."""

import json
import sys

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.manifest import read_manifest
from model_serve_flow.measure.performance import performance_protocol
from model_serve_flow.measure.provenance import proven_facts
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.serve.launch import serve

SERVER = """
import http.server, json, os, sys
print(sys.argv[1:], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = self.headers["Authorization"] == "Bearer " + os.environ["PROGRAM_KEY"]
        about = {"build": {"version": " 1.2 ", "empty": ""}} if key else {}
        known = {"/ready": {}, "/about": about}
        self.send_response(200 if self.path in known else 404); self.end_headers()
        self.wfile.write(json.dumps(known.get(self.path)).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
PLAIN = {
    "dtype": "bfloat16",
    "enforce_eager": False,
    "kv_cache_gib": None,
    "in_process_worker": False,
    "startup_seconds": 30,
}
PROGRAM = {
    "name": "Tiny",
    "command": ["{python}", "-c", SERVER, "{model}", "{port}", "{served_name}"],
    "health": "/ready",
    "version": {"path": "/about", "field": "build.version"},
    "variables": {"THREADS": "2"},
    "key_variable": "PROGRAM_KEY",
}
PRINTS = [sys.executable, "-c", "import sys; print('tiny 3.1', file=sys.stderr)"]


def settings(**program):
    engine = {**PLAIN, "kind": "command", "program": {**PROGRAM, **program}}
    return {f"engine.{key}": value for key, value in engine.items()}


@pytest.fixture
def flow(tmp_path):
    def of(**program):
        flow = Flow.open("ci", settings(**program), tmp_path)
        flow.workspace.model("base").mkdir(parents=True, exist_ok=True)
        return flow

    return of


def test_a_program_serves_and_proves_its_version(flow):
    with serve(here := flow(), "base", purpose="performance") as server:
        facts = proven_facts(server)
        shown = server.log.read_text()
    assert (facts.name, facts.version, facts.names_kernels) == ("Tiny", "1.2", False)
    assert facts.kernels == () and facts.peak_memory_bytes > 2**20
    assert server.log.name == "tiny-performance-base.log"
    assert f"{here.workspace.model('base')}', '{server.url.rpartition(':')[2]}', 'base'" in shown
    assert server.api_key not in shown + json.dumps(read_manifest(here.workspace))
    assert read_manifest(here.workspace)["servers"]["performance-base"]["variables"]["THREADS"]
    assert not server.process.is_running()


def test_the_settings_of_a_program_are_part_of_the_protocol(flow, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.8.1")  # of GuideLLM
    ours = performance_protocol(flow().config, "1.2")
    assert ours["engine_arguments"] == [*PROGRAM["command"], "THREADS=2"]
    assert performance_protocol(flow(variables={"THREADS": "4"}).config, "1.2") != ours


def test_a_program_that_prints_its_version_is_asked_by_its_command(flow):
    with serve(flow(version={"command": PRINTS}), "base") as server:
        assert server.facts().version == "tiny 3.1"


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ({"path": "/about", "field": "build.number"}, "/about has no build.number"),
        ({"path": "/nowhere", "field": "version"}, "/nowhere has no version"),
        ({"path": "/about", "field": "build"}, "build of /about is {'version'"),
        ({"path": "/about", "field": "build.empty"}, "build.empty of /about is ''"),
        ({"command": [sys.executable, "-c", "raise SystemExit(3)"]}, "exit code 3"),
    ],
)
def test_a_program_without_a_version_is_not_measured(flow, version, problem):
    with serve(flow(version=version), "base") as server, pytest.raises(FlowError) as refused:
        server.facts()
    assert refused.value.problem.startswith("Tiny does not say its version")
    assert problem in refused.value.problem


@pytest.mark.parametrize("key", ["command", "version.command"])
def test_a_program_that_is_missing_is_refused_before_anything_starts(flow, key):
    missing = ["no-such-program", "{model}", "{port}"]
    here = flow(command=missing) if key == "command" else flow(version={"command": missing[:1]})
    with pytest.raises(FlowError, match=rf"'no-such-program', which engine.program.{key} starts"):
        engine_of(here.config).require_installed()
    with pytest.raises(FlowError, match="no-such-program"), serve(here, "base"):
        pass
    assert not list(here.workspace.logs.glob("*"))


def test_a_program_that_ends_shows_its_last_words(flow):
    dying = ["{python}", "-c", "print('out of luck'); raise SystemExit(4)", "{model}", "{port}"]
    with (
        pytest.raises(FlowError, match=r"(?s)Tiny ended with exit code 4.*out of luck"),
        serve(flow(command=dying), "base"),
    ):
        pass


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ({"command": ["x", "{model}", "{prot}"]}, "{prot} is no placeholder; there are {host}"),
        ({"command": ["x", "{model}"]}, "{port} is missing"),
        ({"command": ["x", "{port}"]}, "{model} is missing"),
        (
            {"command": ["x", "{model}", "{port}", "--api-key=hush"]},
            "--api-key looks like a secret",
        ),
        ({"variables": {"HF_TOKEN": "hush"}}, "HF_TOKEN looks like a secret"),
        ({"version": {"path": "/about"}}, "either 'command', or 'path' and 'field'"),
        ({"name": "two words"}, "engine.program.name"),
        ({"health": "ready"}, "engine.program.health"),
    ],
)
def test_a_program_that_cannot_work_is_refused_naming_the_key(program, problem):
    with pytest.raises(FlowError) as refused:
        load_profile("ci", settings(**program))
    assert problem in str(refused.value) and "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"engine.program": None}, "need each other"),
        ({"engine.kind": "vllm"}, "need each other"),
        ({"engine.kv_cache_gib": 1}, "kv_cache_gib is a setting of vLLM"),
        ({"engine.host": "0.0.0.0", "engine.program.key_variable": None}, "asks for no key"),
    ],
)
def test_settings_that_the_program_would_not_get_are_refused(changes, problem):
    with pytest.raises(FlowError, match=problem):
        load_profile("ci", {**settings(), **changes})


def test_a_reader_is_shown_a_command_line_that_serves_the_current_folder():
    config = load_profile("ci", settings(command=["tiny", "{model}", "-p", "{port}"]))
    assert engine_of(config).shown_command("int8") == "tiny . -p 8000"
