"""Small, realistic results for tests: a base and two candidates like those measured on a CPU.

w8a8-int8 is faster and near lossless; w4a16-int4 is smaller, slower and clearly worse.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from model_serve_flow.compare.comparability import BaseResults, CandidateResults
from model_serve_flow.compare.comparison import compare
from model_serve_flow.compare.stats.paired import wilson_interval
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import CandidateComparison, Comparison
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    CalibrationFacts,
    Capacity,
    CompressionResult,
    DistributionResult,
    EngineFacts,
    Item,
    Latency,
    LoadPoint,
    Metric,
    Model,
    Overlap,
    PerformanceResult,
    Probe,
    TaskAccuracy,
    TokenTops,
    protocol_hash,
)

if TYPE_CHECKING:
    from transformers import LlamaConfig

TASKS = ["mmlu_dev", "word_analogies", "wikipedia"]
ACCURACY_PROTOCOL = {
    "accuracy": {"tasks": TASKS, "num_fewshot": None, "concurrency": 8, "batch_size": 32},
    "engine_arguments": {"max_model_len": 2048},
    "engine_version": "0.32.0",
}
DISTRIBUTION_PROTOCOL = {
    "distribution": {"documents": 6, "tokens": 40, "top_k": 5},
    "concurrency": 8,
    "engine_version": "0.32.0",
}
PERFORMANCE_PROTOCOL = {
    "performance": {
        "concurrency": [1, 4, 8],
        "prompt_tokens": 128,
        "output_tokens": 32,
        "seconds": 8.0,
        "repeats": 3,
    },
    "engine_version": "0.32.0",
}
SUBJECT_GROUPS = ("humanities", "other", "social sciences", "stem")
CATEGORIES = ("capital-common-countries", "currency", "family", "gram3-comparative")
VOCABULARY = 60  # of the sample's distributions


@dataclass(frozen=True)
class Traits:
    """What distinguishes one model of the sample from the base."""

    size_bytes: int
    speedup: float
    memory_bytes: int
    mmlu: tuple[int, int]  # items gained and lost against the base
    analogies: tuple[int, int]
    loss: float  # rise of the loss on text, in nats per word
    streams: int  # highest concurrency within the objectives
    noise: float  # standard deviation added to the base's logits
    quantization: str | None = "compressed-tensors"
    kernels: tuple[str, ...] = ()


TRAITS = {
    "base": Traits(
        269_060_552, 1.0, 1_912_602_624, (0, 0), (0, 0), 0.0, 10, 0.0, quantization=None
    ),
    "w8a8-int8": Traits(
        160_421_888,
        1.35,
        1_803_886_264,
        (7, 8),
        (4, 5),
        0.009,
        14,
        0.08,
        kernels=("CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8",),
    ),
    "w4a16-int4": Traits(
        112_197_632,
        0.59,
        1_755_651_072,
        (25, 33),
        (12, 58),
        0.24,
        5,
        0.9,
        kernels=("CPUWNA16LinearKernel for CompressedTensorsWNA16",),
    ),
}


def config() -> FlowConfig:
    """The profile the sample belongs to, with margins and a price of its own:
    the tests are not about the profile's.
    """
    margins = {
        "suite_margin_points": 3.0,
        "task_margin_points": 5.0,
        "perplexity_margin_percent": 3.0,
    }
    overrides = {f"verdict.{key}": value for key, value in margins.items()}
    return load_profile("cpu-smollm2", {**overrides, "deploy.hourly_price_usd": 0.08})


def model(name: str = "base") -> Model:
    return Model(
        name=name,
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        size_bytes=TRAITS[name].size_bytes,
    )


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


def question(i: int) -> dict:
    """What a multiple-choice item carries beside its score:
    a question of one of four subjects, short or long.
    """
    context = "A survey of 120 households in three districts was repeated in two later years. " * (
        i * 7 % 5
    )
    return {
        "prompt": f"{context}Question {i}: which of the following is true?\nA. one\nB. two\nC. "
        "three\nD. four\nAnswer:",
        "expected": "ABCD"[i % 4],
        "groups": {"subject group": SUBJECT_GROUPS[i // 2 % 4]},
    }


def analogy(i: int) -> dict:
    """The same for a word analogy."""
    words = (
        "Athens is to Greece as Oslo is to",
        "Denmark is to krone as Japan is to",
        "boy is to girl as uncle is to",
    )
    return {
        "prompt": words[i % 3],
        "expected": "ABCD"[i % 4],
        "groups": {"category": CATEGORIES[i // 2 % 4]},
    }


def choice_task(
    n: int,
    correct: int,
    gained: int = 0,
    lost: int = 0,
    chance: float | None = 0.25,
    asks: Callable = question,
) -> TaskAccuracy:
    """A multiple-choice task: the first `correct` items are right,
    then `lost` of them flip and `gained` others.
    """
    right = np.arange(n) < correct
    right[:lost] = False
    right[correct : correct + gained] = True
    return scored_task(right, chance, asks)


def scored_task(
    right: Sequence[bool], chance: float | None = 0.25, asks: Callable = question
) -> TaskAccuracy:
    """A multiple-choice task whose i-th item is right or wrong as given;
    a wrong answer is the next letter.
    """
    n, share = len(right), float(np.mean(right))
    items = tuple(
        Item(id=str(i), answer="ABCD"[(i + (not value)) % 4], acc=float(value), **asks(i),
             right_choice_probability=0.55 + 0.01 * (i % 30) if value else 0.2 + 0.005 * (i % 20))
        for i, value in enumerate(right)
    )  # fmt: skip
    stderr = math.sqrt(share * (1 - share) / (n - 1))
    return TaskAccuracy(
        n=n,
        chance=chance,
        items=items,
        metrics={"acc": Metric(value=share, stderr=stderr, higher_is_better=True)},
    )


def text_task(documents: int = 50, loss: float = 0.0, seed: int = 0) -> TaskAccuracy:
    """A perplexity task; each document's loss rises by about `loss` nats per word."""
    rng = np.random.default_rng(seed)
    words = rng.integers(200, 260, documents).astype(float)
    sizes = np.round(words * rng.uniform(5.8, 6.4, documents))
    loglik = -words * (rng.normal(4.1, 0.25, documents) + loss * rng.uniform(0.6, 1.4, documents))
    items = tuple(
        Item(
            id=str(i),
            answer=None,
            loglikelihood=log,
            words=w,
            bytes=b,
            bits_per_byte=-log / b / math.log(2),
        )
        for i, (log, w, b) in enumerate(
            zip(loglik.tolist(), words.tolist(), sizes.tolist(), strict=True)
        )
    )
    per_byte = -loglik.sum() / sizes.sum()
    figures = {
        "word_perplexity": math.exp(-loglik.sum() / words.sum()),
        "byte_perplexity": math.exp(per_byte),
        "bits_per_byte": per_byte / math.log(2),
    }
    metrics = {
        key: Metric(value=value, stderr=None, higher_is_better=False)
        for key, value in figures.items()
    }
    return TaskAccuracy(n=documents, chance=None, metrics=metrics, items=items)


def accuracy(name: str = "base", protocol: dict | None = None) -> AccuracyResult:
    traits = TRAITS[name]
    tasks = {
        "mmlu_dev": choice_task(273, 78, *traits.mmlu),
        "word_analogies": choice_task(336, 214, *traits.analogies, asks=analogy),
        "wikipedia": text_task(50, traits.loss),
    }
    return AccuracyResult(**_measurement(name, protocol or ACCURACY_PROTOCOL), tasks=tasks)


def accuracy_again() -> AccuracyResult:
    """Every second question of the base in other batches: three answers change."""
    settings = ACCURACY_PROTOCOL["accuracy"] | {"concurrency": 3, "batch_size": 20}
    again = accuracy("base", {**ACCURACY_PROTOCOL, "accuracy": settings, "items_per_task": 137})
    tasks = {
        "mmlu_dev": choice_task(273, 78, 1, 1),
        "word_analogies": choice_task(336, 214, 1, 0, asks=analogy),
    }
    return again.model_copy(
        update={"tasks": {name: every_second(task) for name, task in tasks.items()}}
    )


def every_second(task: TaskAccuracy) -> TaskAccuracy:
    return task.model_copy(update={"items": task.items[::2], "n": len(task.items[::2])})


def distribution(
    name: str = "base", noise: float | None = None, protocol: dict | None = None
) -> DistributionResult:
    """Six documents of 40 tokens, the five likeliest of each:
    the base's logits and the candidate's noise on them.
    """
    logits = np.random.default_rng(11).normal(0, 2.5, (6, 39, VOCABULARY))
    tokens = np.random.default_rng(12).integers(0, VOCABULARY, (6, 40))
    noise = TRAITS[name].noise if noise is None else noise
    logits = logits + np.random.default_rng(13).normal(0, 1, logits.shape) * noise
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    top = np.argsort(-logprobs, axis=-1)[..., :5]
    likeliest = np.take_along_axis(logprobs, top, axis=-1)
    own = np.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    documents = tuple(
        TokenTops(id=str(i), tokens=row.tolist(), top_ids=ids.tolist(),
                  top_logprobs=values.tolist(),
                  own_logprobs=given.tolist())
        for i, (row, ids, values, given) in enumerate(zip(tokens, top, likeliest, own, strict=True))
    )  # fmt: skip
    return DistributionResult(
        **_measurement(name, protocol or DISTRIBUTION_PROTOCOL), k=5, documents=documents
    )


def distribution_again() -> DistributionResult:
    """The base in other batches: nearly the same distributions."""
    return distribution("base", noise=0.01, protocol={**DISTRIBUTION_PROTOCOL, "concurrency": 3})


def _measurement(name: str, protocol: dict) -> dict:
    return {
        "model": model(name),
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
        "engine": engine(name),
        "seconds": 95.0,
    }


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
        "client_cpu_share": 0.12,
        "valid": True,
    }
    return LoadPoint(**{**fields, **changes})


def performance(
    name: str = "base", protocol: dict | None = None, points: tuple[LoadPoint, ...] | None = None
) -> PerformanceResult:
    """Three load points, each measured three times in turns, and the capacity at the objectives."""
    if points is None:
        drift = (0.99, 1.0, 1.012) if name == "base" else (1.005, 0.996, 0.999)
        points = tuple(
            load_point(c, drift[repeat] * throughput(name, c), repeat=repeat + 1)
            for repeat in range(3)
            for c in (1, 4, 8)
        )
    return PerformanceResult(
        **_measurement(name, protocol or PERFORMANCE_PROTOCOL),
        points=points,
        capacity=capacity(name),
    )


def throughput(name: str, concurrency: int) -> float:
    """Output tokens/s of a model of the sample: the base's saturates,
    the candidates gain a little less under load.
    """
    base = 247 * concurrency / (concurrency + 4.8)
    return base * TRAITS[name].speedup * (1 - 0.004 * concurrency * (name != "base"))


def capacity(name: str = "base") -> Capacity:
    """What the goodput search found: four loads, two of them within the objectives."""
    streams = TRAITS[name].streams
    return Capacity(
        ttft_ms=1500,
        itl_ms=60,
        attainment=0.95,
        streams=streams,
        failed=streams + 2,
        output_tokens_per_s=throughput(name, streams),
        probes=tuple(_probe(name, load) for load in (4, 2 * streams, streams, streams + 2)),
        stopped="the interval of passing and failing loads is narrower than the tolerance",
    )


def _probe(name: str, load: int) -> Probe:
    passed = load <= TRAITS[name].streams
    met, requests = (118, 120) if passed else (66, 120)
    interval = wilson_interval(met, requests)
    return Probe(
        streams=load,
        requests=requests,
        attainment=met / requests,
        ci95=(interval.low, interval.high),
        passed=passed,
        output_tokens_per_s=throughput(name, load),
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
            source="gensim 4.4.0",
            samples=64,
            tokens=15210,
            chat_template=True,
            overlap=Overlap(ngram=8, items=659, overlapping=()),
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


def base() -> BaseResults:
    """All results of the base, its second measurement among them."""
    return BaseResults(
        accuracy(), performance(), accuracy_again(), distribution(), distribution_again()
    )


def candidate(name: str = "w8a8-int8") -> CandidateResults:
    """All results of one candidate."""
    return CandidateResults(
        compression(name), accuracy(name), performance(name), distribution(name)
    )


@functools.cache
def sample_comparison() -> Comparison:
    """Base and two candidates: w8a8-int8 may ship, w4a16-int4 may not."""
    return compare(config(), base(), [candidate("w8a8-int8"), candidate("w4a16-int4")])


def compare_int8(**replaced) -> CandidateComparison:
    """w8a8-int8 against the base, with some results replaced: `accuracy=` is its own,
    `base_accuracy=` the base's.
    """
    ours = {
        key.removeprefix("base_"): value
        for key, value in replaced.items()
        if key.startswith("base_")
    }
    theirs = {key: value for key, value in replaced.items() if not key.startswith("base_")}
    sides = dataclasses.replace(base(), **ours), [dataclasses.replace(candidate(), **theirs)]
    return compare(config(), *sides).candidates[0]


def with_task(result: AccuracyResult, name: str, task: TaskAccuracy) -> AccuracyResult:
    """The same result with one task replaced or added."""
    return result.model_copy(update={"tasks": {**result.tasks, name: task}})


def tiny_config(**changes) -> LlamaConfig:
    """The architecture of a Llama small enough to build in a test."""
    from transformers import LlamaConfig

    return LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": True, **changes,
    })  # fmt: skip
