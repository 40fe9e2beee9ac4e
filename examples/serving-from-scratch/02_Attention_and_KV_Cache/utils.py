"""Provides what the notebook of 02_Attention_and_KV_Cache uses: measurements and charts."""

import random
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vllm_kernel import Vllm, VllmCache, has_kernel

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.blocks import Pages
from serving_from_scratch.core.memory import Memory
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import Executor, InProcess
from serving_from_scratch.engine.replay import replay
from serving_from_scratch.model.attention import (
    AttentionBackend,
    Eager,
    PagedNumba,
    Sdpa,
    Tiled,
)
from serving_from_scratch.model.kv_cache import KVShape, PagedCache, SlotCache
from serving_from_scratch.model.llama import LlamaShape
from serving_from_scratch.model.loading import ModelManager, read_config, read_shape
from serving_from_scratch.model.row import Row

__all__ = [
    "Flow",
    "Pages",
    "answers_of",
    "attention_seconds",
    "blocks_chart",
    "family",
    "largest_difference",
    "open_runner",
    "peak_chart",
    "prefix_chart",
    "prepare_base",
    "read_config",
    "read_shape",
    "seconds_chart",
    "try_triton",
    "users_chart",
    "watch",
    "write_json",
]

BLOCK_TOKENS = 16
PAGE = 32  # tokens of a page where attentions are compared; vLLM takes multiples of 32
USERS = 8  # requests that decode together
WAYS = {
    "eager": (Eager, SlotCache),
    "tiled": (Tiled, SlotCache),
    "SDPA": (Sdpa, SlotCache),
    "gathered, SDPA": (Sdpa, PagedCache),
    "paged": (PagedNumba, PagedCache),
    **({"vLLM": (Vllm, VllmCache)} if has_kernel() else {}),
}


class Attending:
    """One layer's attention over random numbers.

    Args:
        shape: the model's heads.
        way: a key of `WAYS`.
        length: tokens of each text.
        tokens: how many tokens at the end of each text attend.
        sequences: number of texts.
    """

    def __init__(
        self,
        shape: LlamaShape,
        way: str,
        length: int,
        tokens: int,
        sequences: int,
    ) -> None:
        backend, cache = WAYS[way]
        self.backend: AttentionBackend = backend()
        torch.manual_seed(0)
        size = KVShape(1, shape.kv_heads, shape.width)
        pages = -(-length // PAGE)
        places = (sequences, length) if cache is SlotCache else (pages * sequences, PAGE)
        self.cache = cache(size, *places)
        tables = torch.randperm(pages * sequences).view(sequences, pages).tolist()
        self.write(tables, 0, length, size)
        self.row = self.begin(tables, length - tokens, length)
        self.queries = torch.randn(tokens * sequences, shape.heads, shape.width)

    def begin(self, tables: list[list[int]], start: int, end: int) -> Row:
        """Makes the row of all texts' tokens from start to end."""
        chunks = (
            Chunk(str(n), n, start, (0,) * (end - start), sample=True, blocks=tuple(table))
            for n, table in enumerate(tables)
        )
        row = Row(Step(tuple(chunks)))
        self.cache.begin(row)
        return row

    def write(self, tables: list[list[int]], start: int, end: int, size: KVShape) -> None:
        """Fills the cache; the random numbers are the same for every way."""
        row = self.begin(tables, start, end)
        tokens = (len(row.ids), size.heads, size.width)
        generator = torch.Generator().manual_seed(1)
        keys, values = (torch.randn(tokens, generator=generator) for _ in range(2))
        self.cache.write(0, keys, values)

    def __call__(self) -> Tensor:
        with torch.inference_mode():
            return self.backend.attend(self.queries, self.cache, 0, self.row)


def largest_difference(shape: LlamaShape, length: int = 300) -> dict[str, float]:
    """Compares every way with the formula, in decoding and in prefill."""
    found = {}
    for way in WAYS:
        pairs = [
            (Attending(shape, way, length, *work)(), Attending(shape, "eager", length, *work)())
            for work in ((1, USERS), (length, 1))
        ]
        found[way] = max((one - other).abs().max().item() for one, other in pairs)
    return found


def try_triton(shape: LlamaShape, length: int) -> str:
    """Runs the kernel in Triton's language if there is a GPU; says what was found."""
    if not torch.cuda.is_available():
        return "Triton: not run, because this machine has no GPU."
    # Imported here, because only a GPU build of PyTorch brings Triton.
    from triton.testing import do_bench
    from triton_kernel import paged_decode

    attending = Attending(shape, "gathered, SDPA", length, 1, USERS)
    cache = attending.cache
    lengths = (cache.positions + 1).int()
    tensors = (attending.queries, cache.keys[0], cache.values[0], cache.tables.int(), lengths)
    inputs = [tensor.cuda() for tensor in tensors]
    difference = (paged_decode(*inputs).cpu() - attending()).abs().max().item()
    milliseconds = do_bench(lambda: paged_decode(*inputs))
    return f"Triton: {milliseconds:.3f} ms on the GPU; largest difference {difference:.1e}."


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Measures the median seconds of `work`, after one warm-up run."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def attention_seconds(
    shape: LlamaShape,
    lengths: Sequence[int],
) -> dict[str, dict[str, dict[int, float]]]:
    """Measures the seconds of one layer's attention.

    Returns:
        "prefill" or "decode" -> way -> length in tokens -> seconds.
    """
    found: dict[str, dict[str, dict[int, float]]] = {"prefill": {}, "decode": {}}
    for way in WAYS:
        for length in lengths:
            for kind, work in (("prefill", (length, 1)), ("decode", (1, USERS))):
                seconds = median_seconds(Attending(shape, way, length, *work))
                found[kind].setdefault(way, {})[length] = seconds
    return found


def seconds_chart(seconds: dict[str, dict[str, dict[int, float]]]) -> None:
    """Draws the milliseconds of one layer's attention by length."""
    with house_style():
        figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.8))
        titles = (("prefill", "Prefill: one prompt"), ("decode", f"Decode: {USERS} requests"))
        for axis, (kind, title) in zip(axes, titles, strict=True):
            for (way, values), colour in zip(seconds[kind].items(), PALETTE, strict=False):
                milliseconds = [value * 1e3 for value in values.values()]
                axis.plot(list(values), milliseconds, "o-", color=colour, label=way, markersize=4)
            axis.set(xscale="log", yscale="log", xlabel="Tokens a text", ylabel="Milliseconds")
            axis.set_xticks(list(values), list(values))
            plain_numbers(axis)
            axis.set_title(title, fontsize=10, loc="left")
        axes[0].legend(fontsize=9)
        figure.tight_layout()
        plt.show()


def plain_numbers(axis: Axes) -> None:
    """Labels a logarithmic axis with 10 and 100 instead of powers of ten."""
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")


class PeakBytes(TorchDispatchMode):
    """Measures the peak bytes of the tensors that are made in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._seen:
            self._seen.add(place)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._end, place, size)

    def _end(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


def peak_chart(shape: LlamaShape, lengths: Sequence[int]) -> dict[str, dict[int, int]]:
    """Measures and draws the memory that one layer's attention allocates for a prompt."""
    found: dict[str, dict[int, int]] = {}
    for way in ("eager", "tiled", "SDPA"):
        for length in lengths:
            attending = Attending(shape, way, length, length, 1)
            with PeakBytes() as memory:
                attending()
            found.setdefault(way, {})[length] = memory.peak
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.2))
        for (way, values), colour in zip(found.items(), PALETTE, strict=False):
            mebibytes = [value / 2**20 for value in values.values()]
            axis.plot(list(values), mebibytes, "o-", color=colour, label=way)
        axis.set(xscale="log", yscale="log", xlabel="Tokens of the prompt", ylabel="Peak, MiB")
        axis.set_xticks(lengths, lengths)
        plain_numbers(axis)
        axis.legend()
        figure.tight_layout()
        plt.show()
    return found


def family(children: int, shared: int, own: int, answer: int) -> list[Request]:
    """Makes requests with the same beginning."""
    draw = random.Random(2)

    def text(tokens: int) -> list[int]:
        return [draw.randrange(100, 20_000) for _ in range(tokens)]

    beginning = text(shared)
    sampling = SamplingParameters(max_tokens=answer, ignore_eos=True)
    prompts = [(*beginning, *text(own)) for _ in range(children)]
    return [Request(str(n), prompt, sampling) for n, prompt in enumerate(prompts)]


def open_runner(base: Path, blocks: int) -> Executor:
    """Loads the model with a paged cache, in 32-bit numbers."""
    options = ModelOptions(
        str(base),
        "float32",
        "paged",
        "paged",
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
    )
    return InProcess(ModelManager().runner(options))


def answers_of(
    executor: Executor,
    memory: Memory,
    requests: Sequence[Request],
    places: int,
) -> dict[str, list[int]]:
    """Serves requests and returns their tokens."""
    return replay(Scheduler(Continuous(), memory, places), executor, list(requests)).answers


@dataclass
class History:
    """The owners of every page after each step, the answers, and the number of preemptions."""

    owners: list[list[int]] = field(default_factory=list)
    answers: dict[str, list[int]] = field(default_factory=dict)
    preemptions: int = 0


def watch(executor: Executor, memory: Pages, requests: Sequence[Request], places: int) -> History:
    """Serves requests and records the owners of the pages.

    The first request runs alone until its prompt is computed.
    """
    scheduler, history = Scheduler(Continuous(), memory, places), History()
    sequences = [scheduler.submit(requests[0])]
    while step := scheduler.schedule():
        scheduler.update(step, executor.step(step))
        history.owners.append(list(memory.manager.references))
        if len(sequences) == 1:
            sequences += [scheduler.submit(request) for request in requests[1:]]
    history.answers = {sequence.request.id: sequence.generated for sequence in sequences}
    history.preemptions = sum(sequence.preemptions for sequence in sequences)
    return history


def blocks_chart(history: History) -> None:
    """Draws the number of owners of each page, step by step."""
    picture = np.array(history.owners).T
    used = max(np.flatnonzero(picture.any(axis=1))) + 1
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.2))
        image = axis.imshow(
            picture[:used],
            aspect="auto",
            cmap="Blues",
            interpolation="nearest",
            vmin=0,
        )
        axis.set(xlabel="Step", ylabel="Page")
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.grid(False)
        ticks = range(int(picture.max()) + 1)
        figure.colorbar(image, label="Owners", ticks=ticks, pad=0.02)
        figure.tight_layout()
        plt.show()


def prefix_chart(base: Path, shared: int, own: int) -> dict[str, float]:
    """Measures and draws the TTFT of prompts whose beginning is in the cache, and is not."""
    options = ModelOptions(str(base), "float32", places=2, length=1024)
    executor = InProcess(ModelManager().runner(options))
    requests = family(children=4, shared=shared, own=own, answer=2)
    found, answers = {}, []
    for name, prefixes in (("computed", False), ("known", True)):
        scheduler = Scheduler(Continuous(), options.memory(prefixes), 2)
        timelines = [replay(scheduler, executor, [request]) for request in requests]
        found[name] = statistics.median(timeline.ttft()[0] for timeline in timelines[1:])
        answers.append([timeline.answers for timeline in timelines])
    assert answers[0] == answers[1]
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 1.7))
        bars = axis.barh(list(found), [value * 1e3 for value in found.values()], color=PALETTE[:2])
        axis.bar_label(bars, fmt="%.0f ms", padding=4)
        axis.set_xlabel(f"TTFT, {shared} shared tokens and {own} of its own")
        figure.tight_layout()
        plt.show()
    return found


def users_chart(shape: LlamaShape, gibibytes: float, longest: int = 2048) -> pd.DataFrame:
    """Counts and draws how many users fit into a cache of slots, and of pages of several sizes."""
    token = shape.kv(torch.bfloat16).token_bytes
    room = int(gibibytes * 2**30 // token)
    draw = random.Random(3)
    texts = [min(2000, max(50, int(draw.lognormvariate(5.5, 0.9)))) for _ in range(1000)]
    ways = {f"slots of {longest:,}": longest} | {f"pages of {n}": n for n in (256, 64, 16)}
    users = {}
    for name, block in ways.items():
        taken = np.cumsum([-(-text // block) * block for text in texts])
        users[name] = int((taken <= room).sum())
    users["no waste at all"] = int((np.cumsum(texts) <= room).sum())
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.4))
        bars = axis.barh(list(users), list(users.values()), color=PALETTE[0])
        axis.bar_label(bars, padding=4)
        axis.invert_yaxis()
        axis.set_xlabel(
            f"Users in {gibibytes:g} GiB; the median text has {np.median(texts):.0f} tokens",
        )
        figure.tight_layout()
        plt.show()
    return pd.DataFrame({"users": users})
