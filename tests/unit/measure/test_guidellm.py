"""The load generator's process with a stand-in for GuideLLM; the real one is in tests/contract."""

import json
import select
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Objectives
from model_serve_flow.measure.guidellm import commands
from model_serve_flow.measure.guidellm import generator as module
from model_serve_flow.measure.guidellm.client_cpu import ClientCpu
from model_serve_flow.measure.guidellm.commands import (
    load_command,
    search_command,
    silence_limit,
    time_limit,
)
from model_serve_flow.measure.guidellm.driver import with_values
from model_serve_flow.measure.guidellm.generator import (
    GeneratorFailed,
    NoRequestCompleted,
    load_generator,
)
from model_serve_flow.serve.server import Server, ServerGone
from model_serve_flow.system import processes
from model_serve_flow.system.worker import LEFTOVER_SECONDS

KEY = "a-key-that-nobody-may-see"
DRIVER = """
import json, os, subprocess, sys, time
for line in sys.stdin:
    job = json.loads(line)
    order, path = job["arguments"][1], json.loads(job["arguments"][-1])["path"]
    before = os.path.join(os.path.dirname(path), "hung before")
    if order == "hang once":
        order = "succeed" if os.path.exists(before) else "hang"
        open(before, "w").close()
    with open(job["log"], "w", buffering=1) as log:
        log.write(order + " was asked for")
        if order == "give up":
            log.write("\\nerror: No request produced a determined verdict")
        for line in range(20 if order == "talk" else 0):
            time.sleep(0.1)
            log.write("\\na line")
    order = "succeed" if order == "talk" else order
    if order != "write nothing":
        with open(path, "w") as output:
            output.write(job["api_key"] if order == "succeed" else "half")
    if order in ("hang", "die"):  # as in GuideLLM, the child loses its parent
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        subprocess.Popen(sleep, start_new_session=True)
        time.sleep(60 if order == "hang" else 0.2)
        os.kill(os.getpid(), 9)
    print(json.dumps(order not in ("fail", "give up")), flush=True)
"""


def command(order, output, loads=2, seconds=1.0):
    return [
        *("python", "-m", "guidellm", "run", order),
        *("--profile", json.dumps({"kind": "concurrent", "streams": [1] * loads})),
        *("--constraint", json.dumps({"kind": "max_duration", "seconds": seconds})),
        *("--output", json.dumps({"kind": "json", "path": str(output)})),
    ]


@pytest.fixture(autouse=True)
def own_mark(monkeypatch):
    """Load generators of others that run meanwhile are not ours."""
    monkeypatch.setattr(module, "GENERATOR_VARIABLE", f"LOAD_GENERATOR_{uuid.uuid4().hex}")


@pytest.fixture
def generator(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DRIVER", (sys.executable, "-c", DRIVER))
    with load_generator(Flow.open("ci", {}, tmp_path)) as generator:
        yield generator
    assert left() == []


@pytest.fixture
def server(tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text("the last words of the engine")
    return Server(
        "http://127.0.0.1:1", "base", KEY, tmp_path, log, psutil.Process(), 1.0, engine=VLLM
    )


def left():
    """Processes of any load generator of this test."""
    return processes.marked(module.GENERATOR_VARIABLE, bool)


def test_jobs_follow_each_other_in_one_process_and_carry_the_key(generator, server, tmp_path):
    first, second = tmp_path / "raw" / "guidellm.json", tmp_path / "raw" / "goodput.json"
    generator.run(server, command("succeed", first), first)
    (driver,) = left()
    generator.run(server, command("succeed", second), second)
    assert left() == [driver]
    assert first.read_text() == second.read_text() == KEY
    assert sorted(path.name for path in first.parent.iterdir()) == ["goodput.json", "guidellm.json"]
    assert KEY not in " ".join(driver.cmdline()) + str(driver.environ())


@pytest.mark.parametrize("order", ["fail", "write nothing"])
def test_a_failed_job_shows_its_log_and_leaves_no_output_and_the_next_one_runs(
    generator, server, tmp_path, order
):
    output = tmp_path / "guidellm.json"
    output.write_text("of an earlier run")
    with pytest.raises(FlowError, match=f"GuideLLM failed.*\n{order} was asked for"):
        generator.run(server, command(order, output), output)
    assert not output.exists()
    generator.run(server, command("succeed", output), output)
    assert output.is_file()


def test_a_search_that_gave_up_is_told_apart_from_other_failures(generator, server, tmp_path):
    output = tmp_path / "goodput.json"
    with pytest.raises(NoRequestCompleted) as gave_up:
        generator.run(server, command("give up", output), output)
    assert gave_up.value.what == "GuideLLM failed."
    with pytest.raises(GeneratorFailed) as failed:
        generator.run(server, command("fail", output), output)
    assert not isinstance(failed.value, NoRequestCompleted)


def test_a_generator_that_dies_is_an_error_and_leaves_neither_processes_nor_half_a_file(
    generator, server, tmp_path
):
    output = tmp_path / "raw" / "guidellm.json"
    with pytest.raises(FlowError, match=r"exit code -9.*\ndie was asked for"):
        generator.run(server, command("die", output), output)
    assert left() == [] and list(output.parent.iterdir()) == []
    with pytest.raises(FlowError, match="exit code -9"):
        generator.run(server, command("succeed", output), output)


def test_a_server_that_dies_ends_the_load_at_once(generator, tmp_path):
    log, output, started = tmp_path / "vllm.log", tmp_path / "guidellm.json", time.monotonic()
    log.write_text("the last words of the engine")
    status = lambda: -9 if time.monotonic() > started + 0.5 else None  # noqa: E731
    server = Server(
        "http://127.0.0.1:1", "base", KEY, tmp_path, log, psutil.Process(), 1.0, status, engine=VLLM
    )
    with pytest.raises(ServerGone, match="the last words of the engine"):
        generator.run(server, command("hang", output), output)
    assert time.monotonic() - started < 0.5 + 1 + LEFTOVER_SECONDS
    assert left() == []


def test_a_generator_that_hangs_does_not_hang_the_flow(generator, server, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "START_SECONDS", 0.5)
    with pytest.raises(FlowError, match=r"took longer than 1 s.*\nhang was asked for"):
        generator.run(
            server,
            command("hang", tmp_path / "out.json", loads=1, seconds=0.1),
            tmp_path / "out.json",
        )
    assert left() == []


def test_a_generator_that_hangs_once_is_started_again(
    generator, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "START_SECONDS", 0.5)
    output = tmp_path / "out.json"
    generator.run(server, command("hang once", output, loads=1, seconds=0.1), output)
    assert output.read_text() == KEY
    assert "longer than 1 s" in capsys.readouterr().out
    assert len(left()) == 1


def test_a_generator_that_says_nothing_more_is_started_again_long_before_its_loads_could_be_over(
    generator, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "SILENT_SECONDS", 0.5)
    output = tmp_path / "out.json"
    generator.run(server, command("hang once", output, loads=1000, seconds=0.1), output)
    assert output.read_text() == KEY
    said = capsys.readouterr().out
    assert (
        said
        == "GuideLLM wrote nothing for 1 s. It is started again, and measures this once more.\n"
    )


def test_a_generator_that_goes_on_writing_is_left_alone(
    generator, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(commands, "SILENT_SECONDS", 0.9)
    output = tmp_path / "out.json"
    # for two seconds
    generator.run(server, command("talk", output, loads=1000, seconds=0.1), output)
    assert output.read_text() == KEY
    assert capsys.readouterr().out == ""


def test_an_interrupt_leaves_no_process(generator, server, tmp_path):
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    with pytest.raises(KeyboardInterrupt):
        generator.run(server, command("hang", tmp_path / "out.json"), tmp_path / "out.json")
    signal.signal(signal.SIGALRM, before)
    assert left() == []


def test_a_generator_that_cannot_start_says_why(tmp_path, server, monkeypatch):
    monkeypatch.setattr(
        module, "DRIVER", (sys.executable, "-c", "import no_such_module_of_guidellm")
    )
    with (
        load_generator(Flow.open("ci", {}, tmp_path)) as generator,
        pytest.raises(FlowError, match="no_such_module_of_guidellm"),
    ):
        generator.run(server, command("succeed", tmp_path / "out.json"), tmp_path / "out.json")


def test_the_time_limit_grows_with_the_loads_and_with_what_a_search_may_need():
    config = load_profile("ci", {"performance.concurrency": [1, 8], "performance.repeats": 3})
    where = ("http://127.0.0.1:1", "base", "models/base", "out.json")
    seconds = config.performance.seconds + config.performance.warmup_seconds
    longest = 10 * config.performance.seconds + config.performance.warmup_seconds
    assert time_limit(load_command(config, *where)) == pytest.approx(
        2 * longest * 3 + commands.START_SECONDS
    )
    assert silence_limit(load_command(config, *where)) == pytest.approx(
        3 * seconds + commands.SILENT_SECONDS
    )
    slo = Objectives(
        ttft_ms=1000, itl_ms=50, attainment=0.9, seconds=20, initial_streams=8, max_streams=64
    )
    seconds = 20 + config.performance.warmup_seconds
    search = time_limit(search_command(config, slo, *where))
    assert search == pytest.approx((2 * 6 + 2) * seconds * 3 + commands.START_SECONDS)


def test_values_join_those_an_option_has():
    assert with_values(["run", "--a", '{"x": 1}', "--b"], "--a", y="2") == [
        "run",
        "--a",
        '{"x": 1, "y": "2"}',
        "--b",
    ]


@pytest.fixture
def burnt():
    """A process that has used half a second of CPU before, and then runs what it reads."""
    script = (
        "import subprocess, sys, time\n"
        "while time.process_time() < 0.5: pass\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin: exec(line); print('done', flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as child:
        child.stdout.readline()
        yield child
        child.stdin.close()


def watch(child, line):
    """What `ClientCpu` records of the process while it runs a line."""
    record = ClientCpu.begin(processes.family(child.pid))
    child.stdin.write(line + "\n")
    child.stdin.flush()
    while not select.select([child.stdout], [], [], 0.02)[0]:
        record.sample(processes.family(child.pid))
    record.sample(processes.family(child.pid))
    return record


def test_what_a_process_used_before_the_record_does_not_count(burnt):
    started = time.time()
    record = watch(burnt, "time.sleep(0.5)")
    used = record.seconds(started, time.time())
    assert list(used) == [burnt.pid] and used[burnt.pid] < 0.1


def test_processes_that_come_and_go_meanwhile_count_for_what_they_used(burnt):
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    started = time.time()
    record = watch(burnt, f"subprocess.run([sys.executable, '-c', {burn!r}])")
    used = record.seconds(started, time.time())
    assert len(used) == 2 and used.pop(burnt.pid) < 0.1
    assert next(iter(used.values())) == pytest.approx(0.5, abs=0.2)
    assert all(
        times == sorted(times)
        for times in ([at for at, _ in rows] for rows in record.samples.values())
    )
