"""Defines the results of measuring and compressing: JSON files with a schema version."""

from __future__ import annotations

import hashlib
import json
import operator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_serve_flow.system.records import (
    Count,
    Finite,
    NonNegative,
    Positive,
    Probability,
    Record,
)

SCHEMA_VERSION = "2.0"
BASE = "base"  # the name of the base model in results, folders and servers
LOOK = "look"  # key of a protocol: [look, planned looks]; missing for the base
NOT_REACHED = "the measurement was interrupted before it"
QUESTION = "question"  # group of the answers to one item (`accuracy.repeats`)
RIGHT_CHOICE = "right_choice_probability"  # of an item's values; no metric of lm-eval has this name


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Computes the SHA-256 of a protocol: everything that must be equal in a comparison."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


class Model(Record):
    """The measured model."""

    name: str = Field(description="'base' or the candidate's name")
    sha256: str = Field(description="digest of the checkpoint folder, see digests.folder_digest")
    size_bytes: Count = Field(description="bytes of the safetensors files")
    float_values: Count | None = Field(
        default=None,
        description="weights stored in 16 or 32 bits, without scales: the engine holds them in its "
        "own dtype; none: not recorded",
    )
    float_bytes: Count | None = Field(default=None, description="of these weights, as stored")

    def held_bytes(self, dtype: str | None) -> int:
        """Computes the bytes of weights that an engine holds.

        Args:
            dtype: in which the engine computes, such as "bfloat16"; None: not known, then the
                stored bytes count.
        """
        if dtype is None or self.float_values is None or self.float_bytes is None:
            return self.size_bytes
        width = 4 if dtype == "float32" else 2
        return self.size_bytes - self.float_bytes + width * self.float_values


class EngineFacts(Record):
    """What the engine says about its version, kernels and KV cache."""

    name: str = Field(
        default="vLLM",
        exclude_if=lambda name: name == "vLLM",  # results keep the form they had with one engine
        description="of the program that serves",
    )
    version: str
    quantization: str | None = Field(
        description="the engine's quantisation method; none: served unquantised"
    )
    dtype: str | None = Field(
        default=None, description="what it computes in and holds unquantised weights as"
    )
    kernels: tuple[str, ...] = Field(
        description="quantised linear kernels named in the log, e.g. 'X for Y'"
    )
    names_kernels: bool = Field(
        default=True,
        exclude_if=bool,
        description="false: the engine does not tell its kernels, so `kernels` proves nothing",
    )
    kv_cache_tokens: Count | None
    start_seconds: NonNegative
    peak_memory_bytes: Count | None = Field(
        description="peak resident memory of the server's processes (CPU) or device memory (GPU)"
    )


class Busy(Record):
    """How much of the machine's CPU others took in a period; measured by `busy.watch_machine`.

    Shares are from 0 to 1, of the time of all cores that this process may run on.
    """

    load_average: NonNegative = Field(
        description="processes that run or wait for a core, mean of the last minute"
    )
    cores: Annotated[int, Field(gt=0)] = Field(description="cores that this process may use")
    others_share: Probability | None = Field(
        description="used by programs that are not of this run; none: the system does not tell"
    )
    steal_share: Probability | None = Field(
        description="wanted by this machine and given to another by the hypervisor; none: the "
        "system does not tell"
    )
    throttled_share: Probability | None = Field(
        default=None,
        description="in which the cores were slowed by heat or stopped by a quota, or a GPU was "
        "slowed by heat or a power brake, the larger; none: not told",
    )
    seconds: NonNegative = Field(description="length of the time that was looked at")

    @property
    def taken(self) -> float | None:
        """Returns the share of the CPU that other programs or machines took; None: not known."""
        if self.others_share is None or self.steal_share is None:
            return None
        return min(self.others_share + self.steal_share, 1.0)


class Measurement(Record):
    """The fields that every result of a measurement has."""

    schema_version: Literal["2.0"] = SCHEMA_VERSION
    model: Model
    protocol: dict[str, Any]
    protocol_hash: str
    engine: EngineFacts
    seconds: NonNegative
    busy: Busy | None = Field(
        default=None, description="what others took meanwhile; none: each load point says it"
    )

    @model_validator(mode="after")
    def hash_matches(self) -> Measurement:
        if self.protocol_hash != protocol_hash(self.protocol):
            raise ValueError("protocol_hash is not the hash of 'protocol': the file was edited")
        return self


class Metric(Record):
    """One aggregated figure of a task, as lm-eval reports it."""

    value: Finite
    stderr: Finite | None
    higher_is_better: bool


class Item(BaseModel):
    """One scored item: a stable id, one value per metric, the prompt, and the model's answer."""

    model_config = ConfigDict(extra="allow", frozen=True)
    # pydantic checks the additional keys against this type.
    __pydantic_extra__: dict[str, Finite]  # ty: ignore[incompatible-mutable-override]

    id: str
    answer: str | None
    prompt: str | None = Field(
        default=None, description="what the model was given; none for a text that is only scored"
    )
    expected: str | None = Field(
        default=None, description="the right answer, where the task has one"
    )
    groups: dict[str, str] = Field(
        default={}, description="what the item belongs to, e.g. {'subject': 'stem'}"
    )

    @property
    def values(self) -> dict[str, float]:
        """Returns metric -> the item's value; a file stores the values as additional keys."""
        return self.__pydantic_extra__


class TaskAccuracy(Record):
    """One task: its figures and its items."""

    n: Annotated[int, Field(gt=0)]
    chance: Probability | None = Field(
        description="expected score of guessing, for multiple choice"
    )
    metrics: dict[str, Metric]
    items: tuple[Item, ...]

    @model_validator(mode="after")
    def items_are_whole(self) -> TaskAccuracy:
        if len(self.items) != self.n or len({item.id for item in self.items}) != self.n:
            raise ValueError(f"n is {self.n} but there are {len(self.items)} items, or ids repeat")
        return self


class AccuracyResult(Measurement):
    """The result of 01 and 04: accuracy by lm-eval, through the endpoint."""

    kind: Literal["accuracy"] = "accuracy"
    tasks: dict[str, TaskAccuracy]
    looks: tuple[dict[str, tuple[str, ...]], ...] = Field(
        default=(), description="look -> task -> ids of the items asked then; none: all at once"
    )
    requests: dict[str, Count] = Field(
        default={}, description="how lm-eval's requests were asked -> how many"
    )
    cut_prompts: Count = Field(
        default=0,
        exclude_if=operator.not_,
        description="prompts that lost their beginning, because they are longer than the engine's "
        "context",
    )

    @property
    def comparable_hash(self) -> str:
        """Returns the hash of the protocol without the looks made: equal where results compare."""
        return protocol_hash({key: part for key, part in self.protocol.items() if key != LOOK})


class TokenTops(Record):
    """One document: its tokens, and the model's likeliest tokens from the second position on."""

    id: str
    tokens: tuple[int, ...] = Field(description="N token ids")
    top_ids: tuple[tuple[int, ...], ...] = Field(
        description="N - 1 rows of k token ids, the likeliest first"
    )
    top_logprobs: tuple[tuple[Finite, ...], ...] = Field(
        description="N - 1 rows of k natural log-probabilities"
    )
    own_logprobs: tuple[Finite, ...] = Field(
        default=(),
        description="N - 1 natural log-probabilities of the text's own tokens; none: not recorded",
    )


class DistributionResult(Measurement):
    """The result of 01 and 04: next-token distributions on held-out text, from the endpoint."""

    kind: Literal["distribution"] = "distribution"
    k: Annotated[int, Field(gt=0)]
    documents: tuple[TokenTops, ...]

    @model_validator(mode="after")
    def rows_are_whole(self) -> DistributionResult:
        for document in self.documents:
            rows = (len(document.tokens) - 1,) * 2
            widths = {len(row) for row in (*document.top_ids, *document.top_logprobs)}
            if (len(document.top_ids), len(document.top_logprobs)) != rows or widths - {self.k}:
                raise ValueError(
                    f"document {document.id!r} has not {rows[0]} rows of {self.k} tokens"
                )
            if document.own_logprobs and len(document.own_logprobs) != rows[0]:
                raise ValueError(
                    f"document {document.id!r} has not {rows[0]} own log-probabilities"
                )
        return self


class Latency(Record):
    """Distribution of one latency over the completed requests of a load point."""

    mean: NonNegative
    p50: NonNegative
    p95: NonNegative
    p99: NonNegative


class LoadPoint(Record):
    """One load point, as GuideLLM reports it; tokens are means per completed request."""

    concurrency: Annotated[int, Field(gt=0)]
    repeat: Annotated[
        int, Field(gt=0, description="1 for the first time this concurrency was measured")
    ] = 1
    block: Annotated[
        int, Field(gt=0, description="the start of the server that it was measured on")
    ] = 1
    seconds: Positive
    completed_requests: Count
    errored_requests: Count
    incomplete_requests: Count
    prompt_tokens: NonNegative
    output_tokens: NonNegative
    requests_per_s: NonNegative
    output_tokens_per_s: NonNegative
    ttft_ms: Latency
    itl_ms: Latency
    request_latency_s: Latency
    client_cpu_share: NonNegative = Field(
        description="CPU seconds of the load generator / (wall seconds x cores)"
    )
    client_limited: bool = Field(
        default=False, description="the load generator took CPU that the server needed"
    )
    busy: Busy | None = Field(
        default=None, description="what others took while this turn of load points ran"
    )
    valid: bool
    invalid_reason: str = ""

    @property
    def problem(self) -> str:
        """Explains why the load point must not be compared; empty if it may be."""
        if not self.valid or self.invalid_reason:
            return self.invalid_reason or "no reason given"
        if self.errored_requests:
            return f"{self.errored_requests} requests failed"
        if self.output_tokens_per_s == 0:
            return "no output tokens"
        return "no latencies" if self.itl_ms.mean == 0 or self.request_latency_s.mean == 0 else ""


class Probe(Record):
    """One load of the goodput search, and the share of requests that met every objective."""

    streams: Annotated[int, Field(gt=0)]
    requests: Count
    attainment: NonNegative = Field(description="share of the requests that met every objective")
    ci95: tuple[NonNegative, NonNegative] = Field(
        description="Wilson interval of the attainment, of requests that have nothing in common"
    )
    passed: bool
    output_tokens_per_s: NonNegative


class Capacity(Record):
    """Capacity at SLO: the highest concurrency at which the latency objectives hold.

    GuideLLM's goodput search finds it.
    """

    ttft_ms: Positive
    itl_ms: Positive
    attainment: Positive = Field(description="share of requests that must meet both objectives")
    streams: Count | None = Field(
        description="highest concurrency that passed (of several searches their geometric mean); "
        "0: not even one request at a time; none: not measured"
    )
    failed: Count | None = Field(
        description="lowest concurrency above `streams` that failed; none: no load failed"
    )
    output_tokens_per_s: NonNegative = Field(description="at `streams`")
    probes: tuple[Probe, ...]
    stopped: str = Field(
        description="why the search ended, in GuideLLM's words, or why nothing was measured"
    )
    searches: Annotated[int, Field(gt=0, description="each on a server started anew")] = 1
    ci95: tuple[Count, Count | None] | None = Field(
        default=None,
        description="over the searches, open above where one ended without a failure; none: one "
        "search",
    )
    output_ci95: tuple[NonNegative, NonNegative | None] | None = Field(
        default=None, description="of output_tokens_per_s at the capacity, in the same way"
    )

    @property
    def measured(self) -> bool:
        """Returns whether a request completed in any load; if not, the capacity is unknown."""
        return self.streams is not None


class PerformanceResult(Measurement):
    """The result of 02 and 05: performance by GuideLLM, through the endpoint."""

    kind: Literal["performance"] = "performance"
    points: tuple[LoadPoint, ...] = Field(
        description="every load point of every repeat, in the order measured"
    )
    capacity: Capacity | None = Field(
        default=None, description="over all blocks; none: the profile has no objectives"
    )
    searches: dict[int, Capacity] = Field(
        default={}, description="block -> its search, of several blocks"
    )

    @property
    def blocks(self) -> int:
        """Returns how many times the server was started anew for this result."""
        return self.protocol.get("blocks", 1)

    def by_concurrency(self) -> dict[int, list[LoadPoint]]:
        """Returns concurrency, rising -> the repeats of this load point, in order, valid or not."""
        loads: dict[int, list[LoadPoint]] = {}
        for point in sorted(self.points, key=lambda point: (point.concurrency, point.repeat)):
            loads.setdefault(point.concurrency, []).append(point)
        return loads

    def problems(self) -> dict[tuple[int, int], str]:
        """Returns (concurrency, repeat) -> why it is not measured.

        It covers all load points that the protocol asks for, and all that are in the result.
        """
        load = self.protocol.get("performance", {})
        asked = [
            (c, repeat + 1)
            for repeat in range(load.get("repeats", 0))
            for c in load.get("concurrency", ())
        ]
        found = {(point.concurrency, point.repeat): point.problem for point in self.points}
        return {
            place: why
            for place in dict.fromkeys([*asked, *found])
            if (why := found.get(place, NOT_REACHED))
        }

    def measured_loads(self) -> dict[int, list[LoadPoint]]:
        """Returns `by_concurrency` with only the load points whose repeats are all measured."""
        unmeasured = {concurrency for concurrency, _ in self.problems()}
        return {
            load: points for load, points in self.by_concurrency().items() if load not in unmeasured
        }

    def unmeasured_loads(self) -> dict[int, str]:
        """Returns concurrency, rising -> which repeats are not measured, and why."""
        load = self.protocol.get("performance", {})
        reasons: dict[int, str] = {}
        for (concurrency, repeat), why in sorted(self.problems().items()):
            text = why if load.get("repeats", 1) == 1 else f"repeat {repeat}: {why}"
            reasons[concurrency] = (
                f"{reasons[concurrency]}; {text}" if concurrency in reasons else text
            )
        return reasons

    def unmeasured(self) -> list[str]:
        """Lists everything that was asked for and is not measured, with the reason."""
        found = [f"load point {load}: {why}" for load, why in self.unmeasured_loads().items()]
        return [*found, *self._unmeasured_searches()]

    def _unmeasured_searches(self) -> list[str]:
        if self.blocks == 1:
            searches = {"capacity": self.capacity}
        else:
            searches = {
                f"capacity, block {b}": self.searches.get(b) for b in range(1, self.blocks + 1)
            }
        asked = self.protocol.get("performance", {}).get("slo")
        found = {
            name: search.stopped
            for name, search in searches.items()
            if search and not search.measured
        }
        found |= {
            name: NOT_REACHED for name, search in searches.items() if search is None and asked
        }
        return [f"{name}: {why}" for name, why in found.items()]


class Overlap(Record):
    """Evaluation items that share a run of words with the calibration text."""

    ngram: Annotated[int, Field(gt=0, description="words in a row")]
    items: Count = Field(description="evaluation items looked at")
    overlapping: tuple[str, ...] = Field(description="task/id of those that share a run")


class CalibrationFacts(Record):
    """The calibration text that the compressor saw."""

    source: str
    samples: Count
    tokens: Count
    chat_template: bool
    max_sequence_length: Count | None = Field(
        default=None, description="tokens at which a text was cut"
    )
    sha256: str | None = Field(default=None, description="of the token ids, in their order")
    overlap: Overlap | None = Field(
        default=None, description="none: no evaluation item had been measured to look for"
    )


Measured = AccuracyResult | DistributionResult | PerformanceResult


class CompressionResult(Record):
    """The result of 03: the checkpoint that was made or inspected, and what it cost."""

    kind: Literal["compression"] = "compression"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    model: Model
    base: Model
    scheme: str
    algorithm: str
    origin: str = Field(description="'recipe', or the source of a ready-made checkpoint")
    recipe: dict[str, Any] | None
    calibration: CalibrationFacts | None
    seed: Count | None = Field(
        default=None, description="none: ready-made, or made before it was recorded"
    )
    quantise: str | None = Field(
        default=None, description="source of the function that called llm-compressor"
    )
    versions: dict[str, str | None] = Field(
        default={}, description="packages that it was made with"
    )
    quantization_config: dict[str, Any]
    quantized_layers: Count
    ignored_layers: tuple[str, ...]
    bits_per_weight: Positive = Field(
        description="bits of the quantised linear weights, scales included, per weight"
    )
    seconds: NonNegative
    peak_memory_bytes: Count
    sample: str = Field(description="a generation of the compressed model, as a sanity check")


class Repeated(Record):
    """How the difference varies between items and between answers to one item, as proportions."""

    count: Annotated[int, Field(gt=1, description="answers per item")]
    items: Annotated[int, Field(gt=1)]
    between: NonNegative = Field(description="variance between items of the expected difference")
    within: NonNegative = Field(description="variance between the answers to one item")


class Looks(Record):
    """How many looks a candidate needed, and how many items were not asked."""

    planned: Annotated[int, Field(gt=0)]
    made: Annotated[int, Field(gt=0)]
    items: Count = Field(description="asked of the candidate")
    of_items: Count = Field(description="that the base was asked")
