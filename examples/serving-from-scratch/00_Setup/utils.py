"""Provides what the notebook of 00_Setup uses: measurements of this machine, and charts."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch.nn import functional

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.options import ModelFacts, ModelOptions
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.model.llama import LlamaShape
from serving_from_scratch.model.loading import PRECISIONS, ModelManager, read_config, read_shape
from serving_from_scratch.model.runner import ModelRunner

__all__ = [
    "Flow",
    "ModelManager",
    "ModelOptions",
    "bounds_chart",
    "kv_bytes",
    "machine_row",
    "measure_machine",
    "prepare_base",
    "read_config",
    "read_shape",
    "roofline_chart",
    "step_seconds",
    "token_cost",
    "users_chart",
    "weights_table",
    "write_json",
]

COPIES_BYTES = 512 * 2**20  # all copies of a matrix together: more than a processor's cache
REPEATS = 5


@dataclass(frozen=True)
class MachineLimits:
    """The limits of matrix products on this machine.

    Attributes:
        precision: of the numbers, for instance "bfloat16".
        threads: of torch.
        flops: multiplications and additions per second, by the number of tokens in the row.
        bytes_a_second: bytes of weights read per second, for a row of one token.
    """

    precision: str
    threads: int
    flops: dict[int, float]
    bytes_a_second: float

    @property
    def roof(self) -> float:
        """The most multiplications and additions per second."""
        return max(self.flops.values())

    def as_dict(self) -> dict:
        return asdict(self)


def weights_table(shape: LlamaShape) -> pd.DataFrame:
    """Counts the weights of each part of the model, in millions."""
    attention = shape.hidden * shape.width * (shape.heads * 2 + shape.kv_heads * 2)
    rows = {
        "embedding": (1, shape.vocabulary * shape.hidden),
        "attention": (shape.layers, attention),
        "MLP": (shape.layers, 3 * shape.hidden * shape.inner),
    }
    table = pd.DataFrame(rows, index=["times", "weights of one, millions"]).T
    table["weights of one, millions"] /= 1e6
    table["together, millions"] = table.prod(axis=1)
    return table.astype({"times": int}).round(1)


def median_seconds(work: Callable[[], object]) -> float:
    """Measures the median seconds of `work`, after one warm-up run."""
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@torch.inference_mode()
def measure_machine(
    shape: LlamaShape,
    row_lengths: Sequence[int],
    precision: str = "bfloat16",
) -> MachineLimits:
    """Measures matrix products of the MLP's shape with rows of several lengths."""
    dtype = PRECISIONS[precision]
    size = (2 * shape.inner, shape.hidden)
    copies = COPIES_BYTES // (size[0] * size[1] * dtype.itemsize)
    matrices = [torch.randn(size).to(dtype) for _ in range(copies)]
    weights = copies * size[0] * size[1]
    flops, seconds = {}, {}
    for length in row_lengths:
        row = torch.randn(length, shape.hidden).to(dtype)
        products = matrices if length <= 16 else matrices[: max(1, copies // 8)]
        taken = median_seconds(lambda r=row, ms=products: [functional.linear(r, m) for m in ms])
        seconds[length] = taken * copies / len(products)
        flops[length] = 2 * weights * length / seconds[length]
    rate = weights * dtype.itemsize / seconds[row_lengths[0]]
    return MachineLimits(precision, torch.get_num_threads(), flops, rate)


def machine_row(machine: MachineLimits) -> pd.DataFrame:
    """Shows the limits as a table."""
    one, *_ = machine.flops.values()
    row = {
        "threads": machine.threads,
        "memory, GB/s": round(machine.bytes_a_second / 1e9, 1),
        "arithmetic at one token, GFLOPS": round(one / 1e9),
        "arithmetic at best, GFLOPS": round(machine.roof / 1e9),
        "of the best at one token, %": round(100 * one / machine.roof, 1),
    }
    return pd.DataFrame(row, index=[machine.precision])


def roofline_chart(machine: MachineLimits) -> None:
    """Draws the measured arithmetic by tokens per row, under the limits of memory and processor."""
    lengths = list(machine.flops)
    itemsize = PRECISIONS[machine.precision].itemsize
    slope = [2 * length * machine.bytes_a_second / itemsize / 1e9 for length in lengths]
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.6))
        axis.plot(lengths, slope, "--", color=PALETTE[0], label="limit of the memory")
        roof = machine.roof / 1e9
        axis.axhline(roof, linestyle="--", color=PALETTE[1], label="limit of the processor")
        measured = [value / 1e9 for value in machine.flops.values()]
        axis.plot(lengths, measured, "o-", color=PALETTE[2], label="measured")
        axis.set(xscale="log", yscale="log", ylim=(None, roof * 2))
        axis.set(xlabel="Tokens a row", ylabel="GFLOPS")
        axis.set_xticks(lengths, lengths)
        plain_numbers(axis)
        axis.legend()
        figure.tight_layout()
        plt.show()


def plain_numbers(axis: Axes) -> None:
    """Labels a logarithmic axis with 10 and 100 instead of powers of ten."""
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")


def token_cost(facts: ModelFacts, machine: MachineLimits) -> dict[int, float]:
    """Computes the shortest possible step in seconds, by its number of tokens."""
    itemsize = PRECISIONS[machine.precision].itemsize
    reading = facts.parameters * itemsize / machine.bytes_a_second
    return {n: max(reading, 2 * facts.parameters * n / machine.roof) for n in machine.flops}


def step_seconds(runner: ModelRunner, row_lengths: Sequence[int]) -> dict[int, float]:
    """Measures the median seconds of a step, by its number of tokens."""
    found = {}
    for length in row_lengths:
        step = Step((Chunk("timed", 0, 0, tuple(range(5, 5 + length)), sample=True),))
        found[length] = median_seconds(lambda step=step: runner.run(step))
    return found


def bounds_chart(cost: dict[int, float], measured: dict[int, float]) -> None:
    """Draws the measured seconds of a step beside the shortest possible ones."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.4))
        for (name, values), colour in zip(
            {"at best": cost, "measured": measured}.items(),
            PALETTE,
            strict=False,
        ):
            milliseconds = [value * 1e3 for value in values.values()]
            axis.plot(list(values), milliseconds, "o-", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel="Tokens a step", ylabel="Milliseconds a step")
        axis.set_xticks(list(cost), list(cost))
        plain_numbers(axis)
        axis.legend()
        figure.tight_layout()
        plt.show()


def kv_bytes(shape: LlamaShape, precision: str) -> int:
    """Counts the bytes of keys and values per token."""
    return shape.kv(PRECISIONS[precision]).token_bytes


def users_chart(shape: LlamaShape, precision: str, gibibytes: float) -> pd.DataFrame:
    """Counts and draws how many users fit into a cache, by the length of their texts."""
    token = kv_bytes(shape, precision)
    lengths = (256, 512, 1024, 2048, 4096, 8192)
    users = {n: int(gibibytes * 2**30 // (token * n)) for n in lengths}
    without = [count * shape.kv_heads / shape.heads for count in users.values()]
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3))
        places = range(len(users))
        bars = axis.bar(places, users.values(), color=PALETTE[0], label="with shared heads (GQA)")
        axis.bar_label(bars)
        axis.bar(places, without, color=PALETTE[1], width=0.4, label="without")
        axis.set_xticks(places, lengths)
        axis.set(xlabel="Tokens a user", ylabel=f"Users in {gibibytes:g} GiB")
        axis.legend()
        figure.tight_layout()
        plt.show()
    return pd.DataFrame({"users": users}).rename_axis("tokens a user")
