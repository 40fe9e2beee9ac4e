"""The typed results that pass between modules as JSON files, each with a schema version and a protocol hash."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_serve_flow.errors import FlowError

SCHEMA_VERSION = "1.0"

Unit = Literal["points", "percent", "bits/byte"]
Decision = Literal["SHIP", "DO NOT SHIP", "INCONCLUSIVE"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def protocol_hash(protocol: dict[str, Any]) -> str:
    """SHA-256 of all that must be equal between two results that are compared."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


class Record(BaseModel):
    """Strict on keys: a result written by another schema is refused rather than half read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Record):
    """Which model was measured."""

    name: str = Field(description="'base' or the candidate's name")
    sha256: str = Field(description="digest of the checkpoint folder, see workspace.folder_digest")
    size_bytes: Count = Field(description="bytes of the safetensors files")


class EngineFacts(Record):
    """What the engine's own log says it did."""

    version: str
    quantization: str | None = Field(description="the engine's quantisation method; none: served unquantised")
    kernels: tuple[str, ...] = Field(description="quantised linear kernels named in the log, e.g. 'X for Y'")
    kv_cache_tokens: int | None
    start_seconds: NonNegative
    peak_memory_bytes: int | None = Field(
        description="peak resident memory of the server's processes (CPU) or device memory (GPU)"
    )


class Measurement(Record):
    """What every result of a measurement carries."""

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    model: Model
    protocol: dict[str, Any]
    protocol_hash: str
    engine: EngineFacts
    seconds: NonNegative

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
    """One scored item: a stable id, one value per metric (extra keys), and the model's answer."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Finite]

    id: str
    answer: str | None

    def value(self, metric: str) -> float:
        """The item's value of `metric`; KeyError if the task has no such metric."""
        return self.__pydantic_extra__[metric]


class TaskAccuracy(Record):
    """One task: its figures and the items they come from."""

    n: Annotated[int, Field(gt=0)]
    chance: float | None = Field(description="expected score of guessing, for multiple choice")
    metrics: dict[str, Metric]
    items: tuple[Item, ...]

    @model_validator(mode="after")
    def items_are_whole(self) -> TaskAccuracy:
        if len(self.items) != self.n or len({item.id for item in self.items}) != self.n:
            raise ValueError(f"n is {self.n} but there are {len(self.items)} items, or ids repeat")
        return self


class AccuracyResult(Measurement):
    """01 and 04: lm-eval against the endpoint."""

    kind: Literal["accuracy"] = "accuracy"
    tasks: dict[str, TaskAccuracy]


class Latency(Record):
    """Distribution of one latency over the completed requests of a load point."""

    mean: NonNegative
    p50: NonNegative
    p95: NonNegative
    p99: NonNegative


class LoadPoint(Record):
    """One load point, as GuideLLM reports it; tokens are means per completed request."""

    concurrency: Annotated[int, Field(gt=0)]
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
    valid: bool
    invalid_reason: str = ""


class PerformanceResult(Measurement):
    """02 and 05: GuideLLM against the endpoint."""

    kind: Literal["performance"] = "performance"
    points: tuple[LoadPoint, ...]
    client_cpu_share: NonNegative = Field(description="CPU seconds of the load generator / (wall seconds x cores)")


class CalibrationFacts(Record):
    """What the compressor saw."""

    source: str
    samples: Count
    tokens: Count
    padding_fraction: NonNegative
    chat_template: bool


class CompressionResult(Record):
    """03: what was made, or inspected, and what it cost."""

    kind: Literal["compression"] = "compression"
    schema_version: Literal["1.0"] = SCHEMA_VERSION
    model: Model
    base: Model
    scheme: str
    algorithm: str
    origin: str = Field(description="'recipe', or the source of a ready-made checkpoint")
    recipe: dict[str, Any] | None
    calibration: CalibrationFacts | None
    quantization_config: dict[str, Any]
    quantized_layers: Count
    ignored_layers: tuple[str, ...]
    bits_per_weight: Positive = Field(description="bits of the quantised linear weights, scales included, per weight")
    seconds: NonNegative
    peak_memory_bytes: Count
    sample: str = Field(description="a generation of the compressed model, as a sanity check")


class Difference(Record):
    """Candidate minus base on one metric of one task, paired by item."""

    n: Annotated[int, Field(gt=0)]
    base: Finite
    candidate: Finite
    difference: Finite
    ci95: tuple[Finite, Finite]
    unit: Unit
    higher_is_better: bool
    chance: float | None = None
    near_chance: bool = Field(default=False, description="the base is not clearly above guessing: the task says little")
    margin: Positive = Field(description="the drop that would be accepted, in the same unit as the difference")


class SpeedPoint(Record):
    """Base and candidate at one load point; ratios are candidate over base for throughput."""

    concurrency: int
    base_output_tokens_per_s: Positive
    candidate_output_tokens_per_s: Positive
    speedup: Positive
    ttft_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    itl_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    request_latency_s_p50: dict[Literal["base", "candidate"], NonNegative]


class Memory(Record):
    """Memory while serving."""

    peak_bytes: int | None
    kv_cache_tokens: int | None


class CandidateComparison(Record):
    """Everything the report says of one candidate."""

    name: str
    scheme: str
    algorithm: str
    origin: str
    kernel: str
    sha256: str
    size_bytes: Count
    size_ratio: Positive
    accuracy: dict[str, dict[str, Difference]]
    suite: Difference | None = Field(default=None, description="mean over the tasks that decide; none: no task can")
    performance: tuple[SpeedPoint, ...]
    memory: Memory
    verdict: Decision
    reasons: tuple[str, ...]


class BaseComparison(Record):
    """The model everything is compared with."""

    name: str
    sha256: str
    size_bytes: Count
    note: str
    memory: Memory


class Comparison(Record):
    """06: the contract other tools read, `report/comparison.json`."""

    kind: Literal["comparison"] = "comparison"
    schema_version: Literal["1.0"] = SCHEMA_VERSION
    profile: str
    base: BaseComparison
    candidates: tuple[CandidateComparison, ...]
    protocol: dict[Literal["accuracy", "performance"], dict[str, Any]]
    protocol_hash: dict[Literal["accuracy", "performance"], str]

    KERNEL_UNQUANTISED: ClassVar[str] = "unquantised"


def require_same_protocol(base: Measurement, candidate: Measurement) -> None:
    """Refuses a comparison of measurements made differently, naming the field that differs.

    Raises:
        FlowError: the protocols differ.
    """
    if base.protocol_hash == candidate.protocol_hash:
        return
    for key in sorted(base.protocol.keys() | candidate.protocol.keys()):
        ours, theirs = base.protocol.get(key), candidate.protocol.get(key)
        if ours != theirs:
            raise FlowError(
                f"{base.model.name} and {candidate.model.name} were not measured in the same way: "
                f"{key} is {ours!r} and {theirs!r}.",
                "Measure both again with the same profile: model-serve-flow run --from 01.",
            )
