"""Compares two sides from files and reaches a verdict, with the statistics of the flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from model_serve_flow.compare.differences import compare_suite, compare_task
from model_serve_flow.compare.pairs import Pairs, flipped_items, pair
from model_serve_flow.compare.reading import primary_metric
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.compare.verdict import decide, with_items_to_settle
from model_serve_flow.errors import EXIT_CODES
from model_serve_flow.flow.results.compared import Decision, Difference, Tier
from model_serve_flow.from_files.paces import compare_loads
from model_serve_flow.from_files.records import ComparedTask, FileComparison, Source
from model_serve_flow.from_files.rules import Rules
from model_serve_flow.from_files.same_items import (
    ignored_clusters,
    other_surroundings,
    require_same_items,
    require_two_sides,
    shared_tasks,
)
from model_serve_flow.from_files.sentence import sentence
from model_serve_flow.from_files.sides import Answers, Side, as_bad_input

NO_ANSWERS = "Only speed was compared. Speed alone never decides whether a candidate may ship."
VALUES = "Is each value what its tool wrote?"

ByMetric = Mapping[str, Difference]


@dataclass(frozen=True)
class _Outcome:
    """The verdict from the answers of both sides."""

    verdict: Decision
    reasons: tuple[str, ...]
    tasks: dict[str, ComparedTask]
    suite: Difference | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


def compare_sides(base: Side, candidate: Side, rules: Rules) -> FileComparison:
    """Compares two sides. The answers decide the verdict; speed is only reported.

    Raises:
        BadInput: the sides cannot be compared, or an option names an unknown task.
    """
    require_two_sides(base, candidate)
    found = _Outcome("INCONCLUSIVE", (NO_ANSWERS,), {}, blocks=(NO_ANSWERS,))
    if base.answers and candidate.answers:
        found = _compare_answers(base, candidate, rules)
    return FileComparison(
        verdict=found.verdict,
        exit_code=EXIT_CODES[found.verdict],
        sentence=sentence(found.verdict, found.tasks, found.suite, found.blocks),
        reasons=found.reasons,
        base=_source(base),
        candidate=_source(candidate),
        suite=found.suite,
        tasks=found.tasks,
        missing=found.missing,
        speed=compare_loads(base.loads, candidate.loads),
        notes=(*found.notes, *_one_sided(base, candidate)),
    )


def _compare_answers(base: Side, candidate: Side, rules: Rules) -> _Outcome:
    tiers, ours, theirs = rules.tiers, base.answered, candidate.answered
    rules.require_known({*ours.tasks, *theirs.tasks})
    shared = shared_tasks(base, candidate, (*tiers.required, *tiers.advisory))
    for task in shared:
        require_same_items(task, base, candidate)
    pairs, found = _differences(ours, theirs, shared, rules)
    counting = tiers.counting(found)
    average = compare_suite(counting, rules.of_average(counting))
    every, suite = with_items_to_settle(found, average, tiers)
    judged = decide(found, suite, tiers)
    return _Outcome(
        judged.verdict,
        judged.reasons,
        {task: _compared(pairs[task], metrics, tiers.of(task)) for task, metrics in every.items()},
        suite,
        tuple(task for task in tiers.required if task not in shared),
        (*_left_out(base, candidate, tiers), *_remarks(ours, theirs, shared)),
        judged.blocked,
    )


def _differences(
    base: Answers, candidate: Answers, tasks: Iterable[str], rules: Rules
) -> tuple[dict[str, Pairs], dict[str, ByMetric]]:
    """Pairs the items of each task and computes the differences.

    Returns:
        Task -> its pairs, and task -> metric -> difference.

    Raises:
        BadInput: a value is impossible.
    """
    with as_bad_input(VALUES):
        ours, theirs = base.tasks, candidate.tasks
        pairs = {t: pair(t, ours[t].accuracy, theirs[t].accuracy) for t in tasks}
        found: dict[str, ByMetric] = {
            t: compare_task(p, rules.of_task(t), rules.seed) for t, p in pairs.items()
        }
    return pairs, found


def _left_out(base: Side, candidate: Side, tiers: Tiers) -> Iterable[str]:
    """Yields a sentence for each advisory task that only one side has."""
    for task in tiers.advisory:
        if (task in base.answered.tasks) != (task in candidate.answered.tasks):
            yield f"Only one side has the advisory task {task}."


def _remarks(base: Answers, candidate: Answers, tasks: Iterable[str]) -> Iterable[str]:
    """Yields a sentence for each setting that differs and each column that is ignored."""
    yield from other_surroundings(base, candidate)
    ignored = (ignored_clusters(t, base.tasks[t], candidate.tasks[t]) for t in tasks)
    yield from filter(None, ignored)


def _compared(pairs: Pairs, metrics: ByMetric, tier: Tier) -> ComparedTask:
    return ComparedTask(
        tier=tier,
        primary=primary_metric(metrics),
        metrics=dict(metrics),
        flipped=flipped_items(pairs),
    )


def _source(side: Side) -> Source:
    model = side.answers.model if side.answers else ""
    return Source(path=str(side.path), kinds=side.kinds, model=model)


def _one_sided(base: Side, candidate: Side) -> Iterable[str]:
    """Yields a sentence for what only one side holds, so the reader knows it was not compared."""
    for side, other in ((base, candidate), (candidate, base)):
        if side.answers and not other.answers:
            yield f"Answers are not compared: only {side.path} holds them."
        if side.loads and not other.loads:
            yield f"Speed is not compared: only {side.path} holds it."
