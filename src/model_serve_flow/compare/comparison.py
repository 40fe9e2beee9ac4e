"""Compares the results of base and candidates, and decides on each candidate.

Results that cannot be compared are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_serve_flow.compare.comparability import (
    BaseResults,
    CandidateResults,
    declared_differences,
    is_measured,
    read_base,
    read_candidate,
    require_comparable,
    unproven,
)
from model_serve_flow.compare.differences import Differences, deciding
from model_serve_flow.compare.distribution_shift import Shift, measure_shift, noise_floor
from model_serve_flow.compare.gaps import Evidence, economy_gaps, score_gaps
from model_serve_flow.compare.looks import (
    Answers,
    compare_answers,
    decided,
    gross_losses,
    looks_sentence,
    tiers_of,
)
from model_serve_flow.compare.margins import check_seal, of_plan
from model_serve_flow.compare.pairs import flipped_items
from model_serve_flow.compare.ranking import rankable, ranked
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.compare.roofline import diagnose
from model_serve_flow.compare.secondary import secondary_readings, speed_verdict
from model_serve_flow.compare.slices import compare_slices
from model_serve_flow.compare.soft import soft_scores, soft_sentence
from model_serve_flow.compare.speed import cost, cost_interval, mean_speedup, memory, speed_points
from model_serve_flow.compare.tiers import withheld
from model_serve_flow.compare.verdict import loss_p_values, with_items_to_settle
from model_serve_flow.flow.busy import BUSY_SHARE
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import (
    BaseComparison,
    CandidateComparison,
    Comparison,
    Decision,
    Difference,
    NoiseFloor,
    SpeedPoint,
    SpeedVerdict,
    UnmeasuredLoad,
    Warned,
)
from model_serve_flow.flow.results.measured import BASE
from model_serve_flow.system.files import write_json

NO_ACCURACY = (
    "Accuracy was not measured (the profile has no section accuracy), so nothing tells whether the "
    "answers stay as good."
)
NO_PERFORMANCE = "Performance was not measured: the profile has no section performance."
REFUSED = (
    "The number of looks or items was changed after the measurement had begun. That is a look that "
    "was not planned, and no error is left for it: SHIP is refused. Plan it so from the start, in "
    "another artifacts folder."
)


def compare_workspace(flow: Flow) -> Comparison:
    """Compares all results in the workspace of a profile and writes `report/comparison.json`.

    Raises:
        FlowError: a result is missing, was edited, is in the folder of another model, or cannot be
            compared.
    """
    space, config = flow.workspace, flow.config
    candidates = [read_candidate(space, config, candidate.name) for candidate in flow.candidates]
    comparison = compare(config, read_base(space, config), candidates).model_copy(
        update={"margins": check_seal(flow)}
    )
    comparison = refused_after_change(comparison)
    write_json(space.report / "comparison.json", comparison)
    return comparison


def refused_after_change(comparison: Comparison) -> Comparison:
    """Replaces SHIP by INCONCLUSIVE if the plan of looks changed after measuring had begun.

    A user may measure again with the number of items that a report asks for. After up to three such
    repeats, a candidate whose loss equals the margin ships in 6 to 7 % of all cases.
    """
    if comparison.margins is None or not any(map(of_plan, comparison.margins.changed)):
        return comparison
    refused = tuple(
        c.model_copy(update={"verdict": "INCONCLUSIVE", "reasons": (REFUSED, *c.reasons)})
        if c.verdict == "SHIP"
        else c
        for c in comparison.candidates
    )
    return comparison.model_copy(update={"candidates": refused})


def compare(
    config: FlowConfig, base: BaseResults, candidates: Sequence[CandidateResults]
) -> Comparison:
    """Compares each candidate with the base, decides on each, and ranks them.

    Accuracy is compared item by item, speed load point by load point.

    Args:
        config: gives the name and note of the base, the seed of the bootstrap, the margins and the
            price of the machine.
        base: results of the base.
        candidates: results of each candidate.

    Raises:
        FlowError: the results are of other models than they claim, were not measured in the same
            way, lack items or load points, or a candidate was not served by a quantised kernel.
    """
    require_comparable(base, candidates, config.differs)
    noise = noise_floor(base, config.seed)
    answered = [
        compare_answers(base.accuracy, candidate.accuracy, config.verdict, config.seed)
        for candidate in candidates
    ]
    compared = [
        _compare_one(config, base, candidate, noise, answers, _others(answers, answered))
        for candidate, answers in zip(candidates, answered, strict=True)
    ]
    described, compared = ranked(
        _base(config, base), compared, _evidence(base, candidates, compared)
    )
    measured = [r for r in (base.accuracy, base.performance) if is_measured(r)]
    return Comparison(
        profile=config.name,
        margin_rationale=config.verdict.rationale,
        base=described,
        candidates=compared,
        protocol={result.kind: result.protocol for result in measured},
        protocol_hash={result.kind: result.protocol_hash for result in measured},
    )


def _evidence(
    base: BaseResults,
    candidates: Sequence[CandidateResults],
    compared: Sequence[CandidateComparison],
) -> Evidence:
    """Computes the gaps between the base and the candidates that are ranked.

    Scores are averaged over the tasks that decide for all these candidates.
    """
    able = {c.name: c for c in rankable(compared)}
    measured = {BASE: base, **{c.name: c for c in candidates if c.name in able}}
    common = [set(deciding(candidate.accuracy)) for candidate in able.values()]
    tasks = [
        task for task in base.accuracy.tasks if common and all(task in found for found in common)
    ]
    sizes = {name: _held(results) for name, results in measured.items()}
    return Evidence(
        score_gaps({name: results.accuracy for name, results in measured.items()}, tasks),
        economy_gaps({name: results.performance for name, results in measured.items()}, sizes),
    )


def _base(config: FlowConfig, base: BaseResults) -> BaseComparison:
    capacity = base.performance.capacity
    return BaseComparison(
        name=config.model.name,
        sha256=base.accuracy.model.sha256,
        size_bytes=base.accuracy.model.size_bytes,
        note=config.model.note,
        memory=memory(base.performance),
        capacity=capacity,
        cost_per_million_output_tokens=cost(config.deploy.hourly_price_usd, capacity),
        cost_ci95=cost_interval(config.deploy.hourly_price_usd, capacity),
    )


def _held(results: BaseResults | CandidateResults) -> int:
    """Returns the bytes of weights that the engine held, in its own dtype."""
    performance = results.performance
    return performance.model.held_bytes(performance.engine.dtype)


def _others(answers: Answers, everyone: Sequence[Answers]) -> list[float]:
    """Collects the p-values of all other candidates, because SHIP is corrected for them too."""
    return [
        p
        for other in everyone
        if other is not answers
        for p in loss_p_values(other.counting, other.suite)
    ]


def _compare_one(
    config: FlowConfig,
    base: BaseResults,
    candidate: CandidateResults,
    noise: NoiseFloor | None,
    answered: Answers,
    others: Sequence[float],
) -> CandidateComparison:
    made, size = candidate.compression, base.accuracy.model.size_bytes
    answers, speed = _answers(config, answered, others), _speed(config, base, candidate)
    shift = _distribution_shift(config, base, candidate)
    secondary = secondary_readings(
        config.verdict.secondary, shift, gross_losses(answers["accuracy"])
    )
    verdict, reasons = _decided(config, base, candidate, answered, others, secondary)
    closing = _closing_sentences(verdict, speed, made.model.size_bytes, size)
    closing = closing if is_measured(base.performance) else [NO_PERFORMANCE, *closing]
    return CandidateComparison(
        name=candidate.name,
        scheme=made.scheme,
        algorithm=made.algorithm,
        origin=made.origin,
        kernel=", ".join(candidate.performance.engine.kernels),
        sha256=made.model.sha256,
        size_bytes=made.model.size_bytes,
        size_ratio=_held(candidate) / _held(base),
        verdict=verdict,
        reasons=(*reasons, *looks_sentence(answered.looks), *_secondary(answers, noise), *closing),
        noise_floor=noise,
        looks=answered.looks,
        secondary=secondary,
        **answers,
        **(shift.fields() if shift else {}),
        **speed,
    )


def _decided(
    config: FlowConfig,
    base: BaseResults,
    candidate: CandidateResults,
    answered: Answers,
    others: Sequence[float],
    secondary: Sequence[Warned],
) -> tuple[Decision, tuple[str, ...]]:
    """Returns the verdict with its reasons; SHIP needs accuracy, and proof of the kernels."""
    if not is_measured(base.accuracy):
        return "INCONCLUSIVE", (NO_ACCURACY, *declared_differences(base, candidate))
    verdict, reasons = decided(config.verdict, answered, others, secondary)
    reasons = (*reasons, *declared_differences(base, candidate))
    if (doubt := unproven(candidate)) is None:
        return verdict, reasons
    return withheld(verdict, [doubt]), (doubt, *reasons)


def _answers(config: FlowConfig, answered: Answers, others: Sequence[float]) -> dict[str, Any]:
    """Builds the fields on the candidate's answers: differences, slices and flipped items."""
    tiers = tiers_of(config.verdict)
    differences, suite = with_items_to_settle(answered.differences, answered.suite, tiers, others)
    return {
        "accuracy": differences,
        "suite": suite,
        "soft": soft_scores(answered.tasks),
        "slices": compare_slices(answered.tasks, config.verdict),
        "flipped": tuple(item for pairs in answered.tasks for item in flipped_items(pairs)),
    }


def _speed(config: FlowConfig, base: BaseResults, candidate: CandidateResults) -> dict[str, Any]:
    """Builds the fields on serving the candidate: speed, capacity, cost, memory and diagnosis."""
    performance = candidate.performance
    compared, unmeasured = speed_points(base.performance, performance)
    sizes = (_held(base), _held(candidate))
    return {
        "performance": compared,
        "speed": speed_verdict(config.verdict.secondary, compared),
        "unmeasured": unmeasured,
        "capacity": performance.capacity,
        "cost_per_million_output_tokens": cost(
            config.deploy.hourly_price_usd, performance.capacity
        ),
        "cost_ci95": cost_interval(config.deploy.hourly_price_usd, performance.capacity),
        "diagnosis": diagnose(
            base.performance, performance, *sizes, ", ".join(performance.engine.kernels)
        )
        if compared
        else None,
        "memory": memory(performance),
    }


def _distribution_shift(
    config: FlowConfig, base: BaseResults, candidate: CandidateResults
) -> Shift | None:
    if base.distribution is None or candidate.distribution is None:
        return None
    return measure_shift(base.distribution, candidate.distribution, config.seed)


def _secondary(answers: dict[str, Any], noise: NoiseFloor | None) -> list[str]:
    """Lists the sentences on findings that do not decide."""
    return [
        *_noise_sentence(answers["accuracy"], noise),
        *filter(None, [soft_sentence(answers["soft"])]),
    ]


def _noise_sentence(differences: Differences, noise: NoiseFloor | None) -> list[str]:
    """Says so if the candidate flips no more answers than the engine may flip by itself.

    Shares of flips are compared, not counts: the noise floor comes from a sample of the items.
    """
    if noise is None or noise.rate is None:
        return []
    primaries = {task: metrics[primary_metric(metrics)] for task, metrics in differences.items()}
    flipped = {
        task: d for task, d in primaries.items() if task in noise.flips and d.flips is not None
    }
    ours = sum(map(_flips, flipped.values())) / max(1, sum(d.n for d in flipped.values()))
    low, high = noise.rate.ci95
    if not flipped or ours > high:
        return []
    twice = sum(noise.items.values())
    return [
        f"Its flips, {100 * ours:.1f} % of the answers, cannot be told from those that the engine "
        f"makes by itself: {100 * noise.rate.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{twice:,} answers asked twice."
    ]


def _flips(difference: Difference) -> int:
    assert difference.flips is not None
    return difference.flips.total


def _closing_sentences(
    verdict: Decision, measured: dict[str, Any], size: int, base_size: int
) -> list[str]:
    """Lists the sentences on speed and size; sizes are in bytes.

    A candidate that must not ship gets no sentence on speed: its speed is no gain.
    """
    whole = f"{100 * size / base_size:.0f} % of the base's {base_size / 1e6:,.0f} MB"
    size_sentence = f"Size: {size / 1e6:,.0f} MB, {whole}."
    if verdict == "DO NOT SHIP":
        return [size_sentence]
    speed = _speed_sentences(measured["performance"], measured["unmeasured"], measured["speed"])
    return [*speed, size_sentence]


def _speed_sentences(
    points: Sequence[SpeedPoint], unmeasured: Sequence[UnmeasuredLoad], verdict: SpeedVerdict | None
) -> list[str]:
    sentences = [
        f"Not measured at {load.concurrency} concurrent requests: {load.reason}."
        for load in unmeasured
    ]
    if points and verdict is not None:
        loads = ", ".join(f"{point.speedup:.2f}x at {point.concurrency}" for point in points)
        speed = f"Output tokens/s: {mean_speedup(points):.2f}x the base's in the geometric mean"
        judged = f"Against the speed margin of {verdict.margin:g}x: {verdict.reading}."
        sentences.insert(0, f"{speed} ({loads} concurrent requests). {judged}")
    taken = [
        share for point in points if point.others_share for share in point.others_share.values()
    ]
    if taken and max(taken) >= BUSY_SHARE:
        sentences.append(f"The machine was busy: other programs took up to {max(taken):.0%} of its "
                         "CPU during a load. Speeds would be higher without them; the answers "
                         "would be the same.")  # fmt: skip
    return sentences
