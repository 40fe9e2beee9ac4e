"""Small, realistic results for tests: a base and two candidates like those measured on a CPU.

w8a8-int8 is faster and near lossless; w4a16-int4 is smaller, slower and clearly worse.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model_serve_flow.comparison import CandidateResults, compare
from model_serve_flow.config import FlowConfig, load_profile
from model_serve_flow.results import (
    AccuracyResult,
    CalibrationFacts,
    Comparison,
    CompressionResult,
    EngineFacts,
    Item,
    Latency,
    LoadPoint,
    Metric,
    Model,
    PerformanceResult,
    TaskAccuracy,
    protocol_hash,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig

ACCURACY_PROTOCOL = {"tasks": ["mmlu_dev", "word_analogies", "wikipedia"], "num_fewshot": None, "max_model_len": 2048}
PERFORMANCE_PROTOCOL = {"concurrency": [1, 4, 8], "prompt_tokens": 128, "output_tokens": 32, "seconds": 8.0}


@dataclass(frozen=True)
class Traits:
    """What distinguishes one model of the sample from the base."""

    size_bytes: int
    speedup: float
    memory_bytes: int
    mmlu: tuple[int, int]  # items gained and lost against the base
    analogies: tuple[int, int]
    loss: float  # rise of the loss on text, in nats per word
    quantization: str | None = "compressed-tensors"
    kernels: tuple[str, ...] = ()


TRAITS = {
    "base": Traits(269_060_552, 1.0, 1_912_602_624, (0, 0), (0, 0), 0.0, quantization=None),
    "w8a8-int8": Traits(
        160_421_888,
        1.35,
        1_803_886_264,
        (7, 8),
        (4, 5),
        0.009,
        kernels=("CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8",),
    ),
    "w4a16-int4": Traits(
        112_197_632,
        0.59,
        1_755_651_072,
        (25, 33),
        (12, 58),
        0.24,
        kernels=("CPUWNA16LinearKernel for CompressedTensorsWNA16",),
    ),
}


def config() -> FlowConfig:
    """The profile the sample belongs to, with margins of its own: the tests are not about the profile's."""
    margins = {"suite_margin_points": 3.0, "task_margin_points": 5.0, "perplexity_margin_percent": 3.0}
    return load_profile("cpu-smollm2", {f"verdict.{key}": value for key, value in margins.items()})


def model(name: str = "base") -> Model:
    return Model(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), size_bytes=TRAITS[name].size_bytes)


def engine(name: str = "base") -> EngineFacts:
    traits = TRAITS[name]
    return EngineFacts(
        version="0.32.0",
        quantization=traits.quantization,
        kernels=traits.kernels,
        kv_cache_tokens=46592,
        start_seconds=41.0,
        peak_memory_bytes=traits.memory_bytes,
    )


def choice_task(n: int, correct: int, gained: int = 0, lost: int = 0, chance: float | None = 0.25) -> TaskAccuracy:
    """A multiple-choice task: the first `correct` items are right, then `lost` of them flip and `gained` others."""
    right = np.arange(n) < correct
    right[:lost] = False
    right[correct : correct + gained] = True
    items = tuple(Item(id=str(i), answer="ABCD"[i % 4], acc=float(value)) for i, value in enumerate(right))
    share = float(right.mean())
    stderr = math.sqrt(share * (1 - share) / (n - 1))
    return TaskAccuracy(
        n=n, chance=chance, items=items, metrics={"acc": Metric(value=share, stderr=stderr, higher_is_better=True)}
    )


def text_task(documents: int = 50, loss: float = 0.0, seed: int = 0) -> TaskAccuracy:
    """A perplexity task; each document's loss rises by about `loss` nats per word."""
    rng = np.random.default_rng(seed)
    words = rng.integers(200, 260, documents).astype(float)
    sizes = np.round(words * rng.uniform(5.8, 6.4, documents))
    loglik = -words * (rng.normal(4.1, 0.25, documents) + loss * rng.uniform(0.6, 1.4, documents))
    items = tuple(
        Item(id=str(i), answer=None, loglikelihood=log, words=w, bytes=b, bits_per_byte=-log / b / math.log(2))
        for i, (log, w, b) in enumerate(zip(loglik.tolist(), words.tolist(), sizes.tolist(), strict=True))
    )
    per_byte = -loglik.sum() / sizes.sum()
    figures = {
        "word_perplexity": math.exp(-loglik.sum() / words.sum()),
        "byte_perplexity": math.exp(per_byte),
        "bits_per_byte": per_byte / math.log(2),
    }
    metrics = {key: Metric(value=value, stderr=None, higher_is_better=False) for key, value in figures.items()}
    return TaskAccuracy(n=documents, chance=None, metrics=metrics, items=items)


def accuracy(name: str = "base", protocol: dict | None = None) -> AccuracyResult:
    traits = TRAITS[name]
    protocol = protocol or ACCURACY_PROTOCOL
    tasks = {
        "mmlu_dev": choice_task(273, 78, *traits.mmlu),
        "word_analogies": choice_task(336, 214, *traits.analogies),
        "wikipedia": text_task(50, traits.loss),
    }
    return AccuracyResult(
        model=model(name),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        engine=engine(name),
        seconds=95.0,
        tasks=tasks,
    )


def _latency(typical: float) -> Latency:
    return Latency(mean=typical * 1.03, p50=typical, p95=typical * 1.25, p99=typical * 1.4)


def load_point(concurrency: int, output_tokens_per_s: float, **changes: object) -> LoadPoint:
    """A load point whose latencies follow from its throughput."""
    itl = 1000 * concurrency / output_tokens_per_s * 0.9
    ttft = 60 + 25 * concurrency
    fields = {
        "concurrency": concurrency,
        "seconds": 8.0,
        "completed_requests": max(5, round(output_tokens_per_s * 8 / 32)),
        "errored_requests": 0,
        "incomplete_requests": concurrency,
        "prompt_tokens": 128.0,
        "output_tokens": 32.0,
        "requests_per_s": output_tokens_per_s / 32,
        "output_tokens_per_s": output_tokens_per_s,
        "ttft_ms": _latency(ttft),
        "itl_ms": _latency(itl),
        "request_latency_s": _latency((ttft + 31 * itl) / 1000),
        "valid": True,
    }
    return LoadPoint(**{**fields, **changes})


def performance(
    name: str = "base", protocol: dict | None = None, points: tuple[LoadPoint, ...] | None = None
) -> PerformanceResult:
    protocol = protocol or PERFORMANCE_PROTOCOL
    bases = {1: 42.6, 4: 121.3, 8: 173.9}
    speed = {c: v * TRAITS[name].speedup * (1 - 0.004 * c * (name != "base")) for c, v in bases.items()}
    return PerformanceResult(
        model=model(name),
        protocol=protocol,
        protocol_hash=protocol_hash(protocol),
        engine=engine(name),
        seconds=52.0,
        points=points if points is not None else tuple(load_point(c, v) for c, v in speed.items()),
        client_cpu_share=0.12,
    )


def compression(name: str = "w8a8-int8") -> CompressionResult:
    int8 = name == "w8a8-int8"
    return CompressionResult(
        model=model(name),
        base=model("base"),
        scheme="W8A8" if int8 else "W4A16",
        algorithm="rtn" if int8 else "gptq",
        origin="recipe",
        recipe={"scheme": "W8A8" if int8 else "W4A16"},
        calibration=CalibrationFacts(
            source="gensim 4.4.0", samples=64, tokens=15210, padding_fraction=0.0, chat_template=True
        ),
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "int-quantized" if int8 else "pack-quantized",
        },
        quantized_layers=210,
        ignored_layers=("lm_head",),
        bits_per_weight=8.03 if int8 else 4.25,
        seconds=31.0 if int8 else 116.0,
        peak_memory_bytes=2_400_000_000,
        sample="Paris is the capital of France.",
    )


def candidate(name: str = "w8a8-int8") -> CandidateResults:
    """(compression, accuracy, performance) of one candidate."""
    return compression(name), accuracy(name), performance(name)


@functools.cache
def sample_comparison() -> Comparison:
    """Base and two candidates: w8a8-int8 may ship, w4a16-int4 may not."""
    settings = config()
    results = [candidate("w8a8-int8"), candidate("w4a16-int4")]
    return compare(settings, accuracy(), performance(), settings.model.note, results)


def tiny_config(**changes) -> LlamaConfig:
    """The architecture of a Llama small enough to build in a test."""
    from transformers import LlamaConfig

    return LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": True, **changes,
    })  # fmt: skip
