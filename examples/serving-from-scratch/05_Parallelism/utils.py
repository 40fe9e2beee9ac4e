"""Provides what the notebook of 05_Parallelism uses: ranks to watch, loads, tables and charts."""

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.options import ModelOptions, Rank
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Step, StepResult
from serving_from_scratch.engine.executor import Executor, WorkerDied, WorkerProcess
from serving_from_scratch.engine.parallel import DataParallel, PipelineParallel, TensorParallel
from serving_from_scratch.model.llama import LlamaShape
from serving_from_scratch.model.loading import read_config, read_shape
from serving_from_scratch.model.sharding import share

__all__ = [
    "DataParallel",
    "Flow",
    "Lesson",
    "Measured",
    "PipelineParallel",
    "TensorParallel",
    "WorkerProcess",
    "bytes_table",
    "figures",
    "killed_rank",
    "prepare_base",
    "share_table",
    "step_chart",
    "write_json",
]

RANKS = 2
MEGA = 1e6


@dataclass(frozen=True)
class Measured:
    """One load, served by one executor.

    Attributes:
        answers: the token ids by request.
        prefill: the step of all prompts.
        decode: the steps of one token per request.
        tokens: in the prefill step, and in a decode step.
    """

    answers: dict[str, list[int]]
    prefill: StepResult
    decode: list[StepResult]
    tokens: tuple[int, int]

    @property
    def decode_tokens_per_second(self) -> float:
        seconds = sum(result.seconds for result in self.decode)
        return sum(len(result.outcomes) for result in self.decode) / seconds


class Recorder:
    """Keeps the results of an executor's steps."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.steps: list[tuple[Step, StepResult]] = []

    def step(self, step: Step) -> StepResult:
        result = self.executor.step(step)
        self.steps.append((step, result))
        return result


class Lesson:
    """Serves one load with different executors.

    Args:
        base: the checkpoint.
        requests: how many run at once.
        prompt: tokens of each.
        tokens: of each answer.
    """

    def __init__(self, base: Path, requests: int, prompt: int, tokens: int) -> None:
        draw = random.Random(3)
        sampling = SamplingParameters(max_tokens=tokens, ignore_eos=True)
        self.shape: LlamaShape = read_shape(read_config(base))
        self.options = ModelOptions(str(base), "float32", places=requests, length=prompt + tokens)
        self.one = ModelOptions(
            str(base), "float32", places=requests, length=prompt + tokens, threads=RANKS
        )
        self.requests = [
            Request(str(n), tuple(draw.randrange(100, 20_000) for _ in range(prompt)), sampling)
            for n in range(requests)
        ]

    def run(self, executor: Executor) -> Measured:
        """Serves the load once to warm up and once to measure, then ends the executor."""
        try:
            wait_for(executor)
            self._serve(executor, self.requests[:1])
            return self._serve(executor, self.requests)
        finally:
            executor.close()

    def _serve(self, executor: Executor, requests: Sequence[Request]) -> Measured:
        scheduler, recorder = Scheduler(Continuous(), self.options.memory(), 64), Recorder(executor)
        sequences = [scheduler.submit(request) for request in requests]
        while step := scheduler.schedule():
            scheduler.update(step, recorder.step(step))
        (first, prefill), *others = recorder.steps
        return Measured(
            answers={s.request.id: s.generated for s in sequences},
            prefill=prefill,
            decode=[result for _, result in others],
            tokens=(first.tokens, others[-1][0].tokens),
        )


def wait_for(executor: Executor) -> None:
    """Waits until the workers have loaded the model."""
    while not executor.ready(1):
        pass


def share_table(lesson: Lesson) -> pd.DataFrame:
    """Shows what each of two ranks has of every layer."""
    shape, rows = lesson.shape, {}
    for number in range(RANKS):
        rank = Rank(number, RANKS, "tensor", "")
        heads, inner = share(shape.kv_heads, rank, "heads"), share(shape.inner, rank, "columns")
        rows[f"rank {number}"] = {
            "KV heads": len(heads),
            "query heads": len(heads) * shape.heads // shape.kv_heads,
            "MLP columns": len(inner),
            "layers in a pipeline": len(share(shape.layers, rank, "layers")),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def figures(measured: dict[str, Measured]) -> pd.DataFrame:
    """Computes the times of prefill and decoding, and what of them is exchange."""
    rows = {
        name: {
            "prefill, s": round(run.prefill.seconds, 2),
            "a decode step, ms": round(median_ms(run.decode, "seconds"), 1),
            "of it exchange, ms": round(median_ms(run.decode, "exchange"), 1),
            "decode, tokens/s": round(run.decode_tokens_per_second, 1),
        }
        for name, run in measured.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def median_ms(results: Sequence[StepResult], name: str) -> float:
    """Returns the median of a time of the results, in milliseconds."""
    return statistics.median(getattr(result, name) for result in results) * 1e3


def step_chart(measured: dict[str, Measured]) -> None:
    """Draws computing and exchange of a prefill step and of a median decode step."""
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.4, 0.5 * len(measured) + 1.2), sharey=True)
        for axis, title in zip(axes, ("prefill", "a decode step"), strict=True):
            results = [
                [run.prefill] if title == "prefill" else run.decode for run in measured.values()
            ]
            exchange = np.array([median_ms(some, "exchange") for some in results])
            whole = np.array([median_ms(some, "seconds") for some in results])
            places = np.arange(len(results))
            axis.barh(places, whole - exchange, color=PALETTE[0], label="computes")
            axis.barh(places, exchange, left=whole - exchange, color=PALETTE[1], label="exchanges")
            axis.set_yticks(places, list(measured))
            axis.set(xlabel="ms, slowest rank", title=title)
            axis.grid(False, axis="y")
        axes[0].invert_yaxis()
        axes[1].legend(loc="lower right")
        figure.tight_layout()
        plt.show()


def bytes_table(lesson: Lesson, measured: dict[str, Measured]) -> pd.DataFrame:
    """Compares the bytes that ranks sent with the formula."""
    shape = lesson.shape
    token = shape.hidden * 4  # bytes of a hidden state in FP32
    per_token = {
        "tensor": RANKS * 2 * shape.layers * token,
        "pipeline": (RANKS - 1) * token,
        "data": 0,
    }
    rows = {}
    for name, each in per_token.items():
        run = measured[name]
        rows[name] = {
            "a prefill step, MB": run.prefill.sent / MEGA,
            "by the formula, MB": run.tokens[0] * each / MEGA,
            "a decode step, kB": run.decode[-1].sent / 1e3,
            "by the formula, kB": run.tokens[1] * each / 1e3,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def killed_rank(lesson: Lesson) -> pd.DataFrame:
    """Kills one of two ranks during a load; shows what becomes of the other."""
    executor, seen = TensorParallel(lesson.options, RANKS), {}
    try:
        wait_for(executor)
        processes = [psutil.Process(worker.pid) for worker in executor.workers]
        scheduler = Scheduler(Continuous(), lesson.options.memory(), 64)
        for request in lesson.requests:
            scheduler.submit(request)
        scheduler.update(step := scheduler.schedule(), executor.step(step))
        processes[1].kill()
        killed = time.monotonic()
        try:
            while step := scheduler.schedule():
                scheduler.update(step, executor.step(step))
        except WorkerDied as error:
            seen["the engine is told"] = str(error)
        seen["after, s"] = f"{time.monotonic() - killed:.2f}"
        seen["ranks that still run"] = str(sum(process.is_running() for process in processes))
        return pd.DataFrame.from_dict(seen, orient="index", columns=["rank 1 was killed"])
    finally:
        executor.close()
