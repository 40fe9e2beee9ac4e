"""Defines the results of a comparison: differences, flips, load points and verdicts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.results.measured import SCHEMA_VERSION, Capacity, Looks, Repeated
from model_serve_flow.system.records import (
    Count,
    Finite,
    NonNegative,
    Positive,
    Probability,
    Record,
)

Unit = Literal["points", "percent", "bits/byte"]
Tier = Literal["required", "deciding", "advisory"]
Decision = Literal["SHIP", "DO NOT SHIP", "INCONCLUSIVE"]


class Flips(Record):
    """Items whose answer became right or wrong."""

    right_to_wrong: Count
    wrong_to_right: Count

    @property
    def total(self) -> int:
        """Returns the number of flips in both directions."""
        return self.right_to_wrong + self.wrong_to_right


class Tail(Record):
    """Documents whose perplexity collapsed, which a mean does not show."""

    collapsed: Count = Field(description="documents whose perplexity at least doubled")
    share_at_most: Probability = Field(
        description="of all such documents, with 95 % confidence (Clopper and Pearson)"
    )


class Clusters(Record):
    """Groups of items in a task; items of one group are not independent."""

    key: str = Field(description="the group of the items, e.g. 'subject'")
    count: Annotated[int, Field(gt=1)]
    design_effect: NonNegative | None = Field(
        description="variance of the difference over what independent items would have; none: no "
        "item changed"
    )
    decide: bool = Field(
        description="whether interval and p-values are those of the clusters: the wider ones count"
    )
    degrees: Positive | None = Field(
        default=None, description="of freedom of t; none: clusters of one size, count - 1"
    )


class GrossLoss(Record):
    """Share of the base's right answers that became wrong, in percent; gains do not count."""

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
    near_chance: bool = Field(
        default=False, description="the base is not clearly above guessing: the task says little"
    )
    margin: Positive = Field(
        description="the drop that would be accepted, in the same unit as the difference"
    )
    base_low: Finite | None = Field(
        default=None, description="lower 95 % bound of the base's score; none for texts"
    )
    too_weak: bool = Field(
        default=False,
        description="the base is above guessing by less than the margin: the margin's test cannot "
        "fail",
    )
    retention: Probability | None = Field(
        default=None, description="share of the score above guessing to be kept"
    )
    retention_p: Probability | None = Field(
        default=None, description="one-sided, of keeping that share or less"
    )
    retention_limit: Positive | None = Field(
        default=None, description="points that may be lost to keep that share"
    )
    noninferiority_p: Probability | None = Field(
        default=None, description="one-sided, of a loss of the margin or more"
    )
    recovery_percent: Finite | None = Field(
        default=None, description="candidate / base; none where it would mislead"
    )
    mcnemar_p: Probability | None = Field(
        default=None, description="exact, two-sided; for values of 0 and 1 only"
    )
    flips: Flips | None = Field(default=None, description="for values of 0 and 1 only")
    smallest_detectable_drop: NonNegative | None = Field(
        default=None,
        description="true drop that these n items find with 80 % power, in the unit of the "
        "difference",
    )
    items_to_settle: Count | None = Field(
        default=None,
        description="items at which the interval would be clear of the margin; none: it is, or "
        "never will",
    )
    adjusted_p: tuple[Probability, Probability] | None = Field(
        default=None,
        description="Holm-adjusted, of a loss beyond the limit and within it; none: does not "
        "decide",
    )
    simultaneous_ci95: tuple[Finite, Finite] | None = Field(
        default=None,
        description="holds together with those of the other deciding tasks, and is clear of the "
        "limit exactly where the verdict says so; none: does not decide",
    )
    look_p: tuple[Probability, Probability] | None = Field(
        default=None,
        description="over all looks, of a loss beyond the limit and within it; none: all asked at "
        "once",
    )
    look_shares: tuple[Probability, ...] = Field(
        default=(),
        description="share of the planned items at each look; ci95 is then the repeated confidence "
        "interval of the last one; none: all asked at once",
    )
    clusters: Clusters | None = Field(
        default=None, description="none: the items come in none, or in too few"
    )
    too_few: Count | None = Field(
        default=None, description="items that a decision needs; none: there are as many"
    )
    monte_carlo_error: NonNegative | None = Field(
        default=None,
        description="standard error of noninferiority_p, because resamples are drawn; none: none "
        "are",
    )
    tail: Tail | None = Field(default=None, description="for texts only")
    tier: Tier = "deciding"
    repeated: Repeated | None = Field(default=None, description="none: one answer per item")
    gross_loss: GrossLoss | None = Field(default=None, description="for values of 0 and 1 only")

    @property
    def silent(self) -> bool:
        """Returns whether the task cannot decide, because the base is too weak at it."""
        return self.near_chance or self.too_weak

    @property
    def shown_ci95(self) -> tuple[float, float]:
        """Returns the interval for tables, charts and sentences: it agrees with the decision."""
        return self.ci95 if self.simultaneous_ci95 is None else self.simultaneous_ci95

    @property
    def decides(self) -> bool:
        """Returns whether the task counts in the verdict: it can decide and is not advisory."""
        return not self.silent and self.tier != "advisory"

    @property
    def limit(self) -> float:
        """Returns the accepted drop, in the unit of the difference.

        It is the margin, or the retention limit if this is smaller and the task can decide.
        """
        if self.silent or self.retention_limit is None:
            return self.margin
        return min(self.margin, self.retention_limit)

    @property
    def decision_p(self) -> float | None:
        """Returns the one-sided p-value of "the loss is the margin or more, or too little is kept".

        It is None if no test was possible.
        """
        if self.noninferiority_p is None or self.retention_p is None:
            return self.noninferiority_p
        return max(self.noninferiority_p, self.retention_p)

    @property
    def decision_ps(self) -> tuple[float, float]:
        """Returns two one-sided p-values: of "the loss is the limit or more" and of "it is less".

        With looks, the p-values are over all looks. Both are 1 if there are too few items for a
        test.
        """
        if self.look_p is not None:
            return self.look_p
        p = self.decision_p
        return (1.0, 1.0) if p is None else (p, 1 - p)


class SoftScore(Record):
    """Secondary endpoint of a task with choices: mean probability of the right choice, in percent.

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
    """The difference on a part of a task, in points.

    p-values are corrected over all slices of the candidate.
    """

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
    """Lower bound of the Kullback-Leibler divergence base -> candidate, in nats per token.

    See docs/Statistics.md.
    """

    mean: NonNegative
    p99: NonNegative
    ci95: tuple[NonNegative, NonNegative] = Field(
        description="of the mean, by bootstrap over documents"
    )
    p99_ci95: tuple[NonNegative, NonNegative] | None = Field(
        default=None,
        description="of the 99th percentile, cluster-robust over documents; none: made without it",
    )
    k: Annotated[
        int, Field(gt=0, description="likeliest tokens known of each side; the rest is one bucket")
    ]
    tokens: Count


class FlipRate(Record):
    """Share of the answers that flip, with its 95 % interval."""

    value: Probability
    ci95: tuple[Probability, Probability]


class NoiseFloor(Record):
    """Differences between two measurements of the base in other batches: the engine's own noise."""

    flips: dict[str, Flips] = Field(
        description="task -> flips between the two measurements of the base"
    )
    items: dict[str, Annotated[int, Field(gt=0)]] = Field(description="task -> items asked twice")
    rate: FlipRate | None = Field(
        description="over all items of these tasks, as the sample estimates it; none: no task can "
        "flip"
    )
    kl: Divergence | None
    top1_agreement: Probability | None
    top1_ci95: tuple[Probability, Probability] | None = None


class SpeedVerdict(Record):
    """Whether the candidate is faster over all compared load points; it does not decide."""

    reading: Literal["FASTER", "NOT FASTER", "UNSURE"]
    speedup: Positive = Field(description="geometric mean over the load points, in output tokens/s")
    ci95: tuple[Positive, Positive] | None = Field(description="none: a load point has one repeat")
    margin: Positive


class Warned(Record):
    """A secondary margin and how the measured value compares with it."""

    subject: str
    reading: Literal["within", "beyond", "unsure"]
    sentence: str


class UnmeasuredLoad(Record):
    """A load point at which base and candidate cannot be compared."""

    concurrency: Annotated[int, Field(gt=0)]
    reason: str


class SpeedPoint(Record):
    """Base and candidate at one load point, as means over the repeats.

    Ratios are candidate over base, for output tokens/s.
    """

    concurrency: int
    repeats: Annotated[int, Field(gt=0)]
    blocks: Annotated[
        int, Field(gt=0, description="in each, every server was started anew; 1: one server each")
    ] = 1
    base_output_tokens_per_s: Positive
    candidate_output_tokens_per_s: Positive
    speedup: Positive = Field(description="ratio of the geometric means over the repeats")
    speedup_ci95: tuple[Positive, Positive] | None = Field(
        description="on the logarithms: paired t over the blocks, or Welch's over the repeats of "
        "one server each; none: one repeat"
    )
    ttft_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    itl_ms_p95: dict[Literal["base", "candidate"], NonNegative]
    request_latency_s_p50: dict[Literal["base", "candidate"], NonNegative]
    client_cpu_share: dict[Literal["base", "candidate"], NonNegative]
    client_limited: bool = Field(
        description="on either side the load generator took CPU that the server needed"
    )
    others_share: dict[Literal["base", "candidate"], Probability] | None = Field(
        default=None,
        description="of the machine's CPU, by other programs and the hypervisor; none: not known",
    )


class Diagnosis(Record):
    """Explains the candidate's speed from measured facts."""

    bound: Literal["prefill", "decode"] = Field(
        description="what most of a request's time went into, at one request"
    )
    decode_share: Probability = Field(
        description="share of a request's time after its first token, at one request"
    )
    base_bytes_per_token: Count = Field(
        description="weight bytes read for one token of one request"
    )
    candidate_bytes_per_token: Count
    expected_speedup: Positive = Field(
        description="roofline of decoding: base bytes / candidate bytes"
    )
    reached: NonNegative = Field(
        description="measured over expected speed-up of the inter-token latency, at one request"
    )
    sentence: str


class Memory(Record):
    """Memory while serving."""

    peak_bytes: Count | None
    kv_cache_tokens: Count | None


class Ranks(Record):
    """1 + the number of models that are surely better; models may share a rank."""

    score: Annotated[int, Field(gt=0)]
    economy: Annotated[int, Field(gt=0)] = Field(
        description="what a token costs, or what it is ordered by in its place"
    )


class CandidateComparison(Record):
    """Everything that the report says about one candidate."""

    name: str
    scheme: str
    algorithm: str
    origin: str
    kernel: str
    sha256: str
    size_bytes: Count
    size_ratio: Positive = Field(
        description="bytes of weights that the engine holds, over those of the base"
    )
    accuracy: dict[str, dict[str, Difference]]
    suite: Difference | None = Field(
        default=None, description="mean over the tasks that decide; none: no task can"
    )
    speed: SpeedVerdict | None = Field(default=None, description="none: no load point is compared")
    secondary: tuple[Warned, ...] = Field(
        default=(),
        description="KL divergence, top-1 agreement and gross loss against their margins",
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
    cost_per_million_output_tokens: NonNegative | None = Field(
        default=None, description="in US dollars, at capacity"
    )
    cost_ci95: tuple[NonNegative, NonNegative] | None = Field(
        default=None, description="none: one search, or no cost"
    )
    diagnosis: Diagnosis | None = None
    memory: Memory
    dominated_by: str | None = Field(
        default=None, description="a model that is surely more accurate and cheaper"
    )
    looks: Looks | None = Field(default=None, description="none: all items were asked at once")
    ranks: Ranks | None = Field(
        default=None, description="among the base and the candidates that may ship; none: not"
    )
    verdict: Decision
    reasons: tuple[str, ...]


class BaseComparison(Record):
    """Everything that the report says about the base."""

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
    """Whether the margins of the verdict were fixed before the measurement."""

    at: str = Field(description="when 01 wrote the margins into the manifest")
    before_measuring: bool = Field(description="no accuracy result was there yet")
    changed: dict[str, tuple[Finite | str | None, Finite | str | None]] = Field(
        description="margin -> sealed and current value, of those that are not the same"
    )


class Comparison(Record):
    """06's file `report/comparison.json`, which other tools may read."""

    kind: Literal["comparison"] = "comparison"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    profile: str
    margin_rationale: str = Field(
        default="", description="how the profile's margins were chosen, in its own words"
    )
    margins: MarginSeal | None = Field(
        default=None, description="none: the margins were never sealed"
    )
    base: BaseComparison
    candidates: tuple[CandidateComparison, ...]
    protocol: dict[Literal["accuracy", "performance"], dict[str, Any]]
    protocol_hash: dict[Literal["accuracy", "performance"], str]

    KERNEL_UNQUANTISED: ClassVar[str] = "unquantised"

    def candidate(self, name: str) -> CandidateComparison:
        """Returns the comparison of the candidate `name`.

        Raises:
            FlowError: there is no such candidate; names the known candidates.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = ", ".join(candidate.name for candidate in self.candidates)
        raise FlowError(
            f"The comparison holds no candidate {name!r}.", f"It holds: {known}. {RERUN}"
        )
