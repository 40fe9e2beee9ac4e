from pathlib import Path

import pytest

from model_serve_flow.compress.apart import Answer, _failure, command, process_count
from model_serve_flow.flow.flow import Flow

JOB = Path("/job.json")
RECIPES = [
    {"name": "gptq", "recipe": {"scheme": "W4A16", "algorithm": "gptq"}},
    {"name": "rtn", "recipe": {"scheme": "FP8_DYNAMIC"}},
    {"name": "ready", "source": "org/model"},
]


@pytest.fixture
def flow(tmp_path) -> Flow:
    settings = {"candidates": RECIPES, "calibration.data_parallel": 4}
    return Flow.open("gpu-llama-3.1-8b", settings, tmp_path)


def test_torchrun_starts_a_process_for_each_gpu():
    assert command(JOB)[1:] == ["-P", "-m", "model_serve_flow.compress.main", "/job.json"]
    assert command(JOB, 4)[1:] == [
        "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4",
        "-m", "model_serve_flow.compress.main", "/job.json",
    ]  # fmt: skip


def test_only_a_recipe_that_reads_texts_has_several_processes(flow):
    counts = {name: process_count(flow, name) for name in ("gptq", "rtn", "ready", "base")}
    assert counts == {"gptq": 4, "rtn": 1, "ready": 1, "base": 1}


def test_the_first_failure_is_the_cause(tmp_path):
    path = tmp_path / "answer.json"
    assert Answer.read(path) is None
    Answer(problem="first").write(path)
    Answer(problem="second").write(path)
    assert Answer.read(path) == Answer(problem="first")


def test_a_foreseen_failure_is_passed_on_as_it_is(flow):
    failure = _failure(flow, "gptq", Answer(problem="No room.", hint="Make some."), 1, 0)
    assert (failure.problem, failure.hint) == ("No room.", "Make some.")


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (-11, "", "ended without saying why"),
        (-9, "", "was killed, as the system does when memory ends"),
        (1, "traceback : Signal 9 (SIGKILL) received by PID 7", "was killed"),
    ],
)
def test_an_end_without_an_answer_names_status_and_log(flow, status, log, said):
    path = flow.workspace.logs / "compress-gptq.log"
    path.parent.mkdir(parents=True)
    path.write_text(log)
    failure = _failure(flow, "gptq", None, status, 0)
    assert said in failure.problem
    assert failure.hint.startswith(f"Exit status {status}; the whole log: {path}")
