"""Starts the process that makes a candidate, waits for it, and reports why it failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import CalibrationFacts, CompressionResult
from model_serve_flow.setup.fit import memory_advice
from model_serve_flow.system import processes
from model_serve_flow.system.files import writing
from model_serve_flow.system.hardware import available_memory
from model_serve_flow.system.variables import variable

if TYPE_CHECKING:
    from datasets import Dataset

MODULE = "model_serve_flow.compress.main"
VARIABLE = variable("compression")  # marks the process and all that it starts
ANSWER = "answer.json"
KILLED_BY_TORCHRUN = "Signal 9 (SIGKILL)"  # torchrun's words for a process that the system killed
LEFTOVER_SECONDS = 4  # time for the processes to clean up, before they are killed


class Job(BaseModel):
    """What the process is told, as a JSON file.

    Attributes:
        config: the profile with all overrides.
        workspace: folder of the profile's workspace.
        name: a candidate; "base" for a sample of the base.
        answer: path of the file for the answer.
        dataset: folder of the calibration texts, as `Dataset.save_to_disk` wrote it.
        calibration: the facts of these texts, for the record.
    """

    config: FlowConfig
    workspace: Path
    name: str
    answer: Path
    dataset: Path | None = None
    calibration: CalibrationFacts | None = None


class Answer(BaseModel):
    """What the process answers, as a JSON file.

    Attributes:
        problem: why it failed; empty if it did not.
        hint: what to do next.
        unexpected: whether no code of ours foresaw the failure.
        sample: the base's answer, if that was the job.
    """

    problem: str = ""
    hint: str = ""
    unexpected: bool = False
    sample: str = ""

    @classmethod
    def read(cls, path: Path) -> Answer | None:
        """Reads the answer; None if the process ended without one."""
        return cls.model_validate_json(path.read_text("utf-8")) if path.is_file() else None

    def write(self, path: Path) -> None:
        """Writes the answer, unless another process of torchrun has already said why it failed."""
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(self.model_dump_json())


def compress_apart(
    flow: Flow,
    name: str,
    dataset: Dataset | None = None,
    calibration: CalibrationFacts | None = None,
) -> CompressionResult:
    """Makes or adopts the candidate `name` in a process of its own, and verifies it.

    When the process ends, all its memory is free, also that of a GPU. With
    `calibration.data_parallel`, torchrun starts one process for each GPU. An interrupt ends them
    all. Messages go to `logs/compress-<candidate>.log`.

    Args:
        flow: the profile and its workspace, with the base model in `models/base`.
        name: the candidate.
        dataset: the calibration texts.
        calibration: the facts of these texts.

    Raises:
        FlowError: as `compress` and `adopt`; or the process was killed or failed in another way.
            Says the cause first, then the exit status and the log.
    """
    _run(flow, name, dataset, calibration)
    return flow.workspace.compression(name)


def sample_apart(flow: Flow) -> str:
    """Returns the base's greedy answer to the question that every candidate is asked."""
    return _run(flow, "base", None, None).sample


def command(job: Path, count: int = 1) -> list[str]:
    """Returns the command line of so many processes; several are started by torchrun."""
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m"]
    return [sys.executable, "-P", "-m", *(several if count > 1 else []), MODULE, str(job)]


def process_count(flow: Flow, name: str) -> int:
    """Returns how many processes make a candidate: several only where texts are calibrated."""
    recipe = None if name == "base" else flow.config.candidate(name).recipe
    calibrates = recipe is not None and recipe.needs_calibration
    return flow.config.calibration.data_parallel if calibrates else 1


def _run(
    flow: Flow, name: str, dataset: Dataset | None, calibration: CalibrationFacts | None
) -> Answer:
    log, available = flow.workspace.logs / f"compress-{name}.log", available_memory()
    with tempfile.TemporaryDirectory(prefix="compress-") as scratch:
        job = write_job(Path(scratch), flow, name, dataset, calibration)
        status = run_logged(command(job, process_count(flow, name)), log)
        answer = Answer.read(job.with_name(ANSWER))
    if status or answer is None or answer.problem:
        raise _failure(flow, name, answer, status, available)
    return answer


def write_job(
    folder: Path,
    flow: Flow,
    name: str,
    dataset: Dataset | None = None,
    calibration: CalibrationFacts | None = None,
) -> Path:
    """Writes the job and its calibration texts into a folder; returns the job's path."""
    texts = None if dataset is None else folder / "texts"
    if dataset is not None:
        dataset.save_to_disk(texts)
    job = Job(
        config=flow.config,
        workspace=flow.workspace.root,
        name=name,
        answer=folder / ANSWER,
        dataset=texts,
        calibration=calibration,
    )
    path = folder / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return path


def run_logged(command: list[str], log: Path) -> int:
    """Runs a command to its end, with its output in a log; an interrupt ends it.

    Returns:
        Its exit status; if negative, the number of the signal that ended it.
    """
    with writing(log, "log"):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        sink = log.open("ab")  # several processes append
    mark, child = uuid.uuid4().hex, None
    try:
        with sink:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, VARIABLE: mark, "LOGURU_DIAGNOSE": "NO"},
                start_new_session=True,
                preexec_fn=processes.end_with_parent,
            )
        return child.wait()
    finally:  # also if the interrupt came before the process had a name here
        processes.end(lambda: processes.marked(VARIABLE, mark.__eq__), LEFTOVER_SECONDS)
        if child is not None:
            child.wait()


def _failure(
    flow: Flow, name: str, answer: Answer | None, status: int, available: int
) -> FlowError:
    log = flow.workspace.logs / f"compress-{name}.log"
    if answer is not None and answer.problem and not answer.unexpected:
        return FlowError(answer.problem, answer.hint)
    where = f"Exit status {status}; the whole log: {log}"
    if answer is not None and answer.problem:
        return FlowError(f"Compressing {name} failed: {answer.problem}", f"\n{where}")
    if status == -signal.SIGKILL or KILLED_BY_TORCHRUN in log.read_text("utf-8", "replace"):
        return FlowError(
            f"The process that compressed {name} was killed, as the system does when memory ends.",
            f"{where}. {memory_advice(flow, available)}",
        )
    return FlowError(
        f"The process that compressed {name} ended without saying why.", f"{where}. {RERUN}"
    )
