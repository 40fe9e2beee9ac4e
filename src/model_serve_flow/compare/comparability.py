"""Checks that results are of the right models and were measured in the same way.

Errors name the model, the result and the field that differs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.profile import ONLY_CHECKPOINT, Difference, FlowConfig
from model_serve_flow.flow.results.measured import (
    BASE,
    LOOK,
    AccuracyResult,
    CompressionResult,
    DistributionResult,
    EngineFacts,
    Measured,
    PerformanceResult,
    protocol_hash,
)
from model_serve_flow.flow.workspace import Workspace

# What a profile lets differ (`differs`) -> the keys of the protocol that may differ then.
MAY_DIFFER: dict[Difference, frozenset[str]] = {
    "checkpoint": frozenset(),
    "engine_settings": frozenset({"engine_arguments"}),
    "engine": frozenset({"engine_arguments", "engine_version"}),
}
# Keys of the protocol in which the second measurement of the base may differ from the first.
AGAIN = frozenset({"concurrency", "batch_size", "items_per_task"})

REMEASURE = f"{RERUN} It measures again what differs."
REMAKE = f"Results of different models were mixed. {RERUN}"


@dataclass(frozen=True)
class BaseResults:
    """All results of the base.

    A result that the profile does not ask for is empty (accuracy and performance) or None.
    """

    accuracy: AccuracyResult
    performance: PerformanceResult
    accuracy_again: AccuracyResult | None = None
    distribution: DistributionResult | None = None
    distribution_again: DistributionResult | None = None

    @property
    def measurements(self) -> tuple[Measured, ...]:
        """All results that were measured."""
        everything = (
            self.accuracy,
            self.performance,
            self.accuracy_again,
            self.distribution,
            self.distribution_again,
        )
        return tuple(result for result in everything if result is not None and is_measured(result))


@dataclass(frozen=True)
class CandidateResults:
    """How a candidate was made, and all results of it; missing results are as in `BaseResults`."""

    compression: CompressionResult
    accuracy: AccuracyResult
    performance: PerformanceResult
    distribution: DistributionResult | None = None

    @property
    def name(self) -> str:
        return self.compression.model.name

    @property
    def measurements(self) -> tuple[Measured, ...]:
        """All results that were measured on the served candidate."""
        everything = (self.accuracy, self.performance, self.distribution)
        return tuple(result for result in everything if result is not None and is_measured(result))


def is_measured(result: Measured) -> bool:
    """Checks that a result was measured, and does not stand for one that nobody asked for."""
    return bool(result.protocol)


def _empty(of: Measured) -> dict[str, Any]:
    """Builds the fields of a result that nobody asked for, beside another of the same model."""
    return {
        "model": of.model,
        "protocol": {},
        "protocol_hash": protocol_hash({}),
        "engine": of.engine,
        "seconds": 0.0,
    }


def _both(
    accuracy: AccuracyResult | None, performance: PerformanceResult | None
) -> tuple[AccuracyResult, PerformanceResult]:
    """Puts an empty result in place of the one that the profile does not ask for."""
    if accuracy is None:
        assert performance is not None  # a profile asks for one of them at least
        accuracy = AccuracyResult(**_empty(performance), tasks={})
    return accuracy, performance or PerformanceResult(**_empty(accuracy), points=())


def read_base(space: Workspace, config: FlowConfig) -> BaseResults:
    """Reads the results of the base that the profile asks for.

    Raises:
        FlowError: a result is missing, or is of another model.
    """
    again, shift = config.accuracy.again is not None, config.accuracy.distribution is not None
    loads = space.performance_in_blocks
    if config.performance.blocks == 1:
        loads = functools.partial(space.performance, BASE)
    accuracy, performance = _both(
        space.accuracy(BASE) if config.has("accuracy") else None,
        loads() if config.has("performance") else None,
    )
    results = BaseResults(
        accuracy=accuracy,
        performance=performance,
        accuracy_again=space.accuracy_again() if again else None,
        distribution=space.distribution("base") if shift else None,
        distribution_again=space.distribution_again() if again and shift else None,
    )
    _require_name("base", results.measurements)
    return results


def read_candidate(space: Workspace, config: FlowConfig, name: str) -> CandidateResults:
    """Reads the results of a candidate that the profile asks for.

    Raises:
        FlowError: a result is missing, or is of another model.
    """
    accuracy, performance = _both(
        space.accuracy(name) if config.has("accuracy") else None,
        space.performance(name) if config.has("performance") else None,
    )
    results = CandidateResults(
        compression=space.compression(name),
        accuracy=accuracy,
        performance=performance,
        distribution=space.distribution(name) if config.accuracy.distribution is not None else None,
    )
    _require_name(name, (results.compression, *results.measurements))
    return results


def require_comparable(
    base: BaseResults,
    candidates: Sequence[CandidateResults],
    differs: Sequence[Difference] = ONLY_CHECKPOINT,
) -> None:
    """Checks that all results are of the right models and were measured in the same way.

    Args:
        base: results of the base.
        candidates: results of each candidate.
        differs: what may differ between the base and a candidate.

    Raises:
        FlowError: what is wrong, naming the model, the result and the field.
    """
    _check_base(base)
    _require_distinct([candidate.name for candidate in candidates])
    for candidate in candidates:
        _check_candidate(base, candidate, frozenset(differs))


def declared_differences(base: BaseResults, candidate: CandidateResults) -> list[str]:
    """Says beside the checkpoint what differs between the base and a candidate.

    `require_comparable` has refused what the profile does not let differ.
    """
    ours, theirs = base.accuracy.engine, candidate.accuracy.engine
    found = []
    if (ours.name, ours.version) != (theirs.name, theirs.version):
        found.append(
            f"The engine differs, as the profile lets it: {ours.name} {ours.version} served the "
            f"base, {theirs.name} {theirs.version} served {candidate.name}."
        )
    for one, other in (
        (base.accuracy, candidate.accuracy),
        (base.performance, candidate.performance),
    ):
        before, after = (result.protocol.get("engine_arguments", ()) for result in (one, other))
        if before != after:
            found.append(
                f"The engine's settings differ, as the profile lets them ({one.kind}): "
                f"{_only(before, after)} for the base, {_only(after, before)} for {candidate.name}."
            )
    return found


def _only(ones: Sequence[str], others: Sequence[str]) -> str:
    """Lists the words that only the first command line has."""
    return " ".join(word for word in ones if word not in others) or "nothing more"


def _check_base(base: BaseResults) -> None:
    _require_name("base", base.measurements)
    for result in base.measurements:
        _require_same_checkpoint(base.accuracy, result)
        if result.engine.quantization is not None or result.engine.kernels:
            raise FlowError(
                f"The {result.kind} result of base was served quantised "
                f"({_served(result.engine)}).",
                f"The base must be an unquantised model. {RERUN}",
            )
    _require_same_engine(base.accuracy, base.measurements)
    _require_second(base.accuracy, base.accuracy_again)
    _require_second(base.distribution, base.distribution_again)
    if base.accuracy_again is not None:
        _require_known_tasks(base.accuracy, base.accuracy_again)


def _check_candidate(
    base: BaseResults, candidate: CandidateResults, differs: frozenset[Difference]
) -> None:
    same = _check_checkpoint(base, candidate, differs)
    declared = frozenset[str]().union(*(MAY_DIFFER[what] for what in differs))
    require_same_protocol(base.accuracy, candidate.accuracy, declared)
    require_same_protocol(base.performance, candidate.performance, declared)
    if not same:
        _require_quantised_kernel(candidate.measurements)
    _require_same_engine(
        base.accuracy if "engine" not in differs else candidate.measurements[0],
        candidate.measurements,
    )
    _require_same_objectives(base.performance, candidate.performance)
    _require_same_tasks(base.accuracy, candidate.accuracy)
    others = (base.distribution, candidate.distribution)
    _require_same_distribution(*others, candidate.name, declared)


def _check_checkpoint(
    base: BaseResults, candidate: CandidateResults, differs: frozenset[Difference]
) -> bool:
    """Checks that the candidate's results are of one checkpoint, made from the base.

    Returns:
        Whether this checkpoint is that of the base.
    """
    compression, name = candidate.compression, candidate.name
    _require_name(name, candidate.measurements)
    for result in candidate.measurements:
        _require_same_checkpoint(compression, result)
    if compression.base.sha256 != base.accuracy.model.sha256:
        raise FlowError(
            f"{name} was made from checkpoint {compression.base.sha256[:12]}, but the base that "
            f"was measured is {base.accuracy.model.sha256[:12]}.",
            RERUN,
        )
    same = compression.model.sha256 == base.accuracy.model.sha256
    if same and differs == {*ONLY_CHECKPOINT}:
        raise FlowError(
            f"{name} is the same checkpoint as base ({compression.model.sha256[:12]}).", REMAKE
        )
    if not same and "checkpoint" not in differs:
        raise FlowError(
            f"{name} is checkpoint {compression.model.sha256[:12]}, the base is "
            f"{base.accuracy.model.sha256[:12]}, and the profile does not let the checkpoint "
            "differ.",
            f"Add checkpoint to {sorted(differs)} in 'differs', or compare one checkpoint.",
        )
    return same


# --- The right models ---


def _require_name(name: str, results: Iterable[CompressionResult | Measured]) -> None:
    for result in results:
        if result.model.name != name:
            raise FlowError(
                f"The {result.kind} result in the folder of {name} is of {result.model.name}.",
                REMAKE,
            )


def _require_distinct(names: list[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise FlowError(
            f"Candidate {repeated[0]} is given more than once.", "Give each candidate its own name."
        )


def _require_same_checkpoint(first: CompressionResult | Measured, second: Measured) -> None:
    if first.model.sha256 != second.model.sha256:
        raise FlowError(
            f"The {first.kind} result of {first.model.name} is of checkpoint "
            f"{first.model.sha256[:12]} ({first.model.size_bytes} bytes), its {second.kind} result "
            f"of {second.model.sha256[:12]} ({second.model.size_bytes} bytes).",
            REMAKE,
        )


def _require_quantised_kernel(results: Sequence[Measured]) -> None:
    """Checks that a quantised kernel served the candidate, and the same kernels in every result.

    The engine's log proves that the compressed weights answered, and not the weights of the base.
    An engine that names no kernels proves nothing: `unproven` says so beside the verdict.
    """
    for result in results:
        if not result.engine.names_kernels:
            continue
        if result.engine.quantization is None or not result.engine.kernels:
            raise FlowError(
                f"No quantised kernel served {result.model.name} in its {result.kind} result "
                f"({_served(result.engine)}).",
                f"Check the checkpoint's quantization_config and the server's log. {RERUN}",
            )
    first, *others = results
    for other in others:
        if set(first.engine.kernels) != set(other.engine.kernels):
            raise FlowError(
                f"{first.model.name} was served by different kernels: {first.kind} by "
                f"{_served(first.engine)}, {other.kind} by {_served(other.engine)}.",
                f"Measure both on one machine. {RERUN}",
            )


def unproven(candidate: CandidateResults) -> str | None:
    """Says that nothing proves that a candidate's compressed weights computed; None if it is."""
    silent = {r.engine.name for r in candidate.measurements if not r.engine.names_kernels}
    if not silent:
        return None
    return (
        f"{' and '.join(sorted(silent))} does not tell which kernels it used, so nothing proves "
        "that the compressed weights computed. SHIP is withheld."
    )


def _require_same_engine(base: Measured, others: Iterable[Measured]) -> None:
    for other in others:
        if other.engine.name != base.engine.name:
            raise FlowError(
                f"{base.engine.name} served {base.model.name} for its {base.kind} result, and "
                f"{other.engine.name} served {other.model.name} for its {other.kind} result.",
                REMEASURE,
            )
        if other.engine.version != base.engine.version:
            raise FlowError(
                f"The {base.kind} result of {base.model.name} is from engine version "
                f"{base.engine.version}, the {other.kind} result of {other.model.name} from "
                f"{other.engine.version}.",
                REMEASURE,
            )


def _served(engine: EngineFacts) -> str:
    return f"quantization {engine.quantization}, kernels {', '.join(engine.kernels) or 'none'}"


# --- The same items ---


def _require_same_tasks(base: AccuracyResult, other: AccuracyResult) -> None:
    if lacking := sorted(base.tasks.keys() - other.tasks.keys()):
        raise FlowError(
            f"The accuracy result of {other.model.name} lacks the task {lacking[0]}.", REMEASURE
        )
    _require_known_tasks(base, other)
    for task in base.tasks:
        # With looks only some items were asked, and guessing may score differently on them.
        if not other.looks and base.tasks[task].chance != other.tasks[task].chance:
            raise FlowError(
                f"Task {task}: guessing scores {base.tasks[task].chance} for base and "
                f"{other.tasks[task].chance} for {other.model.name}.",
                REMEASURE,
            )


def _require_known_tasks(base: AccuracyResult, other: AccuracyResult) -> None:
    if odd := sorted(other.tasks.keys() - base.tasks.keys()):
        raise FlowError(f"The accuracy result of base lacks the task {odd[0]}.", REMEASURE)


def _require_second(first: Measured | None, second: Measured | None) -> None:
    """Checks that the second measurement of the base differs from the first in its batches only.

    Then only the noise of the engine can change an answer.
    """
    if second is None:
        return
    if first is None:
        raise FlowError(f"The base has a second {second.kind} result but no first.", REMEASURE)
    ours, theirs = without_again(first.protocol), without_again(second.protocol)
    if odd := sorted(
        key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)
    ):
        raise FlowError(
            f"The base's second {first.kind} result was not measured like its first: {odd[0]} is "
            f"{ours.get(odd[0])!r} and {theirs.get(odd[0])!r}.",
            REMEASURE,
        )


def without_again(protocol: dict[str, Any]) -> dict[str, Any]:
    """Returns the protocol without the keys in which the second measurement may differ.

    These keys (see `AGAIN`) say how requests were batched and how many items were asked. They are
    removed at any depth.
    """
    return {
        key: without_again(value) if isinstance(value, dict) else value
        for key, value in protocol.items()
        if key not in AGAIN
    }


def _require_same_distribution(
    base: DistributionResult | None,
    other: DistributionResult | None,
    name: str,
    declared: frozenset[str],
) -> None:
    if base is None and other is None:
        return
    if base is None or other is None:
        lacking = "base" if base is None else name
        raise FlowError(f"The distribution result of {lacking} is missing.", REMEASURE)
    require_same_protocol(base, other, declared)


# --- The same load ---


def _require_same_objectives(base: PerformanceResult, candidate: PerformanceResult) -> None:
    ours, theirs = (
        None if c is None else (c.ttft_ms, c.itl_ms, c.attainment)
        for c in (base.capacity, candidate.capacity)
    )
    if ours != theirs:
        raise FlowError(
            f"The capacity of base was searched at the objectives {ours} and that of "
            f"{candidate.model.name} at {theirs} (TTFT in ms, ITL in ms, share of requests).",
            REMEASURE,
        )


def require_same_protocol(
    base: Measured, candidate: Measured, declared: frozenset[str] = frozenset()
) -> None:
    """Checks that two measurements were made with the same protocol.

    Args:
        declared: keys of the protocol that may differ.

    Raises:
        FlowError: the protocols differ; the first field that differs is named.
    """
    if base.protocol_hash == candidate.protocol_hash:
        return
    for key in sorted((base.protocol.keys() | candidate.protocol.keys()) - {LOOK} - declared):
        ours, theirs = base.protocol.get(key), candidate.protocol.get(key)
        if ours != theirs:
            raise FlowError(
                f"{base.model.name} and {candidate.model.name} were not measured in the same way: "
                f"{key} is {ours!r} and {theirs!r}.",
                f"{RERUN} It measures again what differs.",
            )
