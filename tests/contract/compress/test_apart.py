"""The process that makes a candidate: one or several, interrupted, killed, failing."""

import os
import signal
import threading

import psutil
import pytest
from support.tiny_models import configuration, save_model, write_texts

from model_serve_flow.compress import apart
from model_serve_flow.compress.apart import Answer, command, compress_apart, run_logged, write_job
from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow

RECIPE = {"scheme": "W8A8", "algorithm": "gptq"}


@pytest.fixture
def flow(tmp_path) -> Flow:
    settings = {"calibration.samples": 4, "calibration.max_sequence_length": 16}
    candidates = [{"name": "a", "recipe": RECIPE}]
    flow = Flow.open("ci", {"candidates": candidates, **settings}, tmp_path / "artifacts")
    save_model(flow.workspace.model("base"), configuration("llama", num_hidden_layers=1))
    write_texts(flow.workspace.data / "calibration.jsonl")
    return flow


def texts(flow: Flow):
    from transformers import AutoTokenizer

    return calibration_dataset(flow, AutoTokenizer.from_pretrained(flow.workspace.model("base")))


def started() -> list[psutil.Process]:
    """The living processes that this test started."""
    family = psutil.Process().children(recursive=True)
    return [member for member in family if apart.MODULE in " ".join(member.cmdline())]


def models(flow: Flow) -> list[str]:
    return [path.name for path in flow.workspace.model("base").parent.iterdir()]


def test_two_processes_of_torchrun_share_the_texts_and_make_one_candidate(flow, tmp_path):
    job = write_job(tmp_path, flow, "a", *texts(flow))
    log = flow.workspace.logs / "compress-a.log"
    status = run_logged(command(job, 2), log)
    assert status == 0, log.read_text()[-3000:]
    assert Answer.read(tmp_path / "answer.json") == Answer()
    made = flow.workspace.compression("a")
    assert (made.scheme, made.quantized_layers) == ("W8A8", 7) and made.sample
    assert "def quantise(" in made.quantise
    assert "partitioning dataset across ranks" in log.read_text()
    assert sorted(models(flow)) == ["a", "base"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_the_systems_kill_ends_it_and_leaves_no_candidate(flow, number):
    def strike() -> None:
        while not (found := started()):
            pass
        if number == signal.SIGKILL:
            found[0].kill()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=strike)
    watcher.start()
    wanted = KeyboardInterrupt if number == signal.SIGINT else FlowError
    with pytest.raises(wanted) as caught:
        compress_apart(flow, "a", *texts(flow))
    watcher.join()
    assert started() == []
    assert models(flow) == ["base"]
    if number == signal.SIGKILL:
        assert "killed, as the system does when memory ends" in caught.value.problem
        assert "Exit status -9" in caught.value.hint and "GiB were available" in caught.value.hint


def test_a_failure_that_nobody_foresaw_says_its_cause_first(flow):
    dataset, facts = texts(flow)
    foreign = dataset.map(lambda row: {**row, "input_ids": [9999] * len(row["input_ids"])})
    with pytest.raises(FlowError) as caught:
        compress_apart(flow, "a", foreign, facts)
    assert caught.value.problem.startswith("Compressing a failed: IndexError: index out of range")
    log = flow.workspace.logs / "compress-a.log"
    assert caught.value.hint == f"\nExit status 1; the whole log: {log}"
    assert "Traceback (most recent call last)" in log.read_text()
    assert models(flow) == ["base"]
