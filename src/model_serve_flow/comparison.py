"""Results of base and candidates -> Comparison with a verdict per candidate. Refuses what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model_serve_flow import statistics
from model_serve_flow.config import FlowConfig, Verdict
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.results import (
    AccuracyResult,
    BaseComparison,
    CandidateComparison,
    Comparison,
    CompressionResult,
    Decision,
    Difference,
    EngineFacts,
    LoadPoint,
    Measurement,
    Memory,
    PerformanceResult,
    SpeedPoint,
    TaskAccuracy,
    Unit,
    require_same_protocol,
)
from model_serve_flow.statistics import Interval
from model_serve_flow.workspace import write_json

CandidateResults = tuple[CompressionResult, AccuracyResult, PerformanceResult]

PRIMARY_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")
TEXT_KEYS = ("loglikelihood", "words", "bytes")  # what an item of a perplexity task carries
TOKEN_TOLERANCE = 0.05  # relative difference of tokens per request above which two load points are not the same work
AGGREGATE_TOLERANCE = 1e-6

REMEASURE = "Measure both again with the same profile: model-serve-flow run --from 01."
REMAKE = "Results of different models were mixed: model-serve-flow run --from 03."


def compare_workspace(flow: Flow) -> Comparison:
    """Compares all results in the workspace of a profile and writes `report/comparison.json`.

    Raises:
        FlowError: a result is missing, was edited, lies in another model's folder, or cannot be compared.
    """
    space = flow.workspace
    base = space.accuracy("base"), space.performance("base")
    _require_name("base", base)
    candidates = []
    for candidate in flow.candidates:
        name = candidate.name
        results = space.compression(name), space.accuracy(name), space.performance(name)
        _require_name(name, results)
        candidates.append(results)
    comparison = compare(flow.config, *base, flow.config.model.note, candidates)
    write_json(space.report / "comparison.json", comparison)
    return comparison


def compare(
    config: FlowConfig,
    base_accuracy: AccuracyResult,
    base_performance: PerformanceResult,
    base_model_note: str,
    candidates: Sequence[CandidateResults],
) -> Comparison:
    """Compares each candidate with the base, item by item and load point by load point, and decides.

    Args:
        config: gives the profile's name, the seed of the bootstrap and the margins.
        base_accuracy, base_performance: results of the base model.
        base_model_note: what a reader must know about the base weights.
        candidates: (compression, accuracy, performance) of each candidate.

    Raises:
        FlowError: the results are not of the models they claim, were not measured in the same way, lack items or load
            points, or a candidate was not served by a quantised kernel.
    """
    _check_base(base_accuracy, base_performance)
    _require_distinct([compression.model.name for compression, _, _ in candidates])
    for results in candidates:
        _check_candidate(base_accuracy, base_performance, results)
    return Comparison(
        profile=config.name,
        base=BaseComparison(
            name=config.model.name,
            sha256=base_accuracy.model.sha256,
            size_bytes=base_accuracy.model.size_bytes,
            note=base_model_note,
            memory=_memory(base_performance),
        ),
        candidates=tuple(_compare_one(config, base_accuracy, base_performance, results) for results in candidates),
        protocol={"accuracy": base_accuracy.protocol, "performance": base_performance.protocol},
        protocol_hash={"accuracy": base_accuracy.protocol_hash, "performance": base_performance.protocol_hash},
    )


def recommended(comparison: Comparison) -> str | None:
    """The SHIP candidate with the highest geometric mean speed-up; None if no candidate is SHIP."""
    ships = [candidate for candidate in comparison.candidates if candidate.verdict == "SHIP"]
    return max(ships, key=lambda candidate: mean_speedup(candidate.performance)).name if ships else None


def mean_speedup(points: Sequence[SpeedPoint]) -> float:
    """Geometric mean of the speed-ups over the load points: 2x and 0.5x average to 1x."""
    return math.exp(math.fsum(math.log(point.speedup) for point in points) / len(points))


def primary_metric(accuracy: dict[str, Difference]) -> str:
    """The one metric of a task that counts in the verdict.

    word_perplexity for a text, else the first of `PRIMARY_METRICS` the task has (with any filter, in lm-eval's order),
    else the task's first metric.
    """
    for wanted in ("word_perplexity", *PRIMARY_METRICS):
        for metric in accuracy:
            if metric.partition(",")[0] == wanted:
                return metric
    return next(iter(accuracy))


def _compare_one(
    config: FlowConfig, base_accuracy: AccuracyResult, base_performance: PerformanceResult, results: CandidateResults
) -> CandidateComparison:
    compression, accuracy, performance = results
    tasks = [(task, base, accuracy.tasks[task]) for task, base in base_accuracy.tasks.items()]
    differences = {task: compare_task(task, *sides, config.verdict, config.seed) for task, *sides in tasks}
    points = _speed_points(base_performance, performance)
    suite = _suite(differences, config.verdict)
    verdict, reasons = decide(differences, suite)
    return CandidateComparison(
        name=compression.model.name,
        scheme=compression.scheme,
        algorithm=compression.algorithm,
        origin=compression.origin,
        kernel=", ".join(performance.engine.kernels),
        sha256=compression.model.sha256,
        size_bytes=compression.model.size_bytes,
        size_ratio=compression.model.size_bytes / base_accuracy.model.size_bytes,
        accuracy=differences,
        suite=suite,
        performance=points,
        memory=_memory(performance),
        verdict=verdict,
        reasons=(*reasons, _speed_sentence(points), _size_sentence(compression, base_accuracy)),
    )


# --- Are these results of the right models, measured in the same way? ---


def _require_name(name: str, results: Iterable[CompressionResult | Measurement]) -> None:
    for result in results:
        if result.model.name != name:
            raise FlowError(f"The {result.kind} result in the folder of {name} is of {result.model.name}.", REMAKE)


def _require_distinct(names: list[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise FlowError(f"Candidate {repeated[0]} is given more than once.", "Give each candidate its own name.")


def _check_base(accuracy: AccuracyResult, performance: PerformanceResult) -> None:
    _require_name("base", (accuracy, performance))
    _require_same_checkpoint(accuracy, performance)
    for result in (accuracy, performance):
        if result.engine.quantization is not None or result.engine.kernels:
            raise FlowError(
                f"The {result.kind} result of base was served quantised ({_served(result.engine)}).",
                "Run 01 and 02 again on the unquantised model.",
            )
    _require_valid_points(performance)


def _check_candidate(
    base_accuracy: AccuracyResult, base_performance: PerformanceResult, results: CandidateResults
) -> None:
    compression, accuracy, performance = results
    name = compression.model.name
    _require_name(name, (accuracy, performance))
    _require_same_checkpoint(compression, accuracy)
    _require_same_checkpoint(compression, performance)
    if compression.base.sha256 != base_accuracy.model.sha256:
        raise FlowError(
            f"{name} was made from checkpoint {compression.base.sha256[:12]}, but the base that was measured is "
            f"{base_accuracy.model.sha256[:12]}.",
            "Run 01, 02 and 03 again on one base model.",
        )
    if compression.model.sha256 == base_accuracy.model.sha256:
        raise FlowError(f"{name} is the same checkpoint as base ({compression.model.sha256[:12]}).", REMAKE)
    require_same_protocol(base_accuracy, accuracy)
    require_same_protocol(base_performance, performance)
    _require_quantised_kernel(accuracy, performance)
    _require_same_engine(base_accuracy, (base_performance, accuracy, performance))
    _require_valid_points(performance)
    _require_same_points(base_performance, performance)
    _require_same_tasks(base_accuracy, accuracy)


def _require_same_checkpoint(first: CompressionResult | Measurement, second: Measurement) -> None:
    if first.model != second.model:
        raise FlowError(
            f"The {first.kind} result of {first.model.name} is of checkpoint {first.model.sha256[:12]} "
            f"({first.model.size_bytes} bytes), its {second.kind} result of {second.model.sha256[:12]} "
            f"({second.model.size_bytes} bytes).",
            REMAKE,
        )


def _require_quantised_kernel(accuracy: AccuracyResult, performance: PerformanceResult) -> None:
    """The engine's own log is the proof that the compressed weights, and not the base's, answered."""
    for result in (accuracy, performance):
        if result.engine.quantization is None or not result.engine.kernels:
            raise FlowError(
                f"No quantised kernel served {result.model.name} in its {result.kind} result "
                f"({_served(result.engine)}).",
                "Check the checkpoint's quantization_config and the server's log, then run 04 and 05 again.",
            )
    if set(accuracy.engine.kernels) != set(performance.engine.kernels):
        raise FlowError(
            f"{accuracy.model.name} was served by different kernels: accuracy by {_served(accuracy.engine)}, "
            f"performance by {_served(performance.engine)}.",
            "Run 04 and 05 again on the same machine.",
        )


def _require_same_engine(base: Measurement, others: Iterable[Measurement]) -> None:
    for other in others:
        if other.engine.version != base.engine.version:
            raise FlowError(
                f"The {base.kind} result of {base.model.name} is from engine version {base.engine.version}, the "
                f"{other.kind} result of {other.model.name} from {other.engine.version}.",
                REMEASURE,
            )


def _served(engine: EngineFacts) -> str:
    return f"quantization {engine.quantization}, kernels {', '.join(engine.kernels) or 'none'}"


def _require_valid_points(performance: PerformanceResult) -> None:
    for point in performance.points:
        reason = point.invalid_reason or ("" if point.output_tokens_per_s > 0 else "no output tokens")
        if not point.valid or reason:
            raise FlowError(
                f"The load point {point.concurrency} of {performance.model.name} is not valid: "
                f"{reason or 'no reason given'}.",
                "Give it more time (performance.seconds) or less load, and run 02 and 05 again.",
            )


def _require_same_points(base: PerformanceResult, candidate: PerformanceResult) -> None:
    ours, theirs = ([point.concurrency for point in result.points] for result in (base, candidate))
    if ours != theirs:
        raise FlowError(
            f"base was loaded at {ours} and {candidate.model.name} at {theirs} concurrent requests.", REMEASURE
        )
    for one, other in zip(base.points, candidate.points, strict=True):
        for field in ("prompt_tokens", "output_tokens"):
            left, right = getattr(one, field), getattr(other, field)
            if not math.isclose(left, right, rel_tol=TOKEN_TOLERANCE):
                raise FlowError(
                    f"The load point {one.concurrency} was not the same work: {field} per request are {left:.1f} for "
                    f"base and {right:.1f} for {candidate.model.name}.",
                    REMEASURE,
                )


def _require_same_tasks(base: AccuracyResult, candidate: AccuracyResult) -> None:
    if odd := sorted(base.tasks.keys() ^ candidate.tasks.keys()):
        lacking = candidate.model.name if odd[0] in base.tasks else "base"
        raise FlowError(f"The accuracy result of {lacking} lacks the task {odd[0]}.", REMEASURE)
    for task in base.tasks:
        if base.tasks[task].chance != candidate.tasks[task].chance:
            raise FlowError(
                f"Task {task}: guessing scores {base.tasks[task].chance} for base and "
                f"{candidate.tasks[task].chance} for {candidate.model.name}.",
                REMEASURE,
            )


# --- Accuracy ---


@dataclass(frozen=True)
class _Pairs:
    """The items of one task, base and candidate in one order."""

    task: str
    base: TaskAccuracy
    candidate: TaskAccuracy

    def values(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The values of base and candidate, or None if no item carries the key; FlowError if only some do."""
        theirs = {item.id: item for item in self.candidate.items}
        rows = [(item, theirs[item.id]) for item in self.base.items]
        have = [key in item.__pydantic_extra__ for row in rows for item in row]
        if not any(have):
            return None
        if not all(have):
            lacking = rows[have.index(False) // 2][0].id
            raise FlowError(f"Task {self.task}, item {lacking}: {key} is missing.", REMEASURE)
        return tuple(np.array([row[side].value(key) for row in rows], dtype=float) for side in (0, 1))


def compare_task(
    task: str, base: TaskAccuracy, candidate: TaskAccuracy, margins: Verdict, seed: int
) -> dict[str, Difference]:
    """The difference in each metric of one task that has a value per item, paired by item.

    Metrics of answers are in points (values x 100), word perplexity in percent of the base's, bits per byte in
    bits/byte.

    Raises:
        FlowError: an item is missing, extra or repeated (with task and id), a value is NaN or infinite, or a task's
            figure is not that of its items.
    """
    pairs = _pair(task, base, candidate)
    try:
        text = [pairs.values(key) for key in TEXT_KEYS]
        if all(values is not None for values in text):
            return _text_differences(pairs, margins, seed)
        return _answer_differences(pairs, margins, seed)
    except ValueError as error:
        raise FlowError(f"Task {task} cannot be compared: {error}.", REMEASURE) from error


def _pair(task: str, base: TaskAccuracy, candidate: TaskAccuracy) -> _Pairs:
    for side in (base, candidate):
        ids = [item.id for item in side.items]
        if len(set(ids)) != len(ids):
            repeated = next(id for id in ids if ids.count(id) > 1)
            raise FlowError(f"Task {task}, item {repeated}: it occurs more than once.", REMEASURE)
    ours, theirs = ({item.id for item in side.items} for side in (base, candidate))
    if odd := sorted(ours ^ theirs):
        lacking = "candidate" if odd[0] in ours else "base"
        unpaired = f"{len(odd)} of {len(ours | theirs)} are unpaired"
        raise FlowError(f"Task {task}, item {odd[0]}: the {lacking} has no such item ({unpaired}).", REMEASURE)
    return _Pairs(task, base, candidate)


def _answer_differences(pairs: _Pairs, margins: Verdict, seed: int) -> dict[str, Difference]:
    differences = {}
    for name, metric in pairs.base.metrics.items():
        values = pairs.values(name)
        if values is None:
            continue  # lm-eval gives this metric for the whole task only: nothing to pair
        base, candidate = values
        binary = statistics.is_binary(base) and statistics.is_binary(candidate)
        interval = _interval(base, candidate, binary, seed).scaled(100)
        differences[name] = Difference(
            n=base.size,
            base=100 * base.mean(),
            candidate=100 * candidate.mean(),
            unit="points",
            higher_is_better=metric.higher_is_better,
            chance=None if pairs.base.chance is None else 100 * pairs.base.chance,
            near_chance=binary and _near_chance(base, pairs.base.chance),
            margin=margins.task_margin_points,
            **_bounds(interval),
        )
    if not differences:
        raise ValueError("no metric has a value per item")
    _require_own_figure(pairs, primary_metric(differences))
    return differences


def _interval(base: np.ndarray, candidate: np.ndarray, binary: bool, seed: int) -> Interval:
    if binary:
        return statistics.paired_binary_difference(base, candidate)
    return statistics.paired_mean_difference(base, candidate, seed)


def _text_differences(pairs: _Pairs, margins: Verdict, seed: int) -> dict[str, Difference]:
    """Word perplexity and bits per byte of the corpus: ratio estimators over its documents."""
    (base, candidate), words, sizes = (pairs.values(key) for key in TEXT_KEYS)
    for key, (ours, theirs) in (("words", words), ("bytes", sizes)):
        if (ours != theirs).any():
            raise FlowError(f"Task {pairs.task}: {key} of a document differ between base and candidate.", REMEASURE)
    words, sizes = words[0], sizes[0]
    loss_margin = math.log1p(margins.perplexity_margin_percent / 100)  # nats per word
    perplexity = statistics.paired_ratio_change(base, candidate, words, seed)
    bits = statistics.paired_loss_change(base, candidate, sizes, seed).scaled(1 / math.log(2))
    bits_margin = loss_margin * words.sum() / sizes.sum() / math.log(2)
    values = [math.exp(-x.sum() / words.sum()) for x in (base, candidate)]
    densities = [-x.sum() / sizes.sum() / math.log(2) for x in (base, candidate)]
    return {
        "word_perplexity": _text_difference(
            pairs, "word_perplexity", values, perplexity, "percent", margins.perplexity_margin_percent
        ),
        "bits_per_byte": _text_difference(pairs, "bits_per_byte", densities, bits, "bits/byte", bits_margin),
    }


def _text_difference(
    pairs: _Pairs, metric: str, values: list[float], interval: Interval, unit: Unit, margin: float
) -> Difference:
    for result, value in zip((pairs.base, pairs.candidate), values, strict=True):
        _require_figure(pairs.task, metric, result, value)
    base, candidate = values
    return Difference(
        n=pairs.base.n,
        base=base,
        candidate=candidate,
        unit=unit,
        higher_is_better=False,
        margin=margin,
        **_bounds(interval),
    )


def _bounds(interval: Interval) -> dict[str, float | tuple[float, float]]:
    return {"difference": interval.difference, "ci95": (interval.low, interval.high)}


def _near_chance(base: np.ndarray, chance: float | None) -> bool:
    """Whether guessing explains the base's score: its lower 95 % bound is not above chance."""
    return chance is not None and statistics.wilson_interval(int(base.sum()), base.size).low <= chance


def _require_own_figure(pairs: _Pairs, metric: str) -> None:
    if metric.partition(",")[0] in PRIMARY_METRICS:  # known to be plain means of their items
        for result, values in zip((pairs.base, pairs.candidate), pairs.values(metric), strict=True):
            _require_figure(pairs.task, metric, result, values.mean())


def _require_figure(task: str, metric: str, result: TaskAccuracy, recomputed: float) -> None:
    """A figure that its own items do not give was edited, or belongs to other items."""
    given = result.metrics[metric].value if metric in result.metrics else recomputed
    if not math.isclose(given, recomputed, rel_tol=AGGREGATE_TOLERANCE, abs_tol=AGGREGATE_TOLERANCE):
        raise FlowError(
            f"Task {task}: {metric} is given as {given:.6g}, but its items give {recomputed:.6g}.", REMEASURE
        )


# --- Performance ---


def _memory(performance: PerformanceResult) -> Memory:
    return Memory(peak_bytes=performance.engine.peak_memory_bytes, kv_cache_tokens=performance.engine.kv_cache_tokens)


def _speed_points(base: PerformanceResult, candidate: PerformanceResult) -> tuple[SpeedPoint, ...]:
    return tuple(_speed_point(one, other) for one, other in zip(base.points, candidate.points, strict=True))


def _speed_point(base: LoadPoint, candidate: LoadPoint) -> SpeedPoint:
    return SpeedPoint(
        concurrency=base.concurrency,
        base_output_tokens_per_s=base.output_tokens_per_s,
        candidate_output_tokens_per_s=candidate.output_tokens_per_s,
        speedup=candidate.output_tokens_per_s / base.output_tokens_per_s,
        ttft_ms_p95={"base": base.ttft_ms.p95, "candidate": candidate.ttft_ms.p95},
        itl_ms_p95={"base": base.itl_ms.p95, "candidate": candidate.itl_ms.p95},
        request_latency_s_p50={"base": base.request_latency_s.p50, "candidate": candidate.request_latency_s.p50},
    )


# --- Decision ---


@dataclass(frozen=True)
class _Check:
    """One question of the verdict: is the loss surely within its margin, surely beyond it, or neither?"""

    subject: str
    difference: Difference

    @property
    def losses(self) -> tuple[float, float]:
        """Least and greatest loss the interval allows; below 0 the candidate is better."""
        low, high = self.difference.ci95
        return (-high, -low) if self.difference.higher_is_better else (low, high)

    @property
    def passes(self) -> bool:
        return self.losses[1] < self.difference.margin

    @property
    def fails(self) -> bool:
        return self.losses[0] > self.difference.margin

    def sentence(self) -> str:
        """What was found, in numbers and units."""
        d = self.difference
        unit = "%" if d.unit == "percent" else d.unit
        change = "drop" if d.higher_is_better else "rise"
        place = "within" if self.passes else "beyond" if self.fails else "not clearly within"
        return (
            f"{self.subject} changed by {d.difference:+.1f} {unit} (95 % interval {d.ci95[0]:+.1f} to "
            f"{d.ci95[1]:+.1f}, n = {d.n}): {place} the accepted {change} of {d.margin:.1f} {unit}."
        )


def _deciding(differences: dict[str, dict[str, Difference]]) -> dict[str, Difference]:
    """The primary metric of each task that can decide: not a text, and not near chance."""
    primaries = {task: metrics[primary_metric(metrics)] for task, metrics in differences.items()}
    return {task: d for task, d in primaries.items() if d.unit == "points" and not d.near_chance}


def _suite(differences: dict[str, dict[str, Difference]], margins: Verdict) -> Difference | None:
    """Macro average over the deciding tasks, each counting the same; higher is better. None if no task can decide."""
    deciding = list(_deciding(differences).values())
    if not deciding:
        return None
    interval = statistics.mean_of_independent([_oriented(d) for d in deciding])
    return Difference(
        n=sum(d.n for d in deciding),
        base=math.fsum(d.base for d in deciding) / len(deciding),
        candidate=math.fsum(d.candidate for d in deciding) / len(deciding),
        unit="points",
        higher_is_better=True,
        margin=margins.suite_margin_points,
        **_bounds(interval),
    )


def _oriented(difference: Difference) -> Interval:
    low, high = difference.ci95
    if difference.higher_is_better:
        return Interval(difference.difference, low, high)
    return Interval(-difference.difference, -high, -low)


def decide(differences: dict[str, dict[str, Difference]], suite: Difference | None) -> tuple[Decision, tuple[str, ...]]:
    """The verdict by non-inferiority, and its reasons, the deciding one first.

    SHIP: the macro average, every deciding task and every perplexity surely lose less than their margins.
    DO NOT SHIP: one of them surely loses more than its margin.
    INCONCLUSIVE: neither, or no task can decide.
    """
    texts = {task: metrics["word_perplexity"] for task, metrics in differences.items() if "word_perplexity" in metrics}
    checks = [_Check(task, d) for task, d in _deciding(differences).items()]
    if suite is not None:
        tasks = "1 task" if len(checks) == 1 else f"{len(checks)} tasks"
        checks.insert(0, _Check(f"The average score over {tasks}", suite))
    checks += [_Check(f"Word perplexity on {task}", d) for task, d in texts.items()]
    failing, unsure = [c for c in checks if c.fails], [c for c in checks if not c.passes and not c.fails]
    verdict: Decision = "DO NOT SHIP" if failing else "INCONCLUSIVE" if unsure or suite is None else "SHIP"
    ordered = sorted(checks, key=lambda check: (not check.fails, check.passes))
    reasons = [check.sentence() for check in ordered]
    if suite is None:
        silent = "No task can decide: the base answers none clearly better than by guessing."
        reasons.insert(len(reasons) if failing else 0, silent)
    return verdict, (*reasons, *_near_chance_sentences(differences))


def _near_chance_sentences(differences: dict[str, dict[str, Difference]]) -> list[str]:
    return [
        f"{task} cannot decide: the base's {d.base:.1f} points are not clearly above guessing "
        f"({d.chance:.1f} points, n = {d.n})."
        for task, d in ((task, metrics[primary_metric(metrics)]) for task, metrics in differences.items())
        if d.near_chance
    ]


def _speed_sentence(points: Sequence[SpeedPoint]) -> str:
    loads = ", ".join(f"{point.speedup:.2f}x at {point.concurrency}" for point in points)
    return (
        f"Output tokens/s: {mean_speedup(points):.2f}x the base's in the geometric mean ({loads} concurrent requests)."
    )


def _size_sentence(compression: CompressionResult, base: AccuracyResult) -> str:
    size, whole = compression.model.size_bytes, base.model.size_bytes
    return f"Size: {size / 1e6:,.0f} MB, {100 * size / whole:.0f} % of the base's {whole / 1e6:,.0f} MB."
