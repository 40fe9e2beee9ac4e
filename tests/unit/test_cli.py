import re

import factories
import pytest
from click.testing import CliRunner

from model_serve_flow import cli
from model_serve_flow.cli import main
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import update_manifest
from model_serve_flow.run import runner
from model_serve_flow.run.due import Due
from model_serve_flow.run.steps import expand, select
from model_serve_flow.system import environments, hardware
from model_serve_flow.system.files import write_json, write_text
from model_serve_flow.system.gpus import Gpu
from model_serve_flow.system.hardware import inspect_machine
from model_serve_flow.system.sizes import GIB

PROFILES = (
    *("cpu-smollm2", "cpu-smollm2-avx2", "ci", "ci-avx2", "colab-t4"),
    *("gpu-llama-3.1-8b", "gpu-h200-llama-3.1-8b", "gpu-llama-3.3-70b"),
)


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
        "model_serve_flow.serve.vllm_main",  # vLLM's server
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
    monkeypatch.setattr(hardware, "find_gpus", lambda: ((), "no NVIDIA driver is installed"))
    monkeypatch.setattr(
        runner.environments, "_build", lambda *_: pytest.fail("an environment was built")
    )
    result = invoke("run", "--profile", "gpu-llama-3.1-8b")
    assert result.exit_code == 1
    assert "no NVIDIA driver is installed" in result.stderr


def test_options_reach_the_runner(invoke, monkeypatch):
    calls = []

    def run(flow, only, start, force):
        calls.append((flow.profile, flow.overrides, only, start, force))
        raise FlowError("stop here", "and do this")

    monkeypatch.setattr(runner, "run", run)
    result = invoke(
        "run", "--profile", "ci", "--only", "01, 02", "--from", "01", "--force", "--set", "seed=3"
    )
    assert calls == [("ci", {"seed": 3}, ["01", "02"], "01", True)]
    assert result.stderr.splitlines() == ["stop here", "and do this"]


@pytest.fixture
def reported(monkeypatch, tmp_path):
    """A workspace whose report is of the results in it; nothing is run."""
    monkeypatch.setattr(runner, "run", lambda *_: None)
    session = Due(Flow.open("cpu-smollm2", {}, tmp_path))
    (step,), space = select(["06"]), session.flow.workspace
    for path in [
        *expand(step.inputs, session.flow.config),
        *expand(step.outputs, session.flow.config),
    ]:
        write_text(space.root / path, path)
    write_json(space.report / "comparison.json", factories.sample_comparison())
    outputs = {path: session.digest(path) for path in expand(step.outputs, session.flow.config)}
    update_manifest(
        space, steps={step.module: {"fingerprint": session.fingerprint(step), "outputs": outputs}}
    )
    return space


@pytest.mark.parametrize("part", [(), ("--from", "04"), ("--only", "07")])
def test_a_run_of_any_part_ends_with_the_verdicts_and_the_report(invoke, reported, part):
    shown = invoke("run", "--profile", "cpu-smollm2", *part).output
    assert "DO NOT SHIP" in shown and "w8a8-int8" in shown
    assert shown.splitlines()[-1] == f"Report: {reported.report / 'report.html'}"


@pytest.mark.parametrize(
    "change", ["a result", "no result", "the report", "the profile", "nothing was run"]
)
def test_a_report_that_is_not_of_the_present_results_is_not_shown(invoke, reported, change):
    result = reported.results("base") / "accuracy.json"
    if change == "a result":
        result.write_text("measured again")
    elif change == "no result":
        result.unlink()
    elif change == "the report":
        (reported.report / "report.html").write_text("edited")
    elif change == "nothing was run":
        reported.manifest.unlink()
    other = ("--set", "verdict.suite_margin_points=0.5") if change == "the profile" else ()
    result = invoke("run", "--profile", "cpu-smollm2", "--only", "01", *other)
    assert (result.exit_code, result.output) == (0, "")


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
    assert re.search(
        r"Load average \d+\.\d on \d+ cores; over 2 s other programs used \d+% of the CPU and", said
    )
    assert "accuracy stays the same" in said or "quiet enough" in said


def gpu_machine(memory_gib, tmp_path):
    gpu = Gpu(
        name="NVIDIA L40S", memory_bytes=memory_gib * GIB, driver="580", compute_capability="8.9"
    )
    room = {"memory_available_bytes": 200 * GIB, "disk_free_bytes": 500 * GIB}
    return inspect_machine(tmp_path).model_copy(
        update={"gpus": (gpu,), "gpu_problem": None, **room}
    )


def test_doctor_names_the_gpu_profile_where_it_fits_and_no_default_downloads_it(
    invoke, monkeypatch, tmp_path
):
    monkeypatch.setattr(hardware, "inspect_machine", lambda _: gpu_machine(46, tmp_path))
    shown = invoke("doctor").output
    assert "GPU (NVIDIA L40S) and fits the profile gpu-llama-3.1-8b" in shown
    assert "15.0 GiB: model-serve-flow run --profile gpu-llama-3.1-8b" in shown
    assert "Profile cpu-smollm2" in shown
    assert "NVIDIA L40S) and" not in invoke("doctor", "--profile", "gpu-llama-3.1-8b").output


@pytest.mark.parametrize(
    ("memory_gib", "profile"),
    [(141, "gpu-h200-llama-3.1-8b"), (80, "gpu-llama-3.1-8b"), (15, "colab-t4")],
)
def test_doctor_names_the_largest_profile_whose_load_fits(tmp_path, memory_gib, profile):
    note = cli.gpu_note(Flow.open("ci", {}, tmp_path), gpu_machine(memory_gib, tmp_path))
    assert note.endswith(f"run --profile {profile}")


def test_doctor_names_no_profile_for_a_gpu_that_is_too_small(tmp_path):
    assert cli.gpu_note(Flow.open("ci", {}, tmp_path), gpu_machine(4, tmp_path)) == ""
    assert (
        cli.gpu_note(
            Flow.open("ci", {}, tmp_path), inspect_machine(tmp_path).model_copy(update={"gpus": ()})
        )
        == ""
    )


def test_lab_asks_nothing_of_any_host(invoke, monkeypatch):
    calls, kernels = [], environments.jupyter_path()
    monkeypatch.setattr(environments, "ensure", lambda name, device: calls.append((name, device)))
    monkeypatch.setattr(cli.os, "execv", lambda path, argv: calls.append((path, argv)))
    monkeypatch.setattr(cli.os, "environ", environ := dict(cli.os.environ))
    result = invoke("lab", "--no-browser", "--port=8890")
    assert result.exit_code == 0, result.output
    *built, (path, argv) = calls
    assert built == [(name, "cpu") for name in environments.NAMES]
    assert path == argv[0] == str(environments.environment("notebook").python) and argv[1:3] == [
        "-m",
        "jupyterlab",
    ]
    assert "--LabApp.news_url=None" in argv
    assert (
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate"
        in argv
    )
    assert "--LabApp.extension_manager=readonly" in argv
    assert argv[-2:] == ["--no-browser", "--port=8890"]
    assert environ["OMP_WAIT_POLICY"] == "passive"
    assert environ["DO_NOT_TRACK"] == "1" and environ["JUPYTER_PATH"] == kernels


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1001, False)])
def test_lab_starts_for_root_too(invoke, monkeypatch, user, allowed):
    started = []
    monkeypatch.setattr(environments, "ensure", lambda *_: None)
    monkeypatch.setattr(cli.os, "getuid", lambda: user)
    monkeypatch.setattr(cli.os, "execv", lambda _, argv: started.extend(argv))
    assert invoke("lab").exit_code == 0
    assert ("--allow-root" in started) == allowed
