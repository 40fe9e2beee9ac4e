"""The typed results that pass between modules as JSON files, each with a schema version and a protocol hash."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_serve_flow.errors import RERUN, FlowError

SCHEMA_VERSION = "2.0"
BASE = "base"  # the name of the base model in results, folders and servers
LOOK = "look"  # key of a protocol: [the look, how many are planned]; the base is asked everything
NOT_REACHED = "the measurement was interrupted before it"
QUESTION = "question"  # the group of the answers to one item, where it was asked several times
RIGHT_CHOICE = "right_choice_probability"  # of an item's values; no metric of lm-eval has this name

Unit = Literal["points", "percent", "bits/byte"]
Tier = Literal["required", "deciding", "advisory"]
Decision = Literal["SHIP", "DO NOT SHIP", "INCONCLUSIVE"]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


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
    dtype: str | None = Field(default=None, description="what it computes in and holds unquantised weights as")
    kernels: tuple[str, ...] = Field(description="quantised linear kernels named in the log, e.g. 'X for Y'")
    kv_cache_tokens: Count | None
    start_seconds: NonNegative
    peak_memory_bytes: Count | None = Field(
        description="peak resident memory of the server's processes (CPU) or device memory (GPU)"
    )


class Busy(Record):
    """How much of the machine's CPU others took over some time; `busy.watch_machine` measures it.

    Shares are of all the time of the cores that this process may run on, between 0 and 1.
    """

    load_average: NonNegative = Field(description="processes that run or wait for a core, mean of the last minute")
    cores: Annotated[int, Field(gt=0)] = Field(description="cores that this process may use")
    others_share: Probability | None = Field(
        description="used by programs that are not of this run; none: the system does not tell"
    )
    steal_share: Probability | None = Field(
        description="wanted by this machine and given to another by the hypervisor; none: the system does not tell"
    )
    throttled_share: Probability | None = Field(
        default=None, description="in which the cores were slowed by heat or stopped by a quota; none: not told"
    )
    seconds: NonNegative = Field(description="length of the time that was looked at")

    @property
    def taken(self) -> float | None:
        """Share of the CPU that this run could not have: used by others, or given to another machine."""
        if self.others_share is None or self.steal_share is None:
            return None
        return min(self.others_share + self.steal_share, 1.0)


class Measurement(Record):
    """What every result of a measurement carries."""

    schema_version: Literal["2.0"] = SCHEMA_VERSION
    model: Model
    protocol: dict[str, Any]
    protocol_hash: str
    engine: EngineFacts
    seconds: NonNegative
    busy: Busy | None = Field(default=None, description="what others took meanwhile; none: each load point says it")

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
    """One scored item: a stable id, its values (a key per metric), the model's answer, and what it was asked."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Finite]

    id: str
    answer: str | None
    prompt: str | None = Field(
        default=None, description="what the model was given; none for a text that is only scored"
    )
    expected: str | None = Field(default=None, description="the right answer, where the task has one")
    groups: dict[str, str] = Field(default={}, description="what the item belongs to, e.g. {'subject': 'stem'}")

    @property
    def values(self) -> dict[str, float]:
        """Metric -> the item's value of it: the keys that a file has beside the fields."""
        return self.__pydantic_extra__


class TaskAccuracy(Record):
    """One task: its figures and the items they come from."""

    n: Annotated[int, Field(gt=0)]
    chance: Probability | None = Field(description="expected score of guessing, for multiple choice")
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
    looks: tuple[dict[str, tuple[str, ...]], ...] = Field(
        default=(), description="look -> task -> ids of the items asked then; none: all at once"
    )
    requests: dict[str, Count] = Field(default={}, description="how lm-eval's requests were asked -> how many")


class TokenTops(Record):
    """One document: its tokens, and what the model expected at each of them from the second on."""

    id: str
    tokens: tuple[int, ...] = Field(description="N token ids")
    top_ids: tuple[tuple[int, ...], ...] = Field(description="N - 1 rows of k token ids, the likeliest first")
    top_logprobs: tuple[tuple[Finite, ...], ...] = Field(description="N - 1 rows of k natural log-probabilities")
    own_logprobs: tuple[Finite, ...] = Field(
        default=(), description="N - 1 natural log-probabilities of the text's own tokens; none: not recorded"
    )


class DistributionResult(Measurement):
    """01 and 04: the model's next-token distributions on held-out text, from the served endpoint."""

    kind: Literal["distribution"] = "distribution"
    k: Annotated[int, Field(gt=0)]
    documents: tuple[TokenTops, ...]

    @model_validator(mode="after")
    def rows_are_whole(self) -> DistributionResult:
        for document in self.documents:
            rows = (len(document.tokens) - 1,) * 2
            widths = {len(row) for row in (*document.top_ids, *document.top_logprobs)}
            if (len(document.top_ids), len(document.top_logprobs)) != rows or widths - {self.k}:
                raise ValueError(f"document {document.id!r} has not {rows[0]} rows of {self.k} tokens")
            if document.own_logprobs and len(document.own_logprobs) != rows[0]:
                raise ValueError(f"document {document.id!r} has not {rows[0]} own log-probabilities")
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
    repeat: Annotated[int, Field(gt=0, description="1 for the first time this concurrency was measured")] = 1
    block: Annotated[int, Field(gt=0, description="the start of the server that it was measured on")] = 1
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
    client_cpu_share: NonNegative = Field(description="CPU seconds of the load generator / (wall seconds x cores)")
    client_limited: bool = Field(default=False, description="the load generator took CPU that the server needed")
    busy: Busy | None = Field(default=None, description="what others took while this turn of load points ran")
    valid: bool
    invalid_reason: str = ""

    @property
    def problem(self) -> str:
        """Why the point must not be compared, also by its own figures; empty if it may."""
        if not self.valid or self.invalid_reason:
            return self.invalid_reason or "no reason given"
        if self.errored_requests:
            return f"{self.errored_requests} requests failed"
        if self.output_tokens_per_s == 0:
            return "no output tokens"
        return "no latencies" if self.itl_ms.mean == 0 or self.request_latency_s.mean == 0 else ""


class Probe(Record):
    """One load of the goodput search: which share of the requests met every objective."""

    streams: Annotated[int, Field(gt=0)]
    requests: Count
    attainment: NonNegative = Field(description="share of the requests that met every objective")
    ci95: tuple[NonNegative, NonNegative] = Field(
        description="Wilson interval of the attainment, of requests that have nothing in common"
    )
    passed: bool
    output_tokens_per_s: NonNegative


class Capacity(Record):
    """The highest concurrency at which the latency objectives hold, found by GuideLLM's goodput search."""

    ttft_ms: Positive
    itl_ms: Positive
    attainment: Positive = Field(description="share of requests that must meet both objectives")
    streams: Count | None = Field(
        description="highest concurrency that passed (of several searches their geometric mean); 0: not even one "
        "request at a time; none: not measured"
    )
    failed: Count | None = Field(description="lowest concurrency above `streams` that failed; none: no load failed")
    output_tokens_per_s: NonNegative = Field(description="at `streams`")
    probes: tuple[Probe, ...]
    stopped: str = Field(description="why the search ended, in GuideLLM's words, or why nothing was measured")
    searches: Annotated[int, Field(gt=0, description="each on a server started anew")] = 1
    ci95: tuple[Count, Count | None] | None = Field(
        default=None, description="over the searches, open above where one ended without a failure; none: one search"
    )
    output_ci95: tuple[NonNegative, NonNegative | None] | None = Field(
        default=None, description="of output_tokens_per_s at the capacity, in the same way"
    )

    @property
    def measured(self) -> bool:
        """Whether any load of the search answered a request; if none did, nothing is known of the capacity."""
        return self.streams is not None


class PerformanceResult(Measurement):
    """02 and 05: GuideLLM against the endpoint."""

    kind: Literal["performance"] = "performance"
    points: tuple[LoadPoint, ...] = Field(description="every load point of every repeat, in the order measured")
    capacity: Capacity | None = Field(default=None, description="over all blocks; none: the profile has no objectives")
    searches: dict[int, Capacity] = Field(default={}, description="block -> its search, of several blocks")

    @property
    def blocks(self) -> int:
        """How many times the server was started anew for this."""
        return self.protocol.get("blocks", 1)

    def by_concurrency(self) -> dict[int, list[LoadPoint]]:
        """Concurrency, lowest first -> the repeats of that load point in their order, valid or not."""
        loads: dict[int, list[LoadPoint]] = {}
        for point in sorted(self.points, key=lambda point: (point.concurrency, point.repeat)):
            loads.setdefault(point.concurrency, []).append(point)
        return loads

    def problems(self) -> dict[tuple[int, int], str]:
        """(concurrency, repeat) -> why it is not measured, of all that the protocol asks for and all there are."""
        load = self.protocol.get("performance", {})
        asked = [(c, repeat + 1) for repeat in range(load.get("repeats", 0)) for c in load.get("concurrency", ())]
        found = {(point.concurrency, point.repeat): point.problem for point in self.points}
        return {place: why for place in dict.fromkeys([*asked, *found]) if (why := found.get(place, NOT_REACHED))}

    def measured_loads(self) -> dict[int, list[LoadPoint]]:
        """As `by_concurrency`, of the load points of which every repeat is measured."""
        unmeasured = {concurrency for concurrency, _ in self.problems()}
        return {load: points for load, points in self.by_concurrency().items() if load not in unmeasured}

    def unmeasured_loads(self) -> dict[int, str]:
        """Concurrency, lowest first -> which repeat of that load point is not measured, and why."""
        load = self.protocol.get("performance", {})
        reasons: dict[int, str] = {}
        for (concurrency, repeat), why in sorted(self.problems().items()):
            text = why if load.get("repeats", 1) == 1 else f"repeat {repeat}: {why}"
            reasons[concurrency] = f"{reasons[concurrency]}; {text}" if concurrency in reasons else text
        return reasons

    def unmeasured(self) -> list[str]:
        """Everything that was asked for and is not measured, with the reason."""
        found = [f"load point {load}: {why}" for load, why in self.unmeasured_loads().items()]
        return [*found, *self._unmeasured_searches()]

    def _unmeasured_searches(self) -> list[str]:
        if self.blocks == 1:
            searches = {"capacity": self.capacity}
        else:
            searches = {f"capacity, block {b}": self.searches.get(b) for b in range(1, self.blocks + 1)}
        asked = self.protocol.get("performance", {}).get("slo")
        found = {name: search.stopped for name, search in searches.items() if search and not search.measured}
        found |= {name: NOT_REACHED for name, search in searches.items() if search is None and asked}
        return [f"{name}: {why}" for name, why in found.items()]


class Overlap(Record):
    """Evaluation items that share a run of words with the calibration text."""

    ngram: Annotated[int, Field(gt=0, description="words in a row")]
    items: Count = Field(description="evaluation items looked at")
    overlapping: tuple[str, ...] = Field(description="task/id of those that share a run")


class CalibrationFacts(Record):
    """What the compressor saw."""

    source: str
    samples: Count
    tokens: Count
    chat_template: bool
    max_sequence_length: Count | None = Field(default=None, description="tokens at which a text was cut")
    sha256: str | None = Field(default=None, description="of the token ids, in their order")
    overlap: Overlap | None = Field(default=None, description="none: no evaluation item had been measured to look for")


class CompressionResult(Record):
    """03: what was made, or inspected, and what it cost."""

    kind: Literal["compression"] = "compression"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    model: Model
    base: Model
    scheme: str
    algorithm: str
    origin: str = Field(description="'recipe', or the source of a ready-made checkpoint")
    recipe: dict[str, Any] | None
    calibration: CalibrationFacts | None
    seed: Count | None = Field(default=None, description="none: ready-made, or made before it was recorded")
    quantise: str | None = Field(default=None, description="source of the function that called llm-compressor")
    versions: dict[str, str | None] = Field(default={}, description="packages that it was made with")
    quantization_config: dict[str, Any]
    quantized_layers: Count
    ignored_layers: tuple[str, ...]
    bits_per_weight: Positive = Field(description="bits of the quantised linear weights, scales included, per weight")
    seconds: NonNegative
    peak_memory_bytes: Count
    sample: str = Field(description="a generation of the compressed model, as a sanity check")


class Flips(Record):
    """Items whose answer became right or wrong."""

    right_to_wrong: Count
    wrong_to_right: Count

    @property
    def total(self) -> int:
        """Answers that changed, one way or the other."""
        return self.right_to_wrong + self.wrong_to_right


class Tail(Record):
    """Documents of a text that collapsed, and how common such documents may be: what a mean cannot tell."""

    collapsed: Count = Field(description="documents whose perplexity at least doubled")
    share_at_most: Probability = Field(description="of all such documents, with 95 % confidence (Clopper and Pearson)")


class Clusters(Record):
    """The groups in which the items of a task come, which make them less than independent."""

    key: str = Field(description="the group of the items, e.g. 'subject'")
    count: Annotated[int, Field(gt=1)]
    design_effect: NonNegative | None = Field(
        description="variance of the difference over what independent items would have; none: no item changed"
    )
    decide: bool = Field(description="whether interval and p-values are those of the clusters: the wider ones count")


class Repeated(Record):
    """How the difference varies between items and between the answers to one item, as proportions."""

    count: Annotated[int, Field(gt=1, description="answers per item")]
    items: Annotated[int, Field(gt=1)]
    between: NonNegative = Field(description="variance between items of the expected difference")
    within: NonNegative = Field(description="variance between the answers to one item")


class GrossLoss(Record):
    """Share of the base's right answers that became wrong, in percent. Gains do not make up for it."""

    percent: Annotated[float, Field(ge=0, le=100)]
    ci95: tuple[NonNegative, NonNegative]
    right: Count = Field(description="items that the base had right")


class Difference(Record):
    """Candidate minus base on one metric of one task, paired by item."""

    n: Annotated[int, Field(gt=0)]
    base: Finite
    candidate: Finite
    difference: Finite
    ci95: tuple[Finite, Finite]
    unit: Unit
    higher_is_better: bool
    method: str = Field(description="how the interval was computed")
    chance: float | None = None
    near_chance: bool = Field(default=False, description="the base is not clearly above guessing: the task says little")
    margin: Positive = Field(description="the drop that would be accepted, in the same unit as the difference")
    base_low: Finite | None = Field(default=None, description="lower 95 % bound of the base's score; none for texts")
    too_weak: bool = Field(
        default=False, description="the base is above guessing by less than the margin: the margin's test cannot fail"
    )
    retention: Probability | None = Field(default=None, description="share of the score above guessing to be kept")
    retention_p: Probability | None = Field(default=None, description="one-sided, of keeping that share or less")
    retention_limit: Positive | None = Field(default=None, description="points that may be lost to keep that share")
    noninferiority_p: Probability | None = Field(default=None, description="one-sided, of a loss of the margin or more")
    recovery_percent: Finite | None = Field(default=None, description="candidate / base; none where it would mislead")
    mcnemar_p: Probability | None = Field(default=None, description="exact, two-sided; for values of 0 and 1 only")
    flips: Flips | None = Field(default=None, description="for values of 0 and 1 only")
    smallest_detectable_drop: NonNegative | None = Field(
        default=None, description="true drop that these n items find with 80 % power, in the unit of the difference"
    )
    items_to_settle: Count | None = Field(
        default=None, description="items at which the interval would be clear of the margin; none: it is, or never will"
    )
    adjusted_p: tuple[Probability, Probability] | None = Field(
        default=None, description="Holm-adjusted, of a loss beyond the limit and within it; none: does not decide"
    )
    simultaneous_ci95: tuple[Finite, Finite] | None = Field(
        default=None,
        description="holds together with those of the other deciding tasks, and is clear of the limit exactly where "
        "the verdict says so; none: does not decide",
    )
    look_p: tuple[Probability, Probability] | None = Field(
        default=None, description="over all looks, of a loss beyond the limit and within it; none: all asked at once"
    )
    clusters: Clusters | None = Field(default=None, description="none: the items come in none, or in too few")
    too_few: Count | None = Field(default=None, description="items that a decision needs; none: there are as many")
    monte_carlo_error: NonNegative | None = Field(
        default=None, description="standard error of noninferiority_p, because resamples are drawn; none: none are"
    )
    tail: Tail | None = Field(default=None, description="for texts only")
    tier: Tier = "deciding"
    repeated: Repeated | None = Field(default=None, description="none: one answer per item")
    gross_loss: GrossLoss | None = Field(default=None, description="for values of 0 and 1 only")

    @property
    def silent(self) -> bool:
        """Whether the task cannot decide, because the base is too weak at it."""
        return self.near_chance or self.too_weak

    @property
    def shown_ci95(self) -> tuple[float, float]:
        """The interval that tables, charts and sentences show: the one that agrees with the decision."""
        return self.ci95 if self.simultaneous_ci95 is None else self.simultaneous_ci95

    @property
    def decides(self) -> bool:
        """Whether the task counts in the verdict: it is able to decide and not advisory."""
        return not self.silent and self.tier != "advisory"

    @property
    def limit(self) -> float:
        """The drop that is accepted: the margin, or what retention allows if that is less and the task can decide."""
        if self.silent or self.retention_limit is None:
            return self.margin
        return min(self.margin, self.retention_limit)

    @property
    def decision_p(self) -> float | None:
        """One-sided p-value of "the loss is the margin or more, or too little is kept"; none: no test was possible."""
        return self.noninferiority_p if self.retention_p is None else max(self.noninferiority_p, self.retention_p)

    @property
    def decision_ps(self) -> tuple[float, float]:
        """One-sided p-values of "the loss is the limit or more" and of "it is less", over all looks.

        Both are 1 where too few items allow no test.
        """
        if self.look_p is not None:
            return self.look_p
        p = self.decision_p
        return (1.0, 1.0) if p is None else (p, 1 - p)


class SoftScore(Record):
    """Secondary endpoint of a task with choices: the mean probability of the right one, in percent.

    It never decides.
    """

    n: Annotated[int, Field(gt=0)]
    base: Finite
    candidate: Finite
    difference: Finite = Field(description="candidate minus base, in points, paired item by item")
    ci95: tuple[Finite, Finite]
    method: str = Field(description="how the interval was computed")
    clusters: Clusters | None = Field(default=None, description="none: the items come in none")


class FlippedItem(Record):
    """One item whose answer became right or wrong."""

    task: str
    id: str
    became: Literal["right", "wrong"]
    prompt: str | None
    expected: str | None
    base_answer: str | None
    candidate_answer: str | None


class Slice(Record):
    """The difference on a part of a task, in points; p-values are corrected over all slices of the candidate."""

    task: str
    group: str = Field(description="what it is cut by, e.g. 'subject' or 'prompt length'")
    value: str
    n: Count
    base: Finite
    candidate: Finite
    difference: Finite
    ci95: tuple[Finite, Finite]
    mcnemar_p: Probability
    adjusted_p: Probability = Field(description="Holm over the slices that are large enough")
    too_small: bool = Field(description="too few items to find a drop of twice the task's margin")


class Divergence(Record):
    """Kullback-Leibler divergence base -> candidate per token, in nats: a lower bound, see docs/Statistics.md."""

    mean: NonNegative
    p99: NonNegative
    ci95: tuple[NonNegative, NonNegative] = Field(description="of the mean, by bootstrap over documents")
    p99_ci95: tuple[NonNegative, NonNegative] | None = Field(
        default=None, description="of the 99th percentile, cluster-robust over documents; none: made without it"
    )
    k: Annotated[int, Field(gt=0, description="likeliest tokens known of each side; the rest is one bucket")]
    tokens: Count


class FlipRate(Record):
    """Share of the answers that flip, with its 95 % interval."""

    value: Probability
    ci95: tuple[Probability, Probability]


class NoiseFloor(Record):
    """Items of the base asked again in other batches: what the engine changes by itself."""

    flips: dict[str, Flips] = Field(description="task -> flips between the two measurements of the base")
    items: dict[str, Annotated[int, Field(gt=0)]] = Field(description="task -> items asked twice")
    rate: FlipRate | None = Field(
        description="over all items of these tasks, as the sample estimates it; none: no task can flip"
    )
    kl: Divergence | None
    top1_agreement: Probability | None
    top1_ci95: tuple[Probability, Probability] | None = None


class SpeedVerdict(Record):
    """Whether the candidate is faster, over all load points that are compared. It decides nothing."""

    reading: Literal["FASTER", "NOT FASTER", "UNSURE"]
    speedup: Positive = Field(description="geometric mean over the load points, in output tokens/s")
    ci95: tuple[Positive, Positive] | None = Field(description="none: a load point has one repeat")
    margin: Positive


class Warned(Record):
    """A secondary margin that was compared with what was found."""

    subject: str
    reading: Literal["within", "beyond", "unsure"]
    sentence: str


class UnmeasuredLoad(Record):
    """A load point at which base and candidate cannot be compared."""

    concurrency: Annotated[int, Field(gt=0)]
    reason: str


class SpeedPoint(Record):
    """Base and candidate at one load point, means over the repeats; ratios are candidate over base for throughput."""

    concurrency: int
    repeats: Annotated[int, Field(gt=0)]
    blocks: Annotated[int, Field(gt=0, description="in each, every server was started anew; 1: one server each")] = 1
    base_output_tokens_per_s: Positive
    candidate_output_tokens_per_s: Positive
    speedup: Positive = Field(description="ratio of the geometric means over the repeats")
    speedup_ci95: tuple[Positive, Positive] | None = Field(
        description="on the logarithms: paired t over the blocks, or Welch's over the repeats of one server each; "
        "none: one repeat"
    )
    ttft_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    itl_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    request_latency_s_p50: dict[Literal["base", "candidate"], NonNegative]
    client_cpu_share: dict[Literal["base", "candidate"], NonNegative]
    client_limited: bool = Field(description="on either side the load generator took CPU that the server needed")
    others_share: dict[Literal["base", "candidate"], Probability] | None = Field(
        default=None, description="of the machine's CPU, by other programs and the hypervisor; none: not known"
    )


class Diagnosis(Record):
    """Why it is as fast as it is, from measured facts."""

    bound: Literal["prefill", "decode"] = Field(description="what most of a request's time went into, at one request")
    decode_share: Probability = Field(description="share of a request's time after its first token, at one request")
    base_bytes_per_token: Count = Field(description="weight bytes read for one token of one request")
    candidate_bytes_per_token: Count
    expected_speedup: Positive = Field(description="roofline of decoding: base bytes / candidate bytes")
    reached: NonNegative = Field(
        description="measured over expected speed-up of the inter-token latency, at one request"
    )
    sentence: str


class Memory(Record):
    """Memory while serving."""

    peak_bytes: Count | None
    kv_cache_tokens: Count | None


class Looks(Record):
    """How often the answers of a candidate were looked at, and how many were not needed."""

    planned: Annotated[int, Field(gt=0)]
    made: Annotated[int, Field(gt=0)]
    items: Count = Field(description="asked of the candidate")
    of_items: Count = Field(description="that the base was asked")


class Ranks(Record):
    """1 + the number of models that are surely better: two that cannot be told apart can share a rank."""

    score: Annotated[int, Field(gt=0)]
    economy: Annotated[int, Field(gt=0)] = Field(
        description="what a token costs, or what it is ordered by in its place"
    )


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
    speed: SpeedVerdict | None = Field(default=None, description="none: no load point is compared")
    secondary: tuple[Warned, ...] = Field(
        default=(), description="KL divergence, top-1 agreement and gross loss against their margins"
    )
    soft: dict[str, SoftScore] = Field(
        default={}, description="task -> secondary endpoint: probability of the right choice"
    )
    slices: tuple[Slice, ...] = ()
    flipped: tuple[FlippedItem, ...] = ()
    kl: Divergence | None = None
    top1_agreement: Probability | None = Field(
        default=None, description="share of tokens with the same likeliest token"
    )
    top1_ci95: tuple[Probability, Probability] | None = Field(
        default=None, description="its 95 % interval, cluster-robust over documents"
    )
    noise_floor: NoiseFloor | None = None
    performance: tuple[SpeedPoint, ...]
    unmeasured: tuple[UnmeasuredLoad, ...] = Field(
        default=(), description="load points that were asked for beside them"
    )
    capacity: Capacity | None = None
    cost_per_million_output_tokens: NonNegative | None = Field(default=None, description="in US dollars, at capacity")
    cost_ci95: tuple[NonNegative, NonNegative] | None = Field(default=None, description="none: one search, or no cost")
    diagnosis: Diagnosis | None = None
    memory: Memory
    dominated_by: str | None = Field(default=None, description="a model that is surely more accurate and cheaper")
    looks: Looks | None = Field(default=None, description="none: all items were asked at once")
    ranks: Ranks | None = Field(default=None, description="among the base and the candidates that may ship; none: not")
    verdict: Decision
    reasons: tuple[str, ...]


class BaseComparison(Record):
    """The model everything is compared with."""

    name: str
    sha256: str
    size_bytes: Count
    note: str
    memory: Memory
    capacity: Capacity | None = None
    cost_per_million_output_tokens: NonNegative | None = None
    cost_ci95: tuple[NonNegative, NonNegative] | None = None
    dominated_by: str | None = Field(default=None, description="as of a candidate")
    ranks: Ranks | None = Field(default=None, description="as of a candidate")


class MarginSeal(Record):
    """Whether the margins of the verdict are those that were fixed before the measurement."""

    at: str = Field(description="when 01 wrote the margins into the manifest")
    before_measuring: bool = Field(description="no accuracy result was there yet")
    changed: dict[str, tuple[Finite | str | None, Finite | str | None]] = Field(
        description="margin -> sealed and current value, of those that are not the same"
    )


class Comparison(Record):
    """06: the contract other tools read, `report/comparison.json`."""

    kind: Literal["comparison"] = "comparison"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    profile: str
    margin_rationale: str = Field(default="", description="how the profile's margins were chosen, in its own words")
    margins: MarginSeal | None = Field(default=None, description="none: the margins were never sealed")
    base: BaseComparison
    candidates: tuple[CandidateComparison, ...]
    protocol: dict[Literal["accuracy", "performance"], dict[str, Any]]
    protocol_hash: dict[Literal["accuracy", "performance"], str]

    KERNEL_UNQUANTISED: ClassVar[str] = "unquantised"

    def candidate(self, name: str) -> CandidateComparison:
        """What was found of the candidate `name`; FlowError, with the names there are, if there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = ", ".join(candidate.name for candidate in self.candidates)
        raise FlowError(f"The comparison holds no candidate {name!r}.", f"It holds: {known}. {RERUN}")


class ShippedCandidate(Record):
    """What 06 decided on one candidate, bound to the checkpoint it decided on."""

    name: str
    sha256: str = Field(description="digest of the checkpoint folder, see workspace.folder_digest")
    files: dict[str, str] = Field(description="path in the checkpoint folder -> SHA-256")
    verdict: Decision
    reason: str = Field(description="the one that decided")
    recommended: bool
    looks: Looks | None = Field(default=None, description="none: all items were asked at once")


class ShipOverride(Record):
    """A checkpoint that was let through although the ship record does not allow it."""

    candidate: str
    reason: str = Field(description="as a person gave it in deploy.override_reason")
    problem: str = Field(description="what would have stopped it")
    at: str


class ShipRecord(Record):
    """06: `report/ship-record.json`, the SHA-256 of everything a verdict rests on. Paths are those of the workspace."""

    kind: Literal["ship-record"] = "ship-record"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    profile: str
    profile_sha256: str = Field(description="of the resolved profile without 'deploy', which no verdict rests on")
    created_at: str
    base_sha256: str
    results: dict[str, str] = Field(description="path of a result -> SHA-256")
    comparison_sha256: str = Field(description="of report/comparison.json")
    margins: MarginSeal | None = Field(default=None, description="none: the margins were never sealed")
    candidates: tuple[ShippedCandidate, ...]
    overrides: tuple[ShipOverride, ...] = ()


class ShipDecision(Record):
    """07: a checkpoint that may be deployed, and on what grounds."""

    name: str
    sha256: str = Field(description="digest of the checkpoint as it lies on the disk now")
    verdict: Decision | None = Field(description="as the ship record has it; none: the base, or not in the record")
    override: ShipOverride | None = Field(description="none: the ship record allows it")


def require_same_protocol(base: Measurement, candidate: Measurement) -> None:
    """Refuses a comparison of measurements made differently, naming the field that differs.

    Raises:
        FlowError: the protocols differ.
    """
    if base.protocol_hash == candidate.protocol_hash:
        return
    for key in sorted((base.protocol.keys() | candidate.protocol.keys()) - {LOOK}):
        ours, theirs = base.protocol.get(key), candidate.protocol.get(key)
        if ours != theirs:
            raise FlowError(
                f"{base.model.name} and {candidate.model.name} were not measured in the same way: "
                f"{key} is {ours!r} and {theirs!r}.",
                f"{RERUN} It measures again what differs.",
            )
