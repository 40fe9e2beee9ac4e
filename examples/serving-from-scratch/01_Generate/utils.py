"""Provides what the notebook of 01_Generate uses: timings, charts, and a reference answer."""

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from tokenizers import Tokenizer
from torch import Tensor

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import SamplingParameters
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.model.llama import rotate
from serving_from_scratch.model.loading import ModelManager
from serving_from_scratch.model.runner import ModelRunner
from serving_from_scratch.model.sampling import choose, distribution

__all__ = [
    "Chunk",
    "Flow",
    "ModelManager",
    "ModelOptions",
    "SamplingParameters",
    "Step",
    "attention_maps",
    "by_transformers",
    "choices",
    "chunk_seconds",
    "next_token_chart",
    "prepare_base",
    "read_tokenizer",
    "rotate",
    "seconds_by_row",
    "token_chart",
    "write_json",
]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads the checkpoint's tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def attention_maps(
    maps: Sequence[Tensor],
    pieces: Sequence[str],
    shown: Sequence[tuple[int, int]],
) -> None:
    """Draws the attention of some heads.

    Args:
        maps: for each layer, heads x tokens x tokens.
        pieces: the text of each token.
        shown: the heads to draw, as (layer, head).
    """
    with house_style():
        figure, axes = plt.subplots(1, len(shown), figsize=(12, 3.9), sharey=True)
        for axis, (layer, head) in zip(axes, shown, strict=True):
            axis.imshow(maps[layer][head], cmap="Blues", vmin=0, vmax=1)
            axis.set_title(f"Layer {layer}, head {head}", fontsize=10)
            axis.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8)
            axis.set_yticks(range(len(pieces)), pieces, fontsize=8)
            axis.grid(False)
        figure.tight_layout()
        plt.show()


def next_token_chart(logits: Tensor, tokenizer: Tokenizer, count: int = 10) -> None:
    """Draws the likeliest next tokens at three temperatures."""
    ids = logits.topk(count).indices.tolist()
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.2))
        for place, temperature in enumerate((0.5, 1.0, 1.5)):
            found = distribution(logits, SamplingParameters(temperature=temperature))[ids]
            places = [number + (place - 1) * 0.27 for number in range(count)]
            label = f"temperature {temperature}"
            axis.bar(places, found * 100, 0.25, label=label, color=PALETTE[place])
        axis.set_xticks(range(count), [repr(tokenizer.decode([id])) for id in ids])
        axis.set_ylabel("Probability, %")
        axis.legend()
        figure.tight_layout()
        plt.show()


def choices(
    logits: Tensor,
    sampling: SamplingParameters,
    tokenizer: Tokenizer,
    seeds: Iterable[int],
) -> pd.DataFrame:
    """Chooses one token per seed, twice."""
    rows = []
    for seed in seeds:
        drawn = [choose(logits, sampling, seed, position=1) for _ in range(2)]
        rows.append([seed, *(tokenizer.decode([id]) for id in drawn)])
    return pd.DataFrame(rows, columns=["seed", "token", "drawn again"]).set_index("seed")


def chunk_seconds(runner: ModelRunner, text: Sequence[int], start: int, end: int) -> float:
    """Measures the seconds of a step that computes the tokens from start to end."""
    step = Step((Chunk("timed", 0, start, tuple(text[start:end]), sample=True),))
    started = time.perf_counter()
    runner.run(step)
    return time.perf_counter() - started


def token_chart(seconds: dict[str, list[float]], first: int) -> None:
    """Draws the milliseconds of each token by its position in the text."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.4))
        for (name, values), colour in zip(seconds.items(), PALETTE, strict=False):
            places = range(first, first + len(values))
            axis.plot(places, [v * 1e3 for v in values], ".-", label=name, color=colour)
        axis.set(xlabel="Position in the text, tokens", ylabel="Milliseconds a token", ylim=0)
        axis.legend()
        figure.tight_layout()
        plt.show()


def seconds_by_row(
    runner: ModelRunner,
    text: Sequence[int],
    lengths: Sequence[int],
    repeats: int = 5,
) -> dict[int, float]:
    """Measures and draws the median seconds of a step, by its number of tokens."""
    long = (list(text) * (max(lengths) // len(text) + 1))[: max(lengths)]
    found = {}
    for length in lengths:
        timed = [chunk_seconds(runner, long, 0, length) for _ in range(repeats)]
        found[length] = statistics.median(timed)
    with house_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.2))
        left.plot(list(found), [v * 1e3 for v in found.values()], "o-", color=PALETTE[0])
        left.set(xlabel="Tokens a step", ylabel="Milliseconds a step", ylim=0)
        rates = [length / value for length, value in found.items()]
        right.plot(list(found), rates, "o-", color=PALETTE[2])
        right.set(xlabel="Tokens a step", ylabel="Tokens a second", ylim=0)
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xticks(lengths, lengths)
        figure.tight_layout()
        plt.show()
    return found


@dataclass
class Reference:
    """The results of transformers: a greedy answer, and the logits of a sentence."""

    answer: list[int]
    logits: Tensor


def by_transformers(
    folder: Path,
    prompt: Sequence[int],
    new_tokens: int,
    sentence_ids: Sequence[int],
) -> Reference:
    """Computes a greedy answer and a sentence's logits with transformers, in 32-bit numbers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # does not stop at the end of an answer
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": new_tokens, "pad_token_id": 0}
    output = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    with torch.inference_mode():
        logits = model(torch.tensor([sentence_ids])).logits[0]
    return Reference(output[0, len(prompt) :].tolist(), logits)
