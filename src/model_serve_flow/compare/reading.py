"""Reads single facts out of a comparison, such as the primary metric and the worst difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model_serve_flow.compare.stats.paired import ALPHA
from model_serve_flow.flow.results.compared import (
    CandidateComparison,
    Comparison,
    Decision,
    Difference,
    SoftScore,
)
from model_serve_flow.flow.results.measured import BASE

AVERAGE = ("average", "of deciding tasks")

PRIMARY_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")


def within_margin(difference: Difference) -> bool:
    """Tells whether the loss is surely within the accepted drop.

    The adjusted p-value of the verdict decides. A difference without one is judged by the worse end
    of its interval.
    """
    if difference.adjusted_p is not None:
        return difference.adjusted_p[0] <= ALPHA
    if difference.higher_is_better:
        return difference.ci95[0] > -difference.limit
    return difference.ci95[1] < difference.limit


def main_differences(candidate: CandidateComparison) -> dict[tuple[str, str], Difference]:
    """Returns (task, metric) -> difference for the primary metric of each task.

    The average over the deciding tasks comes first, if there is one.
    """
    primaries = {
        (task, metric): metrics[metric]
        for task, metrics in candidate.accuracy.items()
        for metric in [primary_metric(metrics)]
    }
    return primaries if candidate.suite is None else {AVERAGE: candidate.suite, **primaries}


@dataclass(frozen=True)
class Offer:
    """One model as a buyer sees it.

    Attributes:
        score: average score in points.
        cost: US dollars per million output tokens.
    """

    name: str
    score: float
    ci95: tuple[float, float]
    cost: float
    verdict: Decision | None
    dominated_by: str | None

    @property
    def on_front(self) -> bool:
        """Whether the model may ship and no other model is surely more accurate and cheaper."""
        return self.verdict != "DO NOT SHIP" and self.dominated_by is None


def offers(comparison: Comparison) -> list[Offer]:
    """Lists the base and the candidates whose score and cost are known.

    The base comes first. The list is empty if no candidate is known.
    """
    found = [
        Offer(c.name, c.suite.candidate,
              (c.suite.base + c.suite.ci95[0], c.suite.base + c.suite.ci95[1]),
              c.cost_per_million_output_tokens, c.verdict, c.dominated_by)
        for c in comparison.candidates
        if c.suite is not None and c.cost_per_million_output_tokens is not None
    ]  # fmt: skip
    cost = comparison.base.cost_per_million_output_tokens
    if not found or cost is None:
        return found
    score = next(c.suite.base for c in comparison.candidates if c.suite is not None)
    return [Offer(BASE, score, (score, score), cost, None, comparison.base.dominated_by), *found]


def p_value(value: float | None) -> str:
    """Writes a p-value with three decimals, or '–' for None."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def p_statement(value: float) -> str:
    """Writes a p-value for a sentence: 'p < 0.001', 'p = 0.020'."""
    shown = p_value(value)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def clusters(difference: Difference | SoftScore) -> str:
    """Says in which clusters the items come, with the design effect; empty without clusters."""
    found = difference.clusters
    if found is None:
        return ""
    effect = "" if found.design_effect is None else f", design effect {found.design_effect:.1f}"
    return f" in {found.count} clusters by {found.key}{effect}"


def primary_metric(metrics: Iterable[str]) -> str:
    """Chooses the metric of a task that counts in the verdict.

    It is word_perplexity for a text, else the first of `PRIMARY_METRICS` that the task has (with
    any filter, in lm-eval's order), else the task's first metric.

    Args:
        metrics: names of the task's metrics, at least one.
    """
    names = list(metrics)
    for wanted in ("word_perplexity", *PRIMARY_METRICS):
        for metric in names:
            if metric.partition(",")[0] == wanted:
                return metric
    return names[0]


def worst(candidate: CandidateComparison) -> tuple[str, str, Difference] | None:
    """Returns (task, metric, difference) of the task with the largest loss relative to its margin.

    Tasks that cannot decide count only if no task can decide.

    Returns:
        None without accuracy.
    """
    rows = [(*row, d) for row, d in main_differences(candidate).items() if row != AVERAGE]
    telling = [row for row in rows if row[2].decides] or rows
    return max(telling, key=lambda row: _loss(row[2]) / row[2].limit, default=None)


def _loss(difference: Difference) -> float:
    """Returns how much worse the candidate is, in the difference's unit."""
    return -difference.difference if difference.higher_is_better else difference.difference


def must_not_ship(candidate: CandidateComparison) -> bool:
    """Tells whether the verdict is DO NOT SHIP.

    The report strikes the gains of such a candidate through.
    """
    return candidate.verdict == "DO NOT SHIP"


def all_differences(candidate: CandidateComparison) -> list[tuple[str, str, Difference]]:
    """Lists (task, metric, difference) of the average and of every metric of every task."""
    rows = [
        (task, name, d)
        for task, metrics in candidate.accuracy.items()
        for name, d in metrics.items()
    ]
    return rows if candidate.suite is None else [(*AVERAGE, candidate.suite), *rows]
