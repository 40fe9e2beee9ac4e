"""The server's life, with a few lines of Python in the engine's place;
the real engine is started in tests/e2e.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import read_manifest
from model_serve_flow.serve import engine_variables, launch, vllm, watchdog
from model_serve_flow.serve import server as server_module
from model_serve_flow.system import live

LOG = """
(EngineCore) INFO Initializing a V1 LLM engine (v0.32.0) with config: dtype=torch.float32, kv_cache_dtype=auto, \
quantization=compressed-tensors, seed=0
(Worker pid=2) INFO [__init__.py:1] Selected CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8
(Worker pid=2) INFO [__init__.py:1] Selected CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8
(EngineCore pid=1) INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum concurrency
"""  # noqa: E501
HEALTHY = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"])); self.do_GET()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SHOWS_KEY = "import os; print(os.environ['VLLM_API_KEY'], flush=True)" + HEALTHY
# one token takes longer than a server may be silent, but it computes all the while
COMPUTES = (
    HEALTHY.replace("import http.server", "import threading, http.server")
    .replace("self.rfile.read", "import time; time.sleep(5); self.rfile.read")
    .replace(
        "class Handler",
        "threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()\nclass "
        "Handler",
    )
)

# idle until it is asked; then other work comes first, as if it had arrived at the same moment
GETS_WORK = HEALTHY.replace("self.rfile.read", "[None for _ in iter(int, 1)]; self.rfile.read")

# takes one question and never answers it; as an engine that waits for a lock does
OWES_A_TOKEN = HEALTHY.replace("HTTPServer", "ThreadingHTTPServer").replace(
    "self.rfile.read", "import time; time.sleep(600); self.rfile.read"
)
SPINS_BESIDE_ITS_ENGINE = OWES_A_TOKEN.replace(
    "import time; time.sleep(600)", "[None for _ in iter(int, 1)]"
)
# every process that computes is gone a moment later, as those of a compiler are
COMPILES = OWES_A_TOKEN.replace(
    "time.sleep(600)",
    "[subprocess.run([sys.executable, '-Sc', 'for _ in range(10**6): pass']) for _ in iter(int, "
    "1)]",
)
# no CPU time to speak of, as with the work on a GPU, but its counter of tokens goes on
COUNTS = OWES_A_TOKEN.replace(
    "self.send_response(200); self.end_headers()",
    "import time; self.send_response(200); self.end_headers()\n"
    "        self.wfile.write(f'vllm:generation_tokens_total {time.time()}'.encode())",
)


@pytest.fixture
def flow(tmp_path):
    flow = Flow.open("ci", {"engine.startup_seconds": 20}, tmp_path)
    flow.workspace.model("base").mkdir(parents=True)
    return flow


def engine(monkeypatch, code):
    monkeypatch.setattr(
        vllm,
        "serve_command",
        lambda config, folder, name, port, purpose: [sys.executable, "-c", code, str(port)],
    )


def server(tmp_path, text):
    log = tmp_path / "vllm.log"
    log.write_text(text)
    return server_module.Server(
        "http://127.0.0.1:1",
        "base",
        "a-key",
        tmp_path,
        log,
        psutil.Process(),
        1.0,
        engine=VLLM,
    )


def test_facts_are_read_from_the_log(tmp_path):
    facts = server(tmp_path, LOG).facts()
    assert facts.version == "0.32.0"
    assert facts.quantization == "compressed-tensors"
    assert facts.kernels == ("CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8",)
    assert facts.dtype == "float32"
    assert facts.kv_cache_tokens == 46592
    assert facts.peak_memory_bytes > 2**20


def test_quantization_none_means_unquantised(tmp_path):
    facts = server(
        tmp_path, LOG.replace("quantization=compressed-tensors", "quantization=None")
    ).facts()
    assert facts.quantization is None


def test_a_log_without_a_version_is_not_trusted(tmp_path):
    with pytest.raises(FlowError, match="does not name the engine's version"):
        server(tmp_path, "nothing here").facts()


def test_the_whole_family_is_stopped(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    with launch.serve(flow, "base") as running:
        family = [running.process, *running.process.children(recursive=True)]
        assert len(family) == 2
    deadline = time.monotonic() + 10
    while any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family):
        assert time.monotonic() < deadline, "a process of the server is left"
        time.sleep(0.1)


def test_what_a_server_leaves_in_the_temporary_folder_goes_with_it(flow, monkeypatch, tmp_path):
    engine(monkeypatch, "import tempfile; tempfile.mkstemp(prefix='vllm_dist_')" + HEALTHY)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    with launch.serve(flow, "base"):
        assert list((tmp_path / "temporary").glob("*/vllm_dist_*"))
    assert not list((tmp_path / "temporary").iterdir())


def test_the_server_is_stopped_when_the_block_fails(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    with pytest.raises(ZeroDivisionError), launch.serve(flow, "base") as running:
        process = running.process
        raise ZeroDivisionError
    assert not process.is_running()


DIES = """
import sys
print("(EngineCore pid=1) ERROR 11-29 07:54:00 [core.py:1510] EngineCore failed to start.")
for line in ("Traceback (most recent call last):", '  File "core.py", line 1, in start', "ValueError: no room"):
    print("(EngineCore pid=1) ERROR 11-29 07:54:00 [core.py:1510]", line)
print("\\n".join(f"  line {number} of the server's own traceback" for number in range(60)))
raise SystemExit(1)
"""  # noqa: E501


def test_a_server_that_dies_says_why_first_and_shows_few_of_its_last_lines(flow, monkeypatch):
    engine(monkeypatch, DIES)
    with pytest.raises(FlowError) as died, launch.serve(flow, "base"):
        pass
    lines = str(died.value).splitlines()
    assert lines[0] == "vLLM ended with exit code 1 while starting. The cause:" and lines[
        1
    ].startswith("ValueError: no room")
    assert "line 59 of the server's own traceback" in str(died.value) and len(lines) < 10
    assert str(flow.workspace.logs / "vllm-serve-base.log") in lines[-1]


def test_a_server_that_dies_without_a_traceback_shows_its_last_lines(flow, monkeypatch):
    engine(monkeypatch, "print('CUDA out of memory'); raise SystemExit(3)")
    with (
        pytest.raises(FlowError, match=r"(?s)exit code 3 .*CUDA out of memory"),
        launch.serve(flow, "base"),
    ):
        pass


def test_our_own_looks_at_a_server_are_not_its_last_lines(tmp_path):
    look = 'INFO:     127.0.0.1:56310 - "GET /{} HTTP/1.1" 200 OK'
    log = tmp_path / "vllm.log"
    log.write_text(
        "\n".join(["it said this", *([look.format("health"), look.format("metrics")] * 30)])
    )
    assert server_module.log_tail(log) == "it said this"


def test_a_server_that_never_answers_is_ended(flow, monkeypatch, tmp_path):
    flow = Flow.open("ci", {"engine.startup_seconds": 1}, tmp_path)
    engine(monkeypatch, "import time; print('loading', flush=True); time.sleep(600)")
    with (
        pytest.raises(FlowError, match=r"(?s)did not answer within 1 s.*startup_seconds=2"),
        launch.serve(flow, "base"),
    ):
        pass


def test_a_port_in_use_is_refused(flow):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(FlowError, match="in use"),
            launch.serve(flow, "base", port=taken.getsockname()[1]),
        ):
            pass


def test_a_missing_model_folder_is_named(tmp_path):
    with (
        pytest.raises(FlowError, match="no model folder"),
        launch.serve(Flow.open("ci", {}, tmp_path), "base"),
    ):
        pass


def test_every_server_has_a_key_that_no_command_line_shows(flow, monkeypatch):
    engine(monkeypatch, SHOWS_KEY)
    with launch.serve(flow, "base") as one:
        assert one.log.read_text().splitlines()[0] == one.api_key
        assert not any(one.api_key in argument for argument in one.process.cmdline())
        assert one.api_key not in repr(one)
    with launch.serve(flow, "base") as other:
        assert other.api_key != one.api_key
    monkeypatch.setenv("MODEL_SERVE_FLOW_API_KEY", "the-key-of-the-user")
    with launch.serve(flow, "base") as given:
        assert given.api_key == "the-key-of-the-user"


SHOWS_VARIABLES = "import json, os; print(json.dumps(dict(os.environ)), flush=True)" + HEALTHY
# as Kubernetes sets for a Service named vllm, and as a user may have for a server of his own
HOSTILE = {
    "VLLM_PORT": "tcp://172.30.12.7:8000",
    "VLLM_PORT_8000_TCP_ADDR": "172.30.12.7",
    "VLLM_SERVICE_HOST": "172.30.12.7",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def variables(flow):
    """The environment that a server got."""
    with launch.serve(flow, "base") as running:
        return json.loads(running.log.read_text().splitlines()[0])


def test_variables_of_the_user_that_break_the_server_do_not_reach_it(flow, monkeypatch, capsys):
    monkeypatch.setattr(
        engine_variables, "known_names", lambda: {"VLLM_PORT", "VLLM_LOGGING_LEVEL", "VLLM_TUNED"}
    )
    for name, value in {**HOSTILE, "VLLM_TUNED": "yes", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    engine(monkeypatch, SHOWS_VARIABLES)
    got = variables(flow)
    assert (
        not HOSTILE.keys() & got.keys()
        and got["VLLM_TUNED"] == "yes"
        and got["VLLM_LOGGING_COLOR"] == "0"
    )
    said = capsys.readouterr().out
    assert "Not handed on to vLLM" in said and all(name in said for name in HOSTILE)
    recorded = read_manifest(flow.workspace)["servers"]["serve-base"]
    assert (
        recorded["not_handed_on"] == sorted(HOSTILE)
        and recorded["variables"]["VLLM_TUNED"] == "yes"
    )
    assert not any("KEY" in name for name in recorded["variables"])


@pytest.mark.parametrize(("users", "expected"), [(None, "passive"), ("active", "active")])
def test_servers_wait_passively_unless_the_user_wants_otherwise(flow, monkeypatch, users, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if users:
        monkeypatch.setenv("OMP_WAIT_POLICY", users)
    engine(monkeypatch, SHOWS_VARIABLES)
    assert variables(flow)["OMP_WAIT_POLICY"] == expected
    assert (
        read_manifest(flow.workspace)["servers"]["serve-base"]["variables"]["OMP_WAIT_POLICY"]
        == expected
    )


def test_what_an_eager_engine_would_compile_it_does_not(flow, monkeypatch, tmp_path):
    for name in ("TORCH_COMPILE_DISABLE", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    engine(monkeypatch, SHOWS_VARIABLES)
    assert variables(flow)["TORCH_COMPILE_DISABLE"] == "1"


def test_what_an_engine_compiles_is_there_for_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_SERVE_FLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "mine"))
    for name in ("TORCH_COMPILE_DISABLE", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    flow = Flow.open("ci", {"engine.enforce_eager": False, "engine.startup_seconds": 20}, tmp_path)
    flow.workspace.model("base").mkdir(parents=True)
    engine(monkeypatch, SHOWS_VARIABLES)
    first, second = variables(flow), variables(flow)
    assert first["TMPDIR"] != second["TMPDIR"] and "TORCH_COMPILE_DISABLE" not in first
    assert first["TORCHINDUCTOR_CACHE_DIR"] == second["TORCHINDUCTOR_CACHE_DIR"]
    assert first["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path / "cache"))
    assert first["VLLM_CACHE_ROOT"] == str(tmp_path / "mine"), "what the user set stays"


@pytest.mark.parametrize("profile", ["ci", "gpu-llama-3.1-8b"])
def test_the_prefix_cache_is_on_for_accuracy_off_for_speed_and_vllms_default_in_deployment(
    tmp_path, profile
):
    config = Flow.open(profile, {}, tmp_path).config
    plain = vllm.engine_arguments(config)
    assert vllm.engine_arguments(config, "performance") == plain
    deployed = vllm.engine_arguments(config, "deploy")
    assert deployed == [flag for flag in plain if flag != "--no-enable-prefix-caching"]
    scoring = vllm.engine_arguments(config, "accuracy")
    only = [flag for flag in scoring if flag not in plain]
    assert only == [
        "--enable-prefix-caching",
        *(["--block-size", "32"] if config.device == "cpu" else []),
    ]
    assert [flag for flag in plain if flag not in scoring] == ["--no-enable-prefix-caching"]
    command = vllm.serve_command(config, tmp_path, "base", 8000, "accuracy")
    assert command[-len(scoring) :] == scoring


def test_servers_listen_on_this_machine_only(flow):
    command = vllm.serve_command(flow.config, flow.workspace.model("base"), "base", 8000)
    assert command[command.index("--host") + 1] == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_an_address_that_others_reach_needs_a_key_of_the_user(tmp_path, monkeypatch, host):
    flow = Flow.open("ci", {"engine.host": host}, tmp_path)
    with pytest.raises(FlowError, match=r"other machines could reach.*MODEL_SERVE_FLOW_API_KEY"):
        launch.api_key(flow.config)
    monkeypatch.setenv("MODEL_SERVE_FLOW_API_KEY", "short")
    with pytest.raises(FlowError, match="has 5 characters"):
        launch.api_key(flow.config)
    monkeypatch.setenv("MODEL_SERVE_FLOW_API_KEY", "long-enough-for-a-key")
    assert launch.api_key(flow.config) == "long-enough-for-a-key"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_only_gets_a_key_by_itself(tmp_path, host):
    assert len(launch.api_key(Flow.open("ci", {"engine.host": host}, tmp_path).config)) >= 32


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"engine.host": "everywhere"}, "IP address"),
        (
            {"engine.extra_arguments": ["--api-key", "hunter2hunter2hunter2"]},
            "--api-key holds a secret",
        ),
        ({"engine.extra_arguments": ["--api_k=hunter2hunter2hunter2"]}, "--api-k holds a secret"),
        ({"engine.extra_arguments": ["--host=0.0.0.0"]}, "--host is set by the flow"),
        ({"engine.extra_arguments": ["--port", "80"]}, "--port is set by the flow"),
    ],
)
def test_a_profile_holds_no_secret_and_no_other_address(tmp_path, overrides, reason):
    with pytest.raises(FlowError, match=reason) as caught:
        Flow.open("ci", overrides, tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_failure_after_the_server_died_is_reported_as_that(flow, monkeypatch, number):
    engine(monkeypatch, HEALTHY)
    with (
        pytest.raises(
            server_module.ServerGone, match=rf"signal {number} \({number.name}\)"
        ) as caught,
        launch.serve(flow, "base") as running,
    ):
        family = [running.process, *running.process.children(recursive=True)]
        running.process.send_signal(number)
        raise ConnectionError("refused")
    assert isinstance(caught.value.__context__, ConnectionError)
    assert not alive(family), "a process of a server that was killed is left"


def test_a_failure_while_the_server_is_well_stays_what_it_is(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    started = time.monotonic()
    with pytest.raises(ConnectionError), launch.serve(flow, "base"):
        raise ConnectionError
    assert time.monotonic() - started < 8


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A flow whose servers are looked at often and may be silent for a second only."""
    monkeypatch.setattr(watchdog, "INTERVAL_SECONDS", 0.3)
    flow = Flow.open(
        "ci", {"engine.startup_seconds": 20, "engine.unresponsive_seconds": 1}, tmp_path
    )
    flow.workspace.model("base").mkdir(parents=True)
    return flow


@pytest.mark.parametrize(
    ("code", "disturb"),
    [
        (HEALTHY, lambda server, child: server.suspend()),
        (OWES_A_TOKEN, lambda server, child: None),
        (SPINS_BESIDE_ITS_ENGINE, lambda server, child: child.suspend()),
    ],
    ids=["stopped", "waits for ever", "its engine stopped while the server computes"],
)
def test_a_server_that_hangs_is_ended_within_the_stated_time(watched, monkeypatch, code, disturb):
    engine(monkeypatch, code)
    with (
        pytest.raises(server_module.ServerGone, match=r"hung.*unresponsive_seconds"),
        launch.serve(watched, "base") as running,
    ):
        family = [running.process, *running.process.children(recursive=True)]
        disturb(*family)
        started = time.monotonic()
        while running.process.is_running() and running.process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - started < 1 + 3 * (0.3 + watchdog.COUNTERS_SECONDS) + 3
            time.sleep(0.1)
        running.require_alive()
    assert not alive(family)


@pytest.mark.parametrize("code", [HEALTHY, COMPUTES, GETS_WORK, COMPILES, COUNTS])
def test_a_server_that_computes_or_answers_is_left_alone(watched, monkeypatch, code):
    engine(monkeypatch, code)
    with launch.serve(watched, "base") as running:
        time.sleep(4)
        running.require_alive()
        assert running.process.is_running()


def test_a_turn_whose_server_died_says_so_and_ends_the_others(flow, monkeypatch):
    flow.workspace.model("w8a8-int8").mkdir()
    engine(monkeypatch, HEALTHY)
    before = psutil.Process().children(recursive=True)
    with (
        pytest.raises(server_module.ServerGone, match="signal 9"),
        launch.serve_each(flow, ["base", "w8a8-int8"]) as servers,
    ):
        first = next(servers)
        children = [
            child for child in psutil.Process().children(recursive=True) if child not in before
        ]
        first.process.kill()
        raise ConnectionError
    assert not alive(children)


def test_what_can_be_done_while_the_server_starts_is_done_once(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    done = []
    with launch.serve(flow, "base", meanwhile=lambda: done.append(1)):
        assert done == [1]
    with (
        pytest.raises(ZeroDivisionError),
        launch.serve(flow, "base", meanwhile=lambda: 1 / 0),
    ):
        pass


def alive(processes):
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_servers_of_several_models_start_together_and_each_ends_after_its_turn(flow, monkeypatch):
    flow.workspace.model("w8a8-int8").mkdir()
    engine(monkeypatch, HEALTHY)
    reports = []
    monkeypatch.setattr(live, "report", lambda *report: reports.append(report))
    with launch.serve_each(flow, ["base", "w8a8-int8"]) as servers:
        first = next(servers)
        what = "base, w8a8-int8: vLLM starts"
        assert reports[:2] == [(what, 0, 0), (what, 1, 1)]
        second = next(servers)
        assert (first.model_name, second.model_name) == ("base", "w8a8-int8")
        assert first.url != second.url
        # not after the first one's turn
        assert second.process.create_time() - first.process.create_time() < 1
        assert not alive([first.process])
        assert alive([second.process])
        assert list(servers) == []
        assert not alive([second.process])


def test_a_turn_that_fails_leaves_no_server(flow, monkeypatch):
    flow.workspace.model("w8a8-int8").mkdir()
    engine(monkeypatch, HEALTHY)
    before = psutil.Process().children(recursive=True)
    with (
        pytest.raises(ZeroDivisionError),
        launch.serve_each(flow, ["base", "w8a8-int8"]) as servers,
    ):
        next(servers)
        children = [
            child for child in psutil.Process().children(recursive=True) if child not in before
        ]
        assert len(alive(children)) == 4
        raise ZeroDivisionError
    assert not alive(children)


def test_one_server_that_cannot_start_ends_the_others(flow, monkeypatch):
    engine(monkeypatch, HEALTHY)
    before = set(psutil.Process().children(recursive=True))
    with (
        pytest.raises(FlowError, match="no model folder"),
        launch.serve_each(flow, ["base", "w8a8-int8"]) as servers,
    ):
        list(servers)
    assert not alive(set(psutil.Process().children(recursive=True)) - before)


STAND_IN = """
import multiprocessing, time


if __name__ == "__main__":
    engine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    engine.start()
    print(engine.pid, flush=True)
    engine.join()
"""


def test_the_engine_does_not_outlive_its_server(tmp_path):
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(STAND_IN)
    command = [sys.executable, "-m", vllm.SERVER_MODULE]
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE
    ) as server:
        engine = psutil.Process(int(server.stdout.readline()))
        time.sleep(2)
        assert alive([engine])
        server.kill()
    psutil.wait_procs([engine], timeout=5)
    assert not alive([engine])
