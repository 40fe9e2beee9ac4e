import re

import pytest
from click.testing import CliRunner

from model_serve_flow import cli, environments, machine, runner
from model_serve_flow.cli import main
from model_serve_flow.errors import FlowError

PROFILES = ("cpu-smollm2", "cpu-smollm2-avx2", "ci", "ci-avx2", "gpu-llama-3.1-8b")


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("profile", PROFILES)
def test_plan_shows_every_step_and_tool(invoke, profile):
    result = invoke("plan", "--profile", profile)
    assert result.exit_code == 0, result.output
    for text in (
        "00_Setup",
        "07_Deploy",
        "model_serve_flow.engine",  # vLLM's server
        "lm_eval --model local-completions",
        "guidellm run",
        "disk: about",
    ):
        assert text in result.output


def test_plan_follows_set(invoke):
    assert "--max-model-len 1024" in invoke("plan", "--set", "engine.max_model_len=1024").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--profile", "nothing"), "Unknown profile 'nothing'"),
        (("plan", "--set", "engine.speed=3"), "engine.speed: unknown key"),
        (("plan", "--set", "seed"), "is not of the form key=value"),
        (("run", "--only", "12"), "Unknown module '12'"),
        (("run", "--from", "x"), "Unknown module 'x'"),
    ],
)
def test_error_is_a_message_with_status_1(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_unknown_option_is_status_2(invoke):
    assert invoke("run", "--fast").exit_code == 2


def test_gpu_profile_without_gpu_stops_before_anything_is_built(invoke, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_gpus", lambda: ((), "no NVIDIA driver is installed"))
    monkeypatch.setattr(runner.environments, "_build", lambda *_: pytest.fail("an environment was built"))
    result = invoke("run", "--profile", "gpu-llama-3.1-8b")
    assert result.exit_code == 1
    assert "no NVIDIA driver is installed" in result.stderr


def test_options_reach_the_runner(invoke, monkeypatch):
    calls = []

    def run(request, only, start, force):
        calls.append((request.profile, request.overrides, only, start, force))
        raise FlowError("stop here", "and do this")

    monkeypatch.setattr(runner, "run", run)
    result = invoke("run", "--profile", "ci", "--only", "01, 02", "--from", "01", "--force", "--set", "seed=3")
    assert calls == [("ci", {"seed": 3}, ["01", "02"], "01", True)]
    assert result.stderr.splitlines() == ["stop here", "and do this"]


def test_interrupt_is_status_130(invoke, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    assert invoke("run").exit_code == 130


def test_doctor_shows_machine_and_checks(invoke):
    result = invoke("doctor", "--profile", "ci")
    assert "cores" in result.output
    assert "free port" in result.output
    said = " ".join(result.output.split())
    assert re.search(r"Load average \d+\.\d on \d+ cores; over 2 s other programs used \d+% of the CPU and", said)
    assert "accuracy stays the same" in said or "quiet enough" in said


def test_lab_asks_nothing_of_any_host(invoke, monkeypatch):
    calls, kernels = [], environments.jupyter_path()
    monkeypatch.setattr(environments, "ensure", lambda name, device: calls.append((name, device)))
    monkeypatch.setattr(cli.os, "execv", lambda path, argv: calls.append((path, argv)))
    monkeypatch.setattr(cli.os, "environ", environ := dict(cli.os.environ))
    result = invoke("lab", "--no-browser", "--port=8890")
    assert result.exit_code == 0, result.output
    *built, (path, argv) = calls
    assert built == [(name, "cpu") for name in environments.NAMES]
    assert path == argv[0] == str(environments.environment("notebook").python) and argv[1:3] == ["-m", "jupyterlab"]
    assert "--LabApp.news_url=None" in argv
    assert "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate" in argv
    assert "--LabApp.extension_manager=readonly" in argv
    assert argv[-2:] == ["--no-browser", "--port=8890"]
    assert environ["OMP_WAIT_POLICY"] == "passive"
    assert environ["DO_NOT_TRACK"] == "1" and environ["JUPYTER_PATH"] == kernels
